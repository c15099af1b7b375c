from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import transformers
from flowact_wav2vec2 import Wav2Vec2Audio
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowact.errors import UserError
from flowact.testing import check_conditioning_encoder, check_constructor

FRAME = 640


def save(folder: Path, normalize: bool = True, **options) -> str:
    """A tiny model with the strides and kernels of all published ones."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7}
    config = transformers.Wav2Vec2Config(**(sizes | {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2} | options))
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("wav2vec2"))


def sound(num_frames: int) -> Tensor:
    time = torch.arange(num_frames * FRAME) / 16_000
    return 0.1 * sum(torch.sin(2 * math.pi * k * 140 * time) / k for k in range(1, 20)) * torch.sin(2 * math.pi * 2 * time).square()


@pytest.mark.parametrize("options", [{}, {"block_frames": 5, "context_frames": 10, "layer": 1}, {"block_frames": 1, "context_frames": 0}])
def test_laws_of_an_audio_encoder(options, folder):
    check_conditioning_encoder(Wav2Vec2Audio(folder, **{"block_frames": 6, "context_frames": 12} | options))


def test_constructor_is_documented():
    check_constructor(Wav2Vec2Audio)


@torch.no_grad()
def test_a_block_is_what_transformers_makes_of_it(folder):
    samples = sound(20)
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    inputs = extractor(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    states = transformers.Wav2Vec2Model.from_pretrained(folder).eval()(torch.nn.functional.pad(inputs, (40, 40)), output_hidden_states=True)
    for layer, hidden in ((None, states.last_hidden_state), (1, states.hidden_states[1])):
        assert hidden.shape[1] == 40
        expected = (hidden[0, 0::2] + hidden[0, 1::2]) / 2
        torch.testing.assert_close(Wav2Vec2Audio(folder, layer, 20, 0).encode(samples), expected, atol=1e-5, rtol=1e-4)


def test_a_click_in_the_middle_of_a_frame_is_in_its_feature_alone(tmp_path):
    """Where neither normalisation nor attention spreads it: the states stand where the sound is."""
    path = save(tmp_path, normalize=False, feat_extract_norm="layer", num_conv_pos_embeddings=1, num_conv_pos_embedding_groups=1)
    encoder = Wav2Vec2Audio(path, layer=0, block_frames=10, context_frames=0)
    samples = 0.1 * torch.randn(10 * FRAME, generator=torch.Generator().manual_seed(0))
    clicked = samples.clone()
    clicked[7 * FRAME + FRAME // 2] += 1.0
    moved = (encoder.encode(clicked) - encoder.encode(samples)).abs().amax(dim=1) > 1e-4
    assert moved.nonzero().flatten().tolist() == [7]


def test_a_stream_hears_what_training_heard_and_plain_wav2vec2_would_not(folder):
    encoder = Wav2Vec2Audio(folder, block_frames=6, context_frames=12)
    samples = sound(36)
    whole = encoder.encode(samples)
    for first in range(0, 36, 6):
        start = max(first - encoder.context_frames, 0)
        now = encoder.encode(samples[start * FRAME : (first + 6) * FRAME])[first - start :]
        torch.testing.assert_close(now, whole[first : first + 6], atol=1e-4, rtol=1e-4)
    plain = [Wav2Vec2Audio(folder, None, num_frames, 0).encode(samples[: num_frames * FRAME])[:18] for num_frames in (18, 36)]
    assert not torch.allclose(plain[0], plain[1], atol=1e-2)


def test_errors_say_what_to_do(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"config\.json and preprocessor_config\.json not found"):
        Wav2Vec2Audio(str(tmp_path))
    with pytest.raises(UserError, match="use 0 to 2"):
        Wav2Vec2Audio(folder, layer=3)
    with pytest.raises(UserError, match="multiple of the block"):
        Wav2Vec2Audio(folder, block_frames=5, context_frames=6)
    with pytest.raises(UserError, match="every 192 samples"):
        Wav2Vec2Audio(save(tmp_path / "odd", conv_stride=(3, 2, 2, 2, 2, 2, 2)))
    other = save(tmp_path / "other")
    (Path(other) / "config.json").write_text('{"model_type": "hubert"}')
    with pytest.raises(UserError, match="'hubert'"):
        Wav2Vec2Audio(other)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(UserError, match="pip install 'transformers"):
            Wav2Vec2Audio(folder)


def test_a_folder_that_does_not_fit_is_refused_when_it_is_read(tmp_path):
    path = Path(save(tmp_path))
    weights = load_file(path / "model.safetensors")
    save_file({name: t for name, t in weights.items() if name != "encoder.layer_norm.bias"}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack \['encoder\.layer_norm\.bias'\]"):
        Wav2Vec2Audio(str(path)).encode(sound(3))
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"only model\.safetensors is read"):
        Wav2Vec2Audio(str(path)).encode(sound(3))
    path = Path(save(tmp_path))
    settings = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps(settings | {"sampling_rate": 8000}))
    with pytest.raises(UserError, match="8000 Hz"):
        Wav2Vec2Audio(str(path)).encode(sound(3))

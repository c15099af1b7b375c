"""Hidden states of wav2vec 2.0 (Baevski et al. 2020), one per video frame.

Axes: B batch, T video frames, S samples, L states, D feature width.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any, final

from torch import Tensor
from torch.nn import functional

from flowact.conditioning import BlockwiseAudio
from flowact.errors import UserError
from flowact.types import SAMPLE_RATE, SAMPLES_PER_FRAME

__all__ = ["Wav2Vec2Audio"]


@final
class Wav2Vec2Audio(BlockwiseAudio):
    """Hidden states of a wav2vec 2.0 network, encoded in blocks with some past.

    The network hears everything that it is given at once: it attends both ways, published models normalise their input, and some the first layer too,
    over the whole clip. A live session has no whole clip. So each block of frames is encoded with the `context_frames` before it and nothing
    else, in training and live alike.

    Its states stand 20 ms apart and see 25 ms. Each window is padded with 2.5 ms of silence at both ends, so that there are exactly two states
    per video frame, placed evenly in it; their mean is the frame's feature.

    Args:
        path: folder of a wav2vec 2.0 model in transformers' format (config.json, preprocessor_config.json, model.safetensors). Nothing is downloaded.
        layer: hidden state to return: 0 is the input of the first layer, None the final output.
        block_frames: video frames encoded together; 12 are a chunk of three latents, and a live session waits for a whole block.
        context_frames: video frames of past given with each block, a multiple of `block_frames`.

    Raises:
        UserError: transformers is not installed, the folder holds no such model, its states do not divide a video frame, the layer does not exist, or
            block and context do not fit each other.
    """

    def __init__(self, path: str, layer: int | None = None, block_frames: int = 12, context_frames: int = 48) -> None:
        super().__init__(block_frames, context_frames)
        self.path = path
        self.layer = layer
        absent = [name for name in ("config.json", "preprocessor_config.json") if not (Path(path) / name).is_file()]
        if absent:
            raise UserError(f"no wav2vec 2.0 model at {path}: {' and '.join(absent)} not found; give the folder of a downloaded model")
        config = self._transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        if config.model_type != "wav2vec2":
            raise UserError(f"the model at {path} is of type {config.model_type!r}, Wav2Vec2Audio needs 'wav2vec2'")
        if layer is not None and not 0 <= layer <= config.num_hidden_layers:
            raise UserError(f"the model at {path} has no layer {layer}; use 0 to {config.num_hidden_layers}, or none for the final output")
        self._width = int(config.hidden_size)
        self._stride = math.prod(config.conv_stride)
        if SAMPLES_PER_FRAME % self._stride:
            raise UserError(f"the model at {path} has a state every {self._stride} samples, which do not divide a frame of {SAMPLES_PER_FRAME}")
        steps = accumulate(config.conv_stride[:-1], mul, initial=1)
        seen = 1 + sum((kernel - 1) * step for kernel, step in zip(config.conv_kernel, steps, strict=True))
        self._padding = ((seen - self._stride) // 2, (seen - self._stride + 1) // 2)

    @property
    def width(self) -> int:
        return self._width

    def _encode_window(self, network: Any, window_S: Tensor) -> Tensor:
        inputs_BS = self._extractor(window_S.cpu().numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
        output = network(functional.pad(inputs_BS, self._padding).to(self._device), output_hidden_states=self.layer is not None)
        states_LD = (output.last_hidden_state if self.layer is None else output.hidden_states[self.layer])[0]
        return states_LD.unflatten(0, (-1, SAMPLES_PER_FRAME // self._stride)).mean(dim=1)

    @property
    def _transformers(self) -> Any:
        try:
            import transformers
        except ImportError as error:
            raise UserError("Wav2Vec2Audio needs transformers; install it with: pip install 'transformers>=4.57'") from error
        return transformers

    @cached_property
    def _extractor(self) -> Any:
        extractor = self._transformers.Wav2Vec2FeatureExtractor.from_pretrained(self.path, local_files_only=True)
        if extractor.sampling_rate != SAMPLE_RATE:
            raise UserError(f"the model at {self.path} was trained on sound at {extractor.sampling_rate} Hz; {SAMPLE_RATE} Hz is needed")
        return extractor

    @cached_property
    def _network(self) -> Any:
        try:
            network, report = self._transformers.Wav2Vec2Model.from_pretrained(
                self.path, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except OSError as error:
            raise UserError(f"cannot load the wav2vec 2.0 model at {self.path}: {error}; only model.safetensors is read") from error
        missing = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})  # a vector for training, which published files may lack
        if missing:
            raise UserError(f"the weights at {self.path} lack {missing[:3]}; copy the model again")
        return network.eval().requires_grad_(False)

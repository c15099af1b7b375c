"""The text encoders of published video models, read through `transformers` from a local folder in the layout of `diffusers`.

A caption is encoded alone and without padding: its tokens see no others, so its features do not depend on what it is encoded beside.
Axes: N captions, L rows of features, D feature width.
"""

from __future__ import annotations

import html
import re
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, final

import torch
from torch import Tensor
from torch.nn import functional

from flowact.conditioning.base import TextEncoder, check_captions
from flowact.conditioning.transformers_library import transformers_for
from flowact.errors import UserError

Precision = Literal["float32", "bfloat16", "float16"]

SKIPPED_LAYERS = 2  # both generations of HunyuanVideo read a language model that far before its end
CLIP_TOKENS = 77

# What stands around the caption, to the space as the models were trained with it.
ASPECTS = (
    "1. The main content and theme of the video.",
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects.",
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.",
    "4. background environment, light, style and atmosphere.",
    "5. camera angles, movements, and transitions used in the video",
)
TASK = "Describe the video by detailing the following aspects:"
HUNYUAN_BEFORE = (
    f"<|start_header_id|>system<|end_header_id|>\n\n{TASK} {''.join(ASPECTS)}:<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
)
HUNYUAN_AFTER = "<|eot_id|>"
HUNYUAN15_BEFORE = (
    f"<|im_start|>system\nYou are a helpful assistant. {TASK}{''.join(' ' * 9 + aspect for aspect in ASPECTS)}.<|im_end|>\n<|im_start|>user\n"
)
HUNYUAN15_AFTER = "<|im_end|>\n<|im_start|>assistant\n"

QUOTED = re.compile(r'"(.*?)"|“(.*?)”')
COMPATIBILITY_FORMS = re.compile(r"[\u3000\uff01-\uffef\ufb00-\ufb06]")  # full-width and half-width forms, Latin ligatures
STRAIGHT_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))


def clean_caption(caption: str) -> str:
    """The caption as Wan's training cleaned it: character references resolved, one form of each character and quote, single spaces.

    Text in a broken encoding is not repaired.
    """
    caption = html.unescape(html.unescape(caption))
    caption = COMPATIBILITY_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), caption).translate(STRAIGHT_QUOTES)
    return " ".join(unicodedata.normalize("NFC", caption).split())


def quoted_texts(caption: str) -> str:
    """What a caption says is written in the picture (its parts in double quotes), in the words of HunyuanVideo-1.5; "" if nothing is."""
    texts = dict.fromkeys(straight or curly for straight, curly in QUOTED.findall(caption))
    return "".join(f'Text "{text}". ' for text in texts)


class FrozenLanguageModel:
    """A tokenizer and a frozen network in two folders beside each other, both loaded when they are first used.

    Args:
        path: folder of the whole model.
        network: name of the network's folder, with config.json and safetensors.
        tokenizer: name of the tokenizer's folder.
        classes: class in transformers for each `model_type` that will do.
        precision: arithmetic of the network.

    Raises:
        UserError: transformers is not installed, a folder is missing, or it holds another kind of network.
    """

    def __init__(self, path: str, network: str, tokenizer: str, classes: Mapping[str, str], precision: Precision) -> None:
        transformers = transformers_for("a text encoder of a published model")
        self._transformers = transformers
        self._folder, self._tokenizer_folder = Path(path) / network, Path(path) / tokenizer
        self._precision = precision
        self._device = torch.device("cpu")
        absent = [str(file) for file in (self._folder / "config.json", self._tokenizer_folder) if not file.exists()]
        if absent:
            raise UserError(f"{' and '.join(absent)} not found; give the folder of the whole model, with {network}/ and {tokenizer}/ in it")
        config = transformers.AutoConfig.from_pretrained(str(self._folder), local_files_only=True)
        if config.model_type not in classes:
            raise UserError(f"{self._folder} holds a model of type {config.model_type!r}; {' or '.join(map(repr, classes))} is needed here")
        self._class: Any = getattr(transformers, classes[config.model_type])
        self.width = int(config.hidden_size)

    def to(self, device: torch.device) -> None:
        """Run on this device from now on."""
        self._device = device
        if "_network" in self.__dict__:
            self._network.to(device)

    def tokens(self, text: str, limit: int, marks: bool = True) -> Tensor:
        """Token numbers [1, L] of `text`, L <= `limit`, with the tokenizer's own marks of start and end unless told."""
        return self._tokenizer(text, truncation=True, max_length=limit, add_special_tokens=marks, return_tensors="pt").input_ids

    @torch.no_grad()
    def __call__(self, ids_1L: Tensor, **options: Any) -> Any:
        """What the network returns for the tokens."""
        return self._network(input_ids=ids_1L.to(self._device), **options)

    def hidden_states(self, before: str, caption: str, after: str, limit: int, marks: bool) -> Tensor:
        """States [L, D] of at most `limit` tokens of `caption` and `after`, two layers before the network's end, told `before` first."""
        given = self.tokens(before, 1 << 20, marks).shape[1]
        ids_1L = self.tokens(before + caption.strip() + after, given + limit, marks)
        return self(ids_1L, output_hidden_states=True).hidden_states[-1 - SKIPPED_LAYERS][0, given:]

    @cached_property
    def _network(self) -> Any:
        try:
            network, report = self._class.from_pretrained(
                str(self._folder), local_files_only=True, use_safetensors=True, dtype=getattr(torch, self._precision), output_loading_info=True
            )
        except OSError as error:
            raise UserError(f"cannot load the text model at {self._folder}: {error}; only safetensors are read") from error
        if report["missing_keys"]:
            raise UserError(f"the weights at {self._folder} lack {sorted(report['missing_keys'])[:3]}; copy the model again")
        return network.eval().requires_grad_(False).to(self._device)

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return self._transformers.AutoTokenizer.from_pretrained(str(self._tokenizer_folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load the tokenizer at {self._tokenizer_folder}: {error}") from error


class PretrainedText(TextEncoder):
    """Features of whole captions by frozen language models.

    A caption that occurs twice is encoded once. An empty one gives zeros, although the base models know another "no text", the features of an
    empty string: training with `ConditionDropout` teaches them this one.

    Args:
        models: the language models that are used.
    """

    def __init__(self, *models: FrozenLanguageModel) -> None:
        self._models = models

    def to(self, device: torch.device | str) -> Self:
        """See `ConditioningEncoder.to`."""
        for model in self._models:
            model.to(torch.device(device))
        return self

    def encode(self, captions: Sequence[str]) -> Tensor:
        check_captions(captions)
        text_NLD = torch.zeros(len(captions), self.num_tokens, self.width)
        known: dict[str, Tensor] = {}
        for caption, text_LD in zip(captions, text_NLD, strict=True):
            if caption.strip():
                if caption not in known:
                    known[caption] = self._rows(caption)
                text_LD.copy_(known[caption])
        return text_NLD

    @abstractmethod
    def _rows(self, caption: str) -> Tensor:
        """Rows [num_tokens, width] of one caption that is not empty, on any device and of any type."""

    def _pad(self, states_LD: Tensor, num_rows: int) -> Tensor:
        """The states among `num_rows` rows of the encoder's width, zero where there are none."""
        return functional.pad(states_LD.float().cpu(), (0, self.width - states_LD.shape[1], 0, num_rows - states_LD.shape[0]))


@final
class T5Text(PretrainedText):
    """Token states of a T5 or UMT5 encoder, as Wan reads captions (UMT5-XXL, width 4096). Rows after a caption's end are zero.

    Args:
        path: folder of the whole base model; its `text_encoder` and `tokenizer` folders are read. Nothing is downloaded.
        num_tokens: rows L per caption; a longer caption is cut, its end mark kept.
        precision: arithmetic of the encoder.

    Raises:
        UserError: transformers is not installed, or a folder is missing or holds another kind of model.
        ValueError: `num_tokens` below 2.
    """

    def __init__(self, path: str, num_tokens: int = 512, precision: Precision = "bfloat16") -> None:
        if num_tokens < 2:
            raise ValueError(f"num_tokens = {num_tokens}: a caption needs at least 2, a word and the end mark")
        self._encoder = FrozenLanguageModel(path, "text_encoder", "tokenizer", {"umt5": "UMT5EncoderModel", "t5": "T5EncoderModel"}, precision)
        super().__init__(self._encoder)
        self._num_tokens = num_tokens

    @property
    def width(self) -> int:
        return self._encoder.width

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def _rows(self, caption: str) -> Tensor:
        states_1LD = self._encoder(self._encoder.tokens(clean_caption(caption), self.num_tokens)).last_hidden_state
        return self._pad(states_1LD[0], self.num_tokens)


@final
class HunyuanVideoText(PretrainedText):
    """What HunyuanVideo is told: states of a LLaMA that is asked to describe the video, and CLIP's vector of the caption.

    Rows, in order: `llm_tokens` of the language model (width 4096), zero after the caption's end; then one row with CLIP's pooled vector in its first
    `pooled_width` channels (768), zero in the others.

    Args:
        path: folder of the whole base model; its `text_encoder`, `tokenizer`, `text_encoder_2` and `tokenizer_2` folders are read.
        llm_tokens: rows of the language model; a longer caption is cut.
        precision: arithmetic of both networks.

    Raises:
        UserError: transformers is not installed, a folder is missing or holds another kind of model, or CLIP is wider than the language model.
        ValueError: `llm_tokens` below 1.
    """

    def __init__(self, path: str, llm_tokens: int = 256, precision: Precision = "float16") -> None:
        if llm_tokens < 1:
            raise ValueError(f"llm_tokens = {llm_tokens}: at least 1 is needed")
        self._llm = FrozenLanguageModel(path, "text_encoder", "tokenizer", {"llama": "LlamaModel"}, precision)
        self._clip = FrozenLanguageModel(path, "text_encoder_2", "tokenizer_2", {"clip_text_model": "CLIPTextModel"}, precision)
        super().__init__(self._llm, self._clip)
        if self._clip.width > self._llm.width:
            raise UserError(f"CLIP's vector of {self._clip.width} channels does not fit into a row of the language model's {self._llm.width}")
        self.llm_tokens = llm_tokens

    @property
    def width(self) -> int:
        return self._llm.width

    @property
    def num_tokens(self) -> int:
        return self.llm_tokens + 1

    @property
    def pooled_width(self) -> int:
        """Channels of CLIP's vector."""
        return self._clip.width

    def _rows(self, caption: str) -> Tensor:
        states_LD = self._llm.hidden_states(HUNYUAN_BEFORE, caption, HUNYUAN_AFTER, self.llm_tokens, marks=True)
        pooled_1D = self._clip(self._clip.tokens(caption, CLIP_TOKENS)).pooler_output
        return torch.cat([self._pad(states_LD, self.llm_tokens), self._pad(pooled_1D, 1)])


@final
class HunyuanVideo15Text(PretrainedText):
    """What HunyuanVideo-1.5 is told: states of the text part of Qwen2.5-VL, and ByT5's states of what is written in the picture.

    Rows, in order: `llm_tokens` of the language model (width 3584), zero after the caption's end; then `glyph_tokens` of ByT5 in their first
    `glyph_width` channels (1472), all zero for a caption that quotes nothing.

    Args:
        path: folder of the whole base model; its `text_encoder`, `tokenizer`, `text_encoder_2` and `tokenizer_2` folders are read.
        llm_tokens: rows of the language model; a longer caption is cut. 1000 is the base model's; fewer make shards smaller.
        glyph_tokens: rows of ByT5.
        precision: arithmetic of both networks.

    Raises:
        UserError: transformers is not installed, a folder is missing or holds another kind of model, or ByT5 is wider than the language model.
        ValueError: `llm_tokens` below 1 or `glyph_tokens` below 2.
    """

    def __init__(self, path: str, llm_tokens: int = 1000, glyph_tokens: int = 256, precision: Precision = "float16") -> None:
        if llm_tokens < 1 or glyph_tokens < 2:
            raise ValueError(f"llm_tokens = {llm_tokens} and glyph_tokens = {glyph_tokens}: at least 1 and 2 are needed")
        self._llm = FrozenLanguageModel(path, "text_encoder", "tokenizer", {"qwen2_5_vl_text": "Qwen2_5_VLTextModel"}, precision)
        self._glyphs = FrozenLanguageModel(path, "text_encoder_2", "tokenizer_2", {"t5": "T5EncoderModel"}, precision)
        super().__init__(self._llm, self._glyphs)
        if self._glyphs.width > self._llm.width:
            raise UserError(f"ByT5's {self._glyphs.width} channels do not fit into rows of the language model's {self._llm.width}")
        self.llm_tokens = llm_tokens
        self.glyph_tokens = glyph_tokens

    @property
    def width(self) -> int:
        return self._llm.width

    @property
    def num_tokens(self) -> int:
        return self.llm_tokens + self.glyph_tokens

    @property
    def glyph_width(self) -> int:
        """Channels of ByT5's states."""
        return self._glyphs.width

    def _rows(self, caption: str) -> Tensor:
        states_LD = self._llm.hidden_states(HUNYUAN15_BEFORE, caption, HUNYUAN15_AFTER, self.llm_tokens, marks=False)
        written = quoted_texts(caption)
        glyphs_LD = states_LD.new_zeros(0, self.glyph_width)
        if written:
            glyphs_LD = self._glyphs(self._glyphs.tokens(written, self.glyph_tokens)).last_hidden_state[0]
        return torch.cat([self._pad(states_LD, self.llm_tokens), self._pad(glyphs_LD, self.glyph_tokens)])

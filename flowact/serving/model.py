"""What sessions are made of: a model that opens streams, and the characters that it can show. Axes: H W height and width, C = 3 colours."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from flowact.conditioning import load_picture, prepare_picture
from flowact.errors import UserError
from flowact.serving.limits import Limits, Refusal
from flowact.types import SAMPLES_PER_FRAME, STATES

if TYPE_CHECKING:
    from flowact.planning.base import Planner
    from flowact.sampling.live import LiveStream
    from flowact.sampling.pipeline import Pipeline

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True, eq=False)
class AvatarCharacter:
    """Someone to talk to.

    Attributes:
        id: in addresses and events.
        name: for people.
        picture: reference picture, float32 (3, H, W) in [-1, 1].
    """

    id: str
    name: str
    picture: Tensor

    @property
    def pixels_HWC(self) -> np.ndarray:
        """The picture as uint8."""
        return ((self.picture.permute(1, 2, 0).numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)


class AvatarModel(ABC):
    """Opens streams. Shared by all sessions; its methods are called on threads.

    Attributes:
        name: of the checkpoint, for people.
        sha256: of its weights, for the session log.
        picture_size: height and width of its pictures.
        chunk_seconds: playing time of a chunk.
        characters: by id, in the order in which they are offered; at least one.
    """

    name: str
    sha256: str
    picture_size: tuple[int, int]
    chunk_seconds: float
    characters: Mapping[str, AvatarCharacter]

    @abstractmethod
    def open(self, picture: Tensor) -> LiveStream:
        """A new stream of a character that nobody has met yet."""

    def facts(self) -> dict[str, Any]:
        """More for /v1/info."""
        return {}


@final
class CheckpointModel(AvatarModel):
    """Streams of a checkpoint.

    Args:
        pipeline: built from it.
        name: of the checkpoint.
        sha256: of its weights.
        characters: to choose from.
        planner: writes prompts from what is said and heard; None leaves the character idle until it is told.
        seed: of the noise.
        reaction: how soon sound and prompts are seen; see `flowact.sampling.StreamSession`.
        late: what happens when a chunk is not ready in time; see `flowact.sampling.LiveStream`.
        buffer_chunks: finished chunks that may wait.

    Raises:
        UserError: no character.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        name: str,
        sha256: str,
        characters: Sequence[AvatarCharacter],
        planner: Planner | None,
        seed: int = 0,
        reaction: Literal["window", "at_once"] = "window",
        late: Literal["hold", "micro_steps"] = "hold",
        buffer_chunks: int = 1,
    ) -> None:
        if not characters:
            raise UserError("this checkpoint comes with no synthetic character; give --reference IMAGE, once or more")
        self.name, self.sha256 = name, sha256
        self.characters = {character.id: character for character in characters}
        self.picture_size = pipeline.picture_size
        self.chunk_seconds = pipeline.latency_budget.chunk_seconds
        self._pipeline, self._planner = pipeline, planner
        self._seed, self._reaction, self._late, self._buffer_chunks = seed, reaction, late, buffer_chunks
        self.budget = pipeline.latency_budget

    def open(self, picture: Tensor) -> LiveStream:
        """See `AvatarModel.open`."""
        from flowact.sampling.live import LiveStream
        from flowact.sampling.session import StreamSession

        session = StreamSession(self._pipeline, picture, seed=self._seed, planner=self._planner, reaction=self._reaction)
        return LiveStream(session, buffer_chunks=self._buffer_chunks, late=self._late)

    def facts(self) -> dict[str, Any]:
        """What the geometry costs in time."""
        return {"latency_budget": self.budget.as_dict()}

    def try_out(self) -> None:
        """Make one chunk: what does not work should be said before anyone connects, and the first visitor should not wait for a cold start."""
        with self.open(next(iter(self.characters.values())).picture) as stream:
            next(iter(stream))
            self.budget = stream.session.budget


def character_id(name: str, taken: Mapping[str, Any] | set[str]) -> str:
    """A short id of letters and digits that nobody has yet."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "character"
    found, count = plain, 2
    while found in taken:
        found, count = f"{plain}-{count}", count + 1
    return found


def pictured_characters(paths: Sequence[str | Path], size: tuple[int, int]) -> list[AvatarCharacter]:
    """One character per picture file, named after it.

    Raises:
        UserError: as `flowact.conditioning.load_picture`.
    """
    found: dict[str, AvatarCharacter] = {}
    for path in paths:
        name = Path(path).stem.replace("_", " ").strip() or "character"
        key = character_id(name, found)
        found[key] = AvatarCharacter(key, name, load_picture(path, size)[0])
    return list(found.values())


def synthetic_characters(spec: Mapping[str, Any] | None, size: tuple[int, int], count: int = 4) -> list[AvatarCharacter]:
    """People of the synthetic family that a checkpoint was trained on; none where it was trained on films.

    Args:
        spec: `character` of the checkpoint's lineage.
        size: height and width of the model's pictures.
        count: how many.
    """
    if not spec:
        return []
    from flowact.registry import instantiate

    family = instantiate(dict(spec), "characters")
    kind = type(family).__name__
    found = []
    for number in range(count):
        generator = np.random.default_rng(number)
        identity = family.sample_identity(generator)
        truth_TP = family.perform(np.zeros(SAMPLES_PER_FRAME, np.float32), np.array([STATES.index("idle")], np.uint8), generator)
        picture = prepare_picture(family.render(identity, truth_TP)[0], size)[0]
        found.append(AvatarCharacter(f"{kind.lower()}-{number + 1}", f"{kind} {number + 1}", picture))
    return found


def read_picture(data: bytes, size: tuple[int, int], limits: Limits) -> Tensor:
    """A client's picture file, float32 (3, H, W) in [-1, 1]: any size, with or without transparency; its centre is used.

    Raises:
        Refusal: too many bytes or pixels, or no JPEG, PNG or WebP that can be read.
    """
    if len(data) > limits.picture_bytes:
        raise Refusal("picture_too_large", f"a picture of {len(data)} bytes; at most {limits.picture_bytes} are taken")
    too_large = Refusal("picture_too_large", f"a picture has at most {limits.picture_pixels} pixels; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is stricter
            with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
                if image.width * image.height > limits.picture_pixels:
                    raise too_large
                image.load()
                return prepare_picture(image, size)[0]
    except Image.DecompressionBombError:
        raise too_large from None
    except UnidentifiedImageError:
        raise Refusal("invalid_picture", "this is no JPEG, PNG or WebP picture") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Refusal("invalid_picture", f"a broken picture ({str(error)[:200]}); save it again") from None


def sha256_of_picture(picture: Tensor) -> str:
    """For the session log."""
    return hashlib.sha256(picture.numpy().tobytes()).hexdigest()

"""Judges of filmed people, whose truth nobody knows: likeness of faces and opening of mouths, by networks that the user brings.

A judge is a component of kind `judges`. Without one, `flowact evaluate` measures what pixels say by themselves and tells what it left out.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from PIL import Image

from flowact.errors import UserError

Measured = Literal["identity", "lips"]


class Judge(ABC):  # noqa: B024 - a judge may have either method
    """Measures pictures of people.

    Attributes:
        measures: which of its methods it has: "identity" is `embed`, "lips" is `mouth`.
    """

    measures: tuple[Measured, ...] = ()

    @property
    def name(self) -> str:
        """How reports call it."""
        return type(self).__name__

    def check(self) -> None:  # noqa: B027 - most have nothing to check
        """Before any work: packages and weights are there.

        Raises:
            UserError: what is missing and how to get it.
        """

    def embed(self, faces_NHWC: np.ndarray) -> np.ndarray:
        """Features whose cosine is likeness.

        Args:
            faces_NHWC: uint8 RGB, cut to the face where it is known, else whole pictures.

        Returns:
            Float (N, D); a row of NaN where no face was found.
        """
        raise NotImplementedError(f"{self.name} does not measure identity")

    def mouth(self, frames_THWC: np.ndarray) -> np.ndarray:
        """How far the mouth is open in each frame, in any unit.

        Args:
            frames_THWC: uint8 RGB, frames of one clip in order, whole pictures.

        Returns:
            Float (T,); NaN where it can not be told.
        """
        raise NotImplementedError(f"{self.name} does not measure lips")


@final
class Panel(Judge):
    """Several judges as one: each kind of measurement is that of the first judge who has it.

    Args:
        judges: at least one.

    Raises:
        UserError: two of them measure the same.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        self._by_kind: dict[Measured, Judge] = {}
        for judge in judges:
            for kind in judge.measures:
                if kind in self._by_kind:
                    raise UserError(f"{self._by_kind[kind].name} and {judge.name} both measure {kind}; name one judge for it")
                self._by_kind[kind] = judge
        self.judges = tuple(judges)
        self.measures = tuple(self._by_kind)

    @property
    def name(self) -> str:
        """See `Judge.name`: that of who measures identity, where someone does."""
        return self._by_kind["identity"].name if "identity" in self._by_kind else " and ".join(judge.name for judge in self.judges)

    def check(self) -> None:
        """See `Judge.check`."""
        for judge in self.judges:
            judge.check()

    def embed(self, faces_NHWC: np.ndarray) -> np.ndarray:
        """See `Judge.embed`."""
        return self._by_kind["identity"].embed(faces_NHWC)

    def mouth(self, frames_THWC: np.ndarray) -> np.ndarray:
        """See `Judge.mouth`."""
        return self._by_kind["lips"].mouth(frames_THWC)


@final
class OnnxFaceEmbedder(Judge):
    """Identity by a network that embeds faces, such as ArcFace (arXiv 1801.07698), from an ONNX file of yours; needs onnxruntime.

    The file's input is (N, 3, H, W), its first output (N, D). Faces are not aligned by their eyes; frames are cut to the clip's face box alone.

    Args:
        path: the file.
        mean: taken from pixel values of 0 to 255 first.
        scale: then they are divided by this.
        colours: order of the channels.

    Raises:
        UserError: no such file, no onnxruntime, or an input of another form.
    """

    measures = ("identity",)
    _BATCH = 32

    def __init__(self, path: str, mean: float = 127.5, scale: float = 127.5, colours: Literal["rgb", "bgr"] = "rgb") -> None:
        if not Path(path).is_file():
            raise UserError(f"OnnxFaceEmbedder: {path} is not there; give the .onnx file of a network that embeds faces")
        try:
            import onnxruntime
        except ImportError:
            raise UserError("OnnxFaceEmbedder needs onnxruntime: pip install 'flowact[judges]'") from None
        self.path, self.mean, self.scale, self.colours = path, mean, scale, colours
        self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        entry = self._session.get_inputs()[0]
        self._input = entry.name
        if len(entry.shape) != 4 or entry.shape[1] != 3 or not all(isinstance(side, int) for side in entry.shape[2:]):
            raise UserError(f"OnnxFaceEmbedder: the input of {path} is {entry.shape}; a network of faces takes (N, 3, H, W) of fixed size")
        self._size = (int(entry.shape[3]), int(entry.shape[2]))

    def embed(self, faces_NHWC: np.ndarray) -> np.ndarray:
        """See `Judge.embed`."""
        pictures = [np.asarray(Image.fromarray(face).resize(self._size, Image.Resampling.BILINEAR), np.float32) for face in faces_NHWC]
        planes_NCHW = ((np.stack(pictures) - self.mean) / self.scale).transpose(0, 3, 1, 2)
        if self.colours == "bgr":
            planes_NCHW = planes_NCHW[:, ::-1]
        parts = [np.ascontiguousarray(planes_NCHW[i : i + self._BATCH]) for i in range(0, len(planes_NCHW), self._BATCH)]
        return np.concatenate([self._session.run(None, {self._input: part})[0] for part in parts])

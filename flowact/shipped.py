"""Models that come with FlowAct, so that it streams seconds after installation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowact.errors import UserError, did_you_mean

MODELS = Path(__file__).parent / "assets" / "models"


@dataclass(frozen=True)
class ShippedModel:
    """A trained model with a character to show.

    Attributes:
        name: of its folder under `flowact/assets/models`.
        folder: with `checkpoint/` (weights in eight bits, recipe, lineage), `picture.png`, `metrics.json` and the model card `README.md`.
    """

    name: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def picture(self) -> Path:
        """Reference picture of a character that the model was not trained on."""
        return self.folder / "picture.png"


def shipped_models() -> dict[str, ShippedModel]:
    """By name, the default first."""
    folders = sorted(folder for folder in MODELS.iterdir() if (folder / "checkpoint").is_dir()) if MODELS.is_dir() else []
    return {folder.name: ShippedModel(folder.name, folder) for folder in folders}


def named_folder(checkpoint: str) -> Path:
    """The checkpoint of a shipped model by its name; anything else, and a name that a folder here has too, is the path of a folder."""
    models = shipped_models()
    return models[checkpoint].checkpoint if checkpoint in models and not Path(checkpoint).exists() else Path(checkpoint)


def shipped_model(name: str | None = None) -> ShippedModel:
    """The model of a name; None is the default.

    Raises:
        UserError: there is none of that name, or this installation carries none.
    """
    models = shipped_models()
    if not models:
        raise UserError(f"this installation carries no model ({MODELS} is empty); give one with --checkpoint, such as that of `flowact quickstart`")
    if name is not None and name not in models:
        raise UserError(f"no model called {name!r} comes with FlowAct.{did_you_mean(name, models)}")
    return models[name] if name is not None else next(iter(models.values()))

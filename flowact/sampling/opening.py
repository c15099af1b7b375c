"""A session from files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flowact.conditioning import load_picture
from flowact.planning import ConversationPlanner, Planner
from flowact.sampling.pipeline import Pipeline
from flowact.sampling.session import StreamSession
from flowact.shipped import shipped_model


def open_session(
    checkpoint: str | Path | None = None,
    picture: str | Path | None = None,
    *,
    device: str = "cpu",
    seed: int = 0,
    planner: Planner | None = None,
    reaction: Literal["window", "at_once"] = "window",
) -> StreamSession:
    """A session from files.

    Args:
        checkpoint: folder; None is the model that comes with FlowAct.
        picture: of the character; None is the one beside that model.
        device: where to compute.
        seed: of the noise.
        planner: writes prompts from what is spoken and heard; None is `ConversationPlanner` in the words that the character was trained with.
        reaction: how soon speech is seen; see `StreamSession`.

    Raises:
        UserError: damaged checkpoint or unreadable picture.
    """
    pipeline = Pipeline.from_checkpoint(checkpoint or shipped_model().checkpoint, device)
    pixels_3HW = load_picture(picture or shipped_model().picture, pipeline.picture_size)[0]
    planner = planner or ConversationPlanner(captions=pipeline.state_captions or None)
    return StreamSession(pipeline, pixels_3HW, seed=seed, planner=planner, reaction=reaction)

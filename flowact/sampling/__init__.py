"""Window engine, sessions and the pipeline from a checkpoint to video."""

from flowact.sampling.session import StreamSession
from flowact.sampling.window import Guidance, WindowEngine, WindowState, predict_velocity

__all__ = ["Guidance", "StreamSession", "WindowEngine", "WindowState", "predict_velocity"]

"""Window engine, live sessions and the pipeline from a checkpoint to video."""

from flowact.sampling.latency import LatencyBudget
from flowact.sampling.live import LiveStream
from flowact.sampling.opening import open_session
from flowact.sampling.session import MediaChunk, SessionEvent, StreamSession
from flowact.sampling.speech_track import SpeechTrack
from flowact.sampling.stream import ChunkStream
from flowact.sampling.window import Guidance, WindowEngine, WindowState, predict_velocity

__all__ = [
    "ChunkStream",
    "Guidance",
    "LatencyBudget",
    "LiveStream",
    "MediaChunk",
    "SessionEvent",
    "SpeechTrack",
    "StreamSession",
    "WindowEngine",
    "WindowState",
    "open_session",
    "predict_velocity",
]

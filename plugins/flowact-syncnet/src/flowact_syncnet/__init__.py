"""SyncNet (Chung and Zisserman 2016) as a step of `flowact-data build`."""

from __future__ import annotations

from flowact_syncnet.network import Network, load_network
from flowact_syncnet.search import Match, best_match
from flowact_syncnet.sound import mfcc
from flowact_syncnet.step import SyncNet

__all__ = ["Match", "Network", "SyncNet", "best_match", "load_network", "mfcc"]

"""The live avatar: a page, WebSocket and WebRTC in front of live streams. Importing this loads no web framework.

`flowact serve` builds it from a checkpoint; `flowact.serving.app.create_app` is the application for other servers.
"""

from flowact.serving.responders import EchoResponder, NoResponder, RecordedResponder, Responder

__all__ = ["EchoResponder", "NoResponder", "RecordedResponder", "Responder"]

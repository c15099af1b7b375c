"""A FlowAct character for LiveKit agents. `flowact_livekit.avatar` has the generator and is the one file that imports LiveKit."""

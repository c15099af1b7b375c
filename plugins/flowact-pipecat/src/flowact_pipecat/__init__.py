"""A FlowAct character in a Pipecat pipeline. `flowact_pipecat.video` has the service and is the one file that imports Pipecat."""

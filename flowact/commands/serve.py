"""`flowact serve`: a live avatar in the browser."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.commands.arguments import add_lora_argument, add_refinement_arguments, add_stream_arguments, chosen_refinement, chosen_solver
from flowact.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flowact.planning.base import Planner
    from flowact.serving.model import CheckpointModel
    from flowact.serving.responders import Responder

NEEDED = ("fastapi", "uvicorn", "websockets")
INSTALL = "pip install 'flowact[webrtc]' (or 'flowact[serve]' without WebRTC)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to serve, to whom, and within which limits."""
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder of a denoiser stage (default: the model that comes with FlowAct)")
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="IMAGE",
        help="picture of a character (repeatable; default: synthetic ones, where trained on)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to; others than this machine's own need a token (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0 takes any that is free (default: %(default)s)")
    parser.add_argument("--token", metavar="TEXT", help="what clients must know (default: none on this machine, else one is made and printed)")
    parser.add_argument(
        "--max-sessions", type=int, default=1, metavar="N", help="characters that move at the same time; more wait (default: %(default)s)"
    )
    parser.add_argument("--max-waiting", type=int, default=16, metavar="N", help="sessions in the queue; more are refused (default: %(default)s)")
    parser.add_argument("--idle-seconds", type=float, default=900.0, metavar="N", help="of silence that end a session (default: %(default)g)")
    parser.add_argument("--planner", default="ConversationPlanner", metavar="NAME", help="decides what the character does (default: %(default)s)")
    parser.add_argument("--responder", choices=("echo", "recorded", "none"), default="echo", help="what answers a person (default: %(default)s)")
    parser.add_argument("--answer", action="append", default=[], metavar="FILE", help="speech for --responder recorded (repeatable)")
    parser.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: %(default)s)")
    add_lora_argument(parser)
    add_stream_arguments(parser)
    add_refinement_arguments(parser)
    parser.add_argument(
        "--reaction",
        choices=("window", "at_once"),
        default="window",
        help="sound and prompts are seen after a window, as in the paper, or on the next chunk for more work (default: %(default)s)",
    )
    parser.add_argument(
        "--late",
        choices=("hold", "micro_steps"),
        default="hold",
        help="when a chunk is late: hold the picture, or also evaluate less (default: %(default)s)",
    )
    parser.add_argument("--scale", type=int, metavar="K", help="enlarge the picture K times (default: to about 384 pixels)")
    parser.add_argument("--no-watermark", action="store_true", help="leave out the visible note in the picture; the note in the metadata stays")
    parser.add_argument(
        "--session-log", metavar="FILE", help="one JSON line per session (default: flowact/sessions.jsonl among the user's state files)"
    )
    parser.add_argument("--no-session-log", action="store_true", help="note no sessions")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name that the server is reached by (repeatable)")
    parser.add_argument("--allow-origin", action="append", default=[], metavar="ORIGIN", help="a site whose pages may use the server (repeatable)")
    parser.add_argument(
        "--ice-server", action="append", default=[], metavar="ADDRESS", help="for WebRTC across networks, as stun:HOST:PORT (repeatable)"
    )
    parser.add_argument("--certificate", metavar="FILE", help="PEM; browsers give a microphone to other machines over HTTPS only")
    parser.add_argument("--key", metavar="FILE", help="PEM, of the certificate")
    parser.add_argument("--json", action="store_true", help="print the address and token as JSON once the server is ready")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes.

    Raises:
        UserError: the extra is missing, or an option cannot be used.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"flowact serve needs {', '.join(missing)}: {INSTALL}")
    _check(args)
    from flowact.serving.app import create_app
    from flowact.serving.encoding import Enlarger
    from flowact.serving.limits import Limits
    from flowact.serving.manager import SessionManager
    from flowact.serving.provenance import JsonLinesLog, NoSessionLog, default_log_path
    from flowact.serving.server import AvatarServer, bound_socket, needed_token
    from flowact.serving.watermark import NoWatermark, TextWatermark

    limits = Limits(max_sessions=args.max_sessions, max_waiting=args.max_waiting, idle_seconds=args.idle_seconds)
    token = needed_token(args.host, args.token)
    session_log = NoSessionLog() if args.no_session_log else JsonLinesLog(args.session_log or default_log_path(), not args.no_watermark)
    place = bound_socket(args.host, args.port)
    responder = make_responder(args.responder, args.answer)
    model = load_model(args)
    enlarger = Enlarger(*model.picture_size, args.scale)
    watermark = NoWatermark() if args.no_watermark else TextWatermark(enlarger.height, enlarger.width)
    manager = SessionManager(model, responder, limits, enlarger, watermark, session_log)
    hosts = [*args.allow_host, args.host]
    app = create_app(
        manager, token=token, hosts=hosts, origins=args.allow_origin, ice_servers=args.ice_server, responder_name=type(responder).__name__
    )
    server = AvatarServer(app, limits, place, args.certificate, args.key)
    server.when_ready = lambda port: announce(args, model, port, token)
    return serve(server)


def _check(args: argparse.Namespace) -> None:
    """Mistakes that can be seen before anything is loaded."""
    if not 0 <= args.port <= 65_535:
        raise UserError(f"--port {args.port}: a port is 0 to 65535")
    if args.scale is not None and not 1 <= args.scale <= 64:
        raise UserError(f"--scale {args.scale}: 1 to 64 times")
    files = [("--reference", path) for path in args.reference] + [("--answer", path) for path in args.answer]
    files += [(option, path) for option, path in (("--certificate", args.certificate), ("--key", args.key)) if path]
    for option, path in files:
        if not Path(path).is_file():
            raise UserError(f"{option} {path}: there is no such file")
    if bool(args.certificate) != bool(args.key):
        raise UserError("--certificate and --key go together")
    if (args.responder == "recorded") != bool(args.answer):
        raise UserError("--responder recorded and --answer FILE go together")
    for origin in args.allow_origin:
        if "://" not in origin:
            raise UserError(f"--allow-origin {origin}: an origin has a scheme, such as https://{origin}")


def make_responder(name: str, answers: list[str]) -> Responder:
    """The responder of an option."""
    from flowact.conditioning import load_audio
    from flowact.serving.responders import EchoResponder, NoResponder, RecordedResponder

    if name == "recorded":
        return RecordedResponder([load_audio(path) for path in answers])
    return EchoResponder() if name == "echo" else NoResponder()


def load_model(args: argparse.Namespace) -> CheckpointModel:
    """The checkpoint's streams, tried once."""
    from flowact.checkpoints import open_checkpoint
    from flowact.sampling.pipeline import Pipeline, steps_to_stream
    from flowact.serving.model import CheckpointModel, pictured_characters, synthetic_characters
    from flowact.shipped import shipped_model

    shipped = None if args.checkpoint else shipped_model()
    folder = Path(args.checkpoint) if shipped is None else shipped.checkpoint
    checkpoint = open_checkpoint(folder)
    micro_steps, remark = steps_to_stream(folder, args.micro_steps)
    if remark and not args.quiet:
        print(f"flowact: {remark}", file=sys.stderr)
    options = {"refinement": chosen_refinement(args), "solver": chosen_solver(args), "loras": args.lora}
    pipeline = Pipeline.from_checkpoint(folder, args.device, micro_steps, args.guidance, **options)
    size = pipeline.picture_size
    characters = pictured_characters(args.reference, size) or synthetic_characters(checkpoint.lineage.get("character"), size)
    name = folder.resolve().name if shipped is None else shipped.name
    planner = make_planner(args.planner, pipeline.state_captions)
    weights = fingerprint(checkpoint.weights_sha256, args.lora)
    model = CheckpointModel(pipeline, name, weights, characters, planner, args.seed, args.reaction, args.late)
    model.try_out()
    return model


def fingerprint(weights_sha256: str, loras: Sequence[str]) -> str:
    """What videos name their weights by: the checkpoint's hash, or with LoRAs the hash of all of them."""
    if not loras:
        return weights_sha256
    import hashlib

    from flowact.models.lora_files import lora_sha256

    return hashlib.sha256("".join([weights_sha256, *map(lora_sha256, loras)]).encode()).hexdigest()


def make_planner(name: str, captions: Mapping[str, Sequence[str]]) -> Planner:
    """A planner by name, in the words that the character was trained with where it takes them."""
    import inspect

    from flowact.registry import instantiate, load

    takes_captions = "captions" in inspect.signature(load(name, "planners")).parameters
    spec = {"class_path": name, "init_args": {"captions": dict(captions)} if captions and takes_captions else {}}
    planner: Planner = instantiate(spec, "planners")
    return planner


def serve(server: Any) -> int:
    """Run until SIGINT or SIGTERM; both end it in order and give 0."""
    import signal

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn sets its own handler, and raises the signal again once all is done
    try:
        server.serve_until_stopped()
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def announce(args: argparse.Namespace, model: CheckpointModel, port: int, token: str | None) -> None:
    """Say where to go."""
    from flowact.serving.server import address

    where = address(args.host, port, token, bool(args.certificate))
    if args.json:
        print(json.dumps({"address": where, "port": port, "token": token, "model": model.name, "characters": list(model.characters)}), flush=True)
        return
    print(where, flush=True)
    if not args.quiet:
        made = ", with the token of this run" if token and not args.token else ""
        print(f"Open it in a browser{made}; Ctrl-C ends the server.", file=sys.stderr)
        for line in model.budget.lines():
            print(line, file=sys.stderr)

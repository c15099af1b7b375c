"""`flowact-data VERB ...`: one verb, one file. Errors that a user can act on come in one line; only the verb that is asked for is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from flowact.errors import UserError, did_you_mean
from flowact.program import DONE, Program, json_alone, wants_debug

#: verb -> one line of help; its module has the same name and defines add_arguments(parser) and run(args)
VERBS = {
    "synth": "render clips of synthetic people who speak recorded speech, with exact truth",
    "probe": "what a media file holds: streams, frame rate, frames decoded against frames claimed",
    "build": "recordings into a data set, with a reason for every clip that is in or out",
    "init": "look at a folder of recordings and write a commented recipe for `build`",
    "status": "how far a build is, what it keeps, what each step took",
    "explain": "why a clip is in or out: every score, rule and decision",
    "append": "more recordings into a built data set; its shards stay as they are",
    "pack": "clips or videos into shards with indexes, split by identity",
    "encode": "latents, sound and text features of every clip, as columns beside the shards",
    "index": "make indexes for shards that came without",
    "inspect": "a picture of a shard's clips, or of what the model sees of them",
    "report": "a page to look at: what was kept, what was lost to which threshold, clips with sound",
    "lint": "decode everything, check everything, print what to exclude",
    "stats": "clips, hours, identities, share of states",
    "split": "assign people to train and val anew; columns move along",
    "merge": "several datasets into one",
    "edit": "delete or relabel clips, rename a person; columns follow",
    "export": "a copy that Hugging Face datasets or Megatron-Energon reads",
    "doctor": "what is installed for which step, and whether a dataset suits a run",
    "take": "a clip as files: sound, picture and prompts for `flowact generate`",
}
PROGRAM = Program("flowact-data", go_on="what is finished is kept; run the same command again to go on")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"flowact-data: error: {message} (`{self.prog} --help` shows the usage)\n")


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The command line's parser. Only the module of `verb` is imported; without one, nothing is."""
    parser = _Parser(prog="flowact-data", description="Prepare clips for FlowAct: shards, features, checks.", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    for name, line in VERBS.items():
        sub = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", allow_abbrev=False)
        if name == verb:
            module = importlib.import_module(f"data_tools.{name}")
            module.add_arguments(sub)
            group = sub.add_argument_group("common options")
            group.add_argument("--plugin", action="append", metavar="FILE", default=[], help="a Python file whose components can be named too")
            group.add_argument("--trust", action="append", metavar="PREFIX", default=[], help="a dotted prefix that class paths may have")
            group.add_argument("--debug", action="store_true", help="show the traceback of an error")
            sub.set_defaults(run=module.run)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; KEY=VALUE after the others becomes `overrides` of a verb that takes them.

    Raises:
        UserError: no such verb.
        SystemExit: wrong arguments, after a message.
    """
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        raise UserError(f"there is no verb '{verb}'.{did_you_mean(verb, VERBS)}")
    parser = build_parser(verb)
    args, rest = parser.parse_known_args(argv)
    if rest and not (hasattr(args, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: without the program's name; None takes the process's.

    Returns:
        exit code: 0 done, 1 problems found, 2 wrong input, 70 a fault of FlowAct, 130 interrupted, 143 terminated.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    return PROGRAM.run(lambda: _main(argv), debug=wants_debug(argv))


def _main(argv: list[str]) -> int | None:
    args = parse(argv)
    if args.verb is None:
        build_parser().print_help()
        return DONE
    if args.trust or args.plugin:
        from flowact import registry

        registry.trust(*args.trust)
        for file in args.plugin:
            registry.load_plugin_file(file)
    with json_alone(getattr(args, "json", False)):
        return args.run(args)

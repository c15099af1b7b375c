"""`flowact VERB ...`: finds the verb's file, reports errors that a user can act on in one line, and is quick because it imports nothing else."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from flowact.commands.quiet import silence_libraries
from flowact.errors import UserError, did_you_mean

#: verb -> module of `flowact.commands`, one line of help
VERBS = {
    "quickstart": ("quickstart", "render a character, train every stage at toy size, stream a clip and measure it"),
    "fit": ("fit", "train a stage from a recipe"),
    "validate": ("validate", "run a recipe's validation on a checkpoint"),
    "generate": ("generate", "stream a video from sound, a picture and prompts"),
    "serve": ("serve", "talk to a live avatar in the browser"),
    "evaluate": ("evaluate", "measure a checkpoint on shards"),
    "convert": ("convert", "import the weights of another library's model, or export a checkpoint to it"),
    "export": ("export", "write a checkpoint as merged weights, or its LoRA for peft or ComfyUI"),
    "lora": ("lora", "extract a LoRA from two checkpoints"),
    "list": ("listing", "components that recipes can name, by kind"),
    "new": ("new", "write a plugin to start from: a component, its test and its page"),
    "describe": ("describe", "arguments, defaults and a YAML example of a component"),
    "check": ("check", "find every mistake in a recipe without building anything"),
    "plan": ("plan", "what a recipe will cost: parameters, operations, memory, predicted times"),
    "diff": ("diff", "where two recipes or checkpoints differ"),
    "doctor": ("doctor", "whether this machine has what FlowAct needs"),
}
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """argparse that answers in FlowAct's voice."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"flowact: error: {message} (`{self.prog} --help` shows the usage)\n")


def _common() -> _Parser:
    """Options that every verb takes."""
    parser = _Parser(add_help=False)
    group = parser.add_argument_group("common options")
    group.add_argument("--plugin", action="append", metavar="FILE", default=[], help="a Python file whose components can be named too (repeatable)")
    group.add_argument("--trust", action="append", metavar="PREFIX", default=[], help="a dotted prefix that class paths may have (repeatable)")
    group.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks and every message of the libraries")
    group.add_argument("--quiet", action="store_true", default=argparse.SUPPRESS, help="print results and errors only")
    return parser


def build_parsers(verb: str | None = None) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The command line's parser and those of the verbs. Only `verb`'s module is imported; without one, nothing is."""
    parser = _Parser(prog="flowact", description="Train, distil and stream interactive humanoid video models.", allow_abbrev=False)
    parser.add_argument("--debug", action="store_true", help="show tracebacks and every message of the libraries")
    parser.add_argument("--quiet", action="store_true", help="print results and errors only")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
    parsers: dict[str, argparse.ArgumentParser] = {}
    for name, (module_name, line) in VERBS.items():
        sub = parsers[name] = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", parents=[_common()], allow_abbrev=False)
        if name == verb:
            module = importlib.import_module(f"flowact.commands.{module_name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser, parsers


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        raise UserError(f"there is no verb '{verb}'.{did_you_mean(verb, VERBS)}")
    parser, parsers = build_parsers(verb)
    args, rest = parser.parse_known_args(argv)
    if args.verb is None:
        parser.print_help()
        raise SystemExit(0 if not argv else 2)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    wrong = [word for word in rest if word not in overrides]
    if wrong or (overrides and not hasattr(args, "overrides")):
        word = (wrong or overrides)[0]
        known = re.findall(r"(?<!\w)--[a-z-]+", parsers[args.verb].format_help())
        hint = did_you_mean(word.partition("=")[0], known) if word.startswith("-") else ""
        raise UserError(f"flowact {args.verb} does not take '{word}'.{hint}")
    if overrides:
        args.overrides = [*args.overrides, *overrides]  # those written after another option; argparse ends a positional list there
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: without the program's name; None takes the process's.

    Returns:
        exit code: 0 done, 1 the verb's own "no", 2 wrong input, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        args = _parse(argv)
        if not debug:
            silence_libraries()
        if args.trust or args.plugin:
            from flowact import registry

            registry.trust(*args.trust)
            for file in args.plugin:
                registry.load_plugin_file(file)
        code = args.run(args)
        sys.stdout.flush()
        return int(code or 0)
    except UserError as error:
        if debug:
            raise
        print(f"flowact: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        print("flowact: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left (`| head`); say nothing more at exit
        return 0

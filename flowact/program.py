"""What a command line of verbs is: a parser that imports the one verb that is asked for, options that all take, and an end as in `endings`."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from flowact.endings import json_alone, run_program, wants_debug
from flowact.errors import UserError, did_you_mean

#: set by the shell's script when Tab is pressed
ASKED_TO_COMPLETE = "_ARGCOMPLETE"


class _Parser(argparse.ArgumentParser):
    """argparse that answers in FlowAct's voice."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.partition(' ')[0]}: error: {message} (`{self.prog} --help` shows the usage)\n")


class _Version(argparse.Action):
    """Reads the version from packaging metadata when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"{parser.prog} {version('flowact')}")
        parser.exit()


@dataclass(frozen=True)
class Program:
    """A command line of verbs.

    Attributes:
        name: of the program.
        description: one line.
        verbs: verb -> its module, which defines add_arguments(parser) and run(args), and one line of help.
        prepare: called before a verb runs, unless tracebacks are asked for.
        go_on: what to do after an end that came from outside.
    """

    name: str
    description: str
    verbs: Mapping[str, tuple[str, str]]
    prepare: Callable[[], None]
    go_on: str = ""

    def parsers(self, verb: str | None = None) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
        """The command line's parser and those of the verbs. Only `verb`'s module is imported; without one, nothing is."""
        parser = _Parser(prog=self.name, description=self.description, allow_abbrev=False)
        parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
        _talkative(parser, default=False)
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=_Parser)
        parsers: dict[str, argparse.ArgumentParser] = {}
        for name, (module_name, line) in self.verbs.items():
            sub = parsers[name] = verbs.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".", allow_abbrev=False)
            if name == verb:
                module = importlib.import_module(module_name)
                module.add_arguments(sub)
                sub.set_defaults(run=module.run)
                group = sub.add_argument_group("common options")
                words = "a Python file whose components can be named too (repeatable)"
                group.add_argument("--plugin", action="append", metavar="FILE", default=[], help=words)
                words = "a dotted prefix that class paths may have (repeatable)"
                group.add_argument("--trust", action="append", metavar="PREFIX", default=[], help=words)
                _talkative(group, default=argparse.SUPPRESS)
        return parser, parsers

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line; KEY=VALUE anywhere after a verb that takes them becomes `overrides`.

        Raises:
            UserError: no such verb, or an option that it does not take.
            SystemExit: wrong arguments, after a message; or help, after that.
        """
        verb = next((word for word in argv if not word.startswith("-")), None)
        if verb is not None and verb not in self.verbs:
            raise UserError(f"there is no verb '{verb}'.{did_you_mean(verb, self.verbs)}")
        parser, parsers = self.parsers(verb)
        args, rest = parser.parse_known_args(argv)
        if args.verb is None:
            if argv:
                parser.error("the following arguments are required: VERB")
            parser.print_help()
            raise SystemExit(0)
        overrides = [word for word in rest if "=" in word and not word.startswith("-")]
        wrong = [word for word in rest if word not in overrides]
        if wrong or (overrides and not hasattr(args, "overrides")):
            word = (wrong or overrides)[0]
            hint = did_you_mean(word.partition("=")[0], _options(parsers[args.verb])) if word.startswith("-") else ""
            raise UserError(f"{self.name} {args.verb} does not take '{word}'.{hint}")
        if overrides:
            args.overrides = [*args.overrides, *overrides]  # those written after another option; argparse ends a positional list there
        return args

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command line.

        Args:
            argv: without the program's name; None takes the process's.

        Returns:
            exit code, one of `endings`.
        """
        if ASKED_TO_COMPLETE in os.environ:
            from flowact.completion import complete

            complete(self)
        words = list(sys.argv[1:] if argv is None else argv)
        debug = wants_debug(words)
        return run_program(self.name, lambda: self._verb(words, debug), go_on=self.go_on, debug=debug)

    def _verb(self, argv: list[str], debug: bool) -> int | None:
        args = self.parse(argv)
        if not debug:
            self.prepare()
        if args.trust or args.plugin:
            from flowact import registry

            registry.trust(*args.trust)
            for file in args.plugin:
                registry.load_plugin_file(file)
        with json_alone(getattr(args, "json", False)):
            return args.run(args)


def _talkative(parser: argparse._ActionsContainer, default: object) -> None:
    parser.add_argument("--debug", action="store_true", default=default, help="show tracebacks and every message of the libraries")
    parser.add_argument("--quiet", action="store_true", default=default, help="print results and errors only")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options of a verb."""
    yield from re.findall(r"(?<!\w)--[a-z-]+", parser.format_help())

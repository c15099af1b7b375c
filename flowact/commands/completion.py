"""`flowact completion SHELL`: a script after which the shell completes `flowact` and `flowact-data`."""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")
#: where a shell reads it
PLACES = {
    "bash": 'eval "$(flowact completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(flowact completion zsh)"  # in ~/.zshrc, after compinit',
    "fish": "flowact completion fish > ~/.config/fish/completions/flowact.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=SHELLS, help="; ".join(f"{shell}: {place}" for shell, place in PLACES.items()))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from flowact.completion import shell_code

    print(shell_code("flowact", "flowact-data", shell=args.shell), end="")
    return 0

"""`flowact lora extract`: the LoRA that leads from one checkpoint to another."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowact.models.lora_files import ExportReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints, the rank, and where to."""
    parser.add_argument("action", choices=("extract",), help="extract: a LoRA of the difference of two checkpoints, by singular value decomposition")
    parser.add_argument("--base", required=True, metavar="DIR", help="checkpoint that the LoRA will stand on")
    parser.add_argument("--tuned", required=True, metavar="DIR", help="checkpoint that it leads to")
    parser.add_argument("--rank", required=True, type=int, metavar="R", help="largest rank of a layer's change")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must not exist yet")
    formats = ("checkpoint", "peft", "comfyui")
    parser.add_argument("--format", choices=formats, default="checkpoint", help="checkpoint: a small one beside the base (default: %(default)s)")
    parser.add_argument("--others", choices=("keep", "drop"), help="tensors that differ and are not weights of linear layers; default: refuse")
    parser.add_argument("--trained", action="store_true", help="the trained weights of --tuned, not their moving average")
    parser.add_argument("--device", default="cpu", help="where the decompositions run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Extract, write, read back, compare, and only then put it in its place.

    Raises:
        UserError: a place that is taken, networks that are not alike, or other tensors that differ and no word on what to do with them.
    """
    from flowact.checkpoints import open_checkpoint
    from flowact.models.lora_files import check_free, extract_lora

    check_free(args.out)
    base, tuned = open_checkpoint(args.base), open_checkpoint(args.tuned)
    report = extract_lora(
        base, tuned, args.rank, args.out, args.format, args.others or "refuse", not args.trained, args.device, progress_of(args)
    )  # fmt: skip
    print_report(report, args)
    return 0


def progress_of(args: argparse.Namespace) -> Callable[[str], None]:
    """Prints lines of progress, unless the output is for a program or shall be quiet."""
    return (lambda text: None) if args.json or args.quiet else (lambda text: print(text, flush=True))


def print_report(report: ExportReport, args: argparse.Namespace) -> None:
    """The report for a person or a program."""
    if args.json:
        print(json.dumps(asdict(report), indent=1))
        return
    progress_of(args)(f"read back: {report.keys} of {report.keys} keys matched, largest relative difference {report.difference:.1e}")
    if report.errors:
        worst = max(report.errors, key=lambda layer: report.errors[layer])
        print(f"{len(report.errors)} layers changed; the largest relative error is {report.errors[worst]:.2e}, of {worst}")
    print(f"wrote {report.out} ({report.format})")

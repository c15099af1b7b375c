"""`flowact convert`: weights of another library as a checkpoint to train from, and a checkpoint as that library's folder."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.errors import UserError
from flowact.strict_yaml import read_yaml

if TYPE_CHECKING:
    from flowact.models.conversion import ConversionReport

NUMBER_TYPES = ("float32", "bfloat16", "float16")
#: options that one direction has
TO_FLOWACT = ("set",)
TO_LIBRARY = ("drop", "trained", "dtype", "max_shard_size")
_UNITS = {"MB": 10**6, "GB": 10**9}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to convert, into what, and where to."""
    parser.add_argument("source", metavar="FOLDER", help="another library's folder (config.json and safetensors), or a checkpoint folder")
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoint folder or library folder to write; new or empty")
    parser.add_argument("--to", choices=("flowact", "diffusers"), help="default: the other of what FOLDER is")
    parser.add_argument("--format", metavar="NAME", help="a component of `flowact list formats`; default: the one that fits")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    group = parser.add_argument_group("to flowact")
    words = "arguments of our denoiser that config.json does not say, such as audio_width=384"
    group.add_argument("--set", nargs="+", action="extend", metavar="KEY=VALUE", help=words)
    group = parser.add_argument_group("to another library")
    group.add_argument("--drop", nargs="+", action="extend", metavar="NAME", help="trained parts that the library does not know and that may be lost")
    group.add_argument("--trained", action="store_true", default=None, help="the trained weights, not their moving average")
    group.add_argument("--dtype", choices=NUMBER_TYPES, help="number type of the weights; default: as in the checkpoint")
    group.add_argument("--max-shard-size", metavar="SIZE", help="largest file, such as 500MB (default: 5GB)")


def run(args: argparse.Namespace) -> int:
    """Convert and report."""
    out = Path(os.path.abspath(args.out))
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out {args.out} exists; nothing is overwritten, so choose a new folder or remove it")
    settings, shard_bytes = _settings(args.set or ()), parse_size(args.max_shard_size or "5GB")
    report = _convert(args, out, settings, shard_bytes)
    if args.json:
        print(json.dumps(dataclasses.asdict(report), indent=1))
    elif not args.quiet:
        _print(report)
    return 0


def _convert(args: argparse.Namespace, out: Path, settings: dict[str, Any], shard_bytes: int) -> ConversionReport:
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from flowact.models.conversion import export_checkpoint, import_folder, is_checkpoint

    source = Path(args.source)
    exports = is_checkpoint(source)
    target = "diffusers" if exports else "flowact"
    if args.to not in (None, target):
        raise UserError(f"--to {args.to}: {source} is {'' if exports else 'not '}a checkpoint of FlowAct, so it can be converted to {target} only")
    for name in TO_FLOWACT if exports else TO_LIBRARY:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} has no meaning when {source} is converted to {target}; leave it out")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=args.quiet or args.json) as bar:
        if not exports:
            return import_folder(source, out, args.format, settings, bar)
        dtype = getattr(torch, args.dtype) if args.dtype else None
        return export_checkpoint(source, out, args.format, args.drop or (), dtype, shard_bytes, not args.trained, bar)


def _settings(words: Iterable[str]) -> dict[str, Any]:
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set {word}: write KEY=VALUE, such as audio_width=384")
        settings[key] = read_yaml(value, f"--set {key}")[0]
    return settings


def parse_size(text: str) -> int:
    """Bytes of "5GB" or "500MB".

    Raises:
        UserError: not a size above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB)", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UserError(f"--max-shard-size {text}: write a size above 0, such as 500MB or 5GB")
    return size


def _print(report: ConversionReport) -> None:
    print(f"{report.out}: {report.matched} tensors of {report.class_name} ({report.parameters:,} numbers), by {report.format}")
    for name, tensors in report.made_new.items():
        print(f"  made new: {name}, {len(tensors)} tensors")
    for name, tensors in report.dropped.items():
        print(f"  dropped: {name}, {len(tensors)} tensors")
    if report.ignored:
        print(f"  ignored: {', '.join(report.ignored)}")
    if report.direction == "import":
        print(f"  to train from it, set init_from: {report.out}")

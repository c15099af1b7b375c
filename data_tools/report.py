"""`flowact-data report DATASET`: one page that shows what was kept, what was lost to which threshold, and how the clips look and sound."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_tools.reporting.page import PAGE_FILE, write_report
from flowact.errors import UserError

REPORT_FOLDER = "report"
#: how a page of ours is known
MARKER = 'content="flowact-data report"'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data report`."""
    parser.add_argument("dataset", type=Path, help="folder of a dataset; one that was built shows its decisions too")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for index.html and its pictures (default: report in the dataset's folder)")
    parser.add_argument("--examples", type=int, default=60, metavar="N", help="pictures of clips near thresholds, at most (default: %(default)s)")
    parser.add_argument("--films", type=int, default=12, metavar="N", help="random clips with sound, at most (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    if args.examples < 0 or args.films < 0:
        raise UserError(f"--examples {args.examples} --films {args.films}: both must be at least 0")
    if not args.dataset.is_dir():
        raise UserError(f"{args.dataset} is no folder; give the folder of a dataset")
    out = args.out or args.dataset / REPORT_FOLDER
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    page = out / PAGE_FILE
    if page.is_file() and MARKER not in page.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise UserError(f"{page} is another page; give a folder of its own as --out")
    written = write_report(args.dataset, out, args.examples, args.films)
    if args.json:
        counts = {"recordings": written.recordings, "clips": written.clips, "kept": written.kept, "seconds": written.seconds}
        print(json.dumps({"path": str(written.path), **counts, "findings": written.findings}, indent=1))
        return 0
    print(f"{written.path}: {written.kept} of {written.clips} clips, {written.seconds / 3600:.2f} hours")
    for text in written.findings:
        print(f"note: {text}")
    return 0

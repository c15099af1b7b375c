"""A page of the documentation as a reader follows it: every block copied into a shell in turn, in an empty folder, with FlowAct from its wheel.

`python tests/walks/walking.py docs/character.md FOLDER` follows a page with the FlowAct that is installed, and says how long each block took.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("flowact", "data_tools", "recipes")
#: a block, with the line above it that may say why nobody walks it
BLOCK = re.compile(r"(?:^<!-- not walked: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "shell", "console")
FILE_NAME = re.compile(r"# ([\w.-]+\.(?:yaml|py))$")
#: extras whose packages are large and are lent; what is small is installed as the page says
LENT_EXTRAS = ("data", "hf", "lora", "speech", "text", "webrtc")


@dataclass(frozen=True)
class Block:
    """What a reader copies.

    Attributes:
        place: page and line.
        file: what it is saved as; None for commands.
        reason: why it is not walked, or "".
    """

    place: str
    text: str
    file: str | None
    reason: str


def blocks(page: str) -> list[Block]:
    """Commands and files of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        named = FILE_NAME.match(match["text"].partition("\n")[0])
        if named or match["language"] in SHELLS:
            found.append(Block(f"{page}:{line}", match["text"], named[1] if named else None, match["reason"] or ""))
    return found


def script(pages: Sequence[str]) -> str:
    """Bash that does what the pages say, says where it is, and stops at the first failure."""
    lines = ["set -euo pipefail"]
    for block in (block for page in pages for block in blocks(page)):
        if block.reason:
            lines.append(f"echo '=== {block.place} not walked: {block.reason}'")
        elif block.file:
            lines += [f"echo '=== {block.place} {block.file}'", f"cat > {block.file} <<'END OF THE BLOCK'", block.text + "END OF THE BLOCK"]
        else:
            lines += [f"echo '=== {block.place}'", block.text]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        folder: of the environment.
        wheels: where pip finds the wheel of FlowAct, as on a package index.
    """

    folder: Path
    wheels: Path

    @property
    def variables(self) -> dict[str, str]:
        """Of a user who has activated the environment and nothing else."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "OPENBLAS_")) or name in ("LANG", "TMPDIR")}
        links = f"{self.wheels} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        path = f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin"
        ours = {"PATH": path, "HOME": str(home), "VIRTUAL_ENV": str(self.folder), "PIP_FIND_LINKS": links, "PIP_QUIET": "1"}
        return {**kept, **ours, "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1", "TERM": "dumb"}

    def run(self, command: Sequence[str], folder: Path, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
        """A command, with both streams in `stdout`; `out` of its files."""
        return subprocess.run(
            command,
            cwd=folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def walk(self, pages: Sequence[str], folder: Path, timeout: float) -> str:
        """Follow pages; what was shown. Fails with the block at which it stopped."""
        (self.folder / "walk.sh").write_text(script(pages))
        done = self.run(["bash", str(self.folder / "walk.sh")], folder, timeout)
        where = [line for line in done.stdout.splitlines() if line.startswith("=== ")]
        assert done.returncode == 0, f"stopped at {where[-1:]} with {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, made in a copy of what a release holds."""
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / file, source)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder / 'wheels')!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


def make_environment(folder: Path, wheels: Path, *, lend: bool) -> Environment:
    """A new environment with pip and nothing else; `lend` lets it see the heavy packages of the interpreter that runs this, but not FlowAct."""
    venv.create(folder, with_pip=True, symlinks=True)
    environment = Environment(folder, wheels)
    if lend:
        shelf = folder / "lent"
        shelf.mkdir()
        for entry in lent():
            if not (shelf / entry.name).exists():
                (shelf / entry.name).symlink_to(entry)
        (site,) = (folder / "lib").glob("python3*/site-packages")
        (site / "lent.pth").write_text(f"{shelf}\n")
    return environment


def lent() -> Iterator[Path]:
    """Top-level files and folders of the packages that FlowAct requires."""
    for distribution in required("flowact", LENT_EXTRAS).values():
        tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
        yield from (Path(str(distribution.locate_file(top))) for top in sorted(tops) if not top.endswith(".pth"))


def required(name: str, extras: Sequence[str] = ()) -> dict[str, importlib.metadata.Distribution]:
    """What is installed of what a distribution requires, of all that requires, and so on; without itself."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(name, tuple(extras))]
    seen = set()
    while waiting:
        asked = waiting.pop()
        if asked in seen:
            continue
        seen.add(asked)
        try:
            distribution = importlib.metadata.distribution(asked[0])
        except importlib.metadata.PackageNotFoundError:
            continue
        key = re.sub(r"[-_.]+", "-", asked[0]).lower()
        if key != name:
            found[key] = distribution
        for requirement in map(Requirement, distribution.requires or ()):
            if any(requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *asked[1])):
                waiting.append((requirement.name, tuple(requirement.extras)))
    return found


def timed(page: str, folder: Path) -> dict[str, float]:
    """Follow a page with the FlowAct of this environment; block -> seconds, in order.

    Raises:
        subprocess.CalledProcessError: a command failed; what it said was shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun: list[tuple[str, float]] = []
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(["bash", "-c", script([page])], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as walk:
        for line in walk.stdout or ():
            if line.startswith("=== "):
                begun.append((line.removeprefix("=== ").strip(), time.perf_counter()))
            print(line, end="", flush=True)
    if walk.returncode:
        raise subprocess.CalledProcessError(walk.returncode, begun[-1][0] if begun else page)
    ends = [*(start for _, start in begun[1:]), time.perf_counter()]
    return {block: round(end - start, 1) for (block, start), end in zip(begun, ends, strict=True)}


if __name__ == "__main__":
    seconds = timed(sys.argv[1], Path(sys.argv[2]))
    print(*(f"{spent:7.1f} s  {block}" for block, spent in seconds.items()), f"{sum(seconds.values()):7.1f} s  in all", sep="\n")

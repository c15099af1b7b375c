"""The documentation as data: pages, their code blocks, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "plugins").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
SHELLS = ("sh", "bash", "shell", "console")
#: first line of a block that stands for a file
FILE_NAME = re.compile(r"# ([\w-]+\.(?:yaml|py))$")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:    [^\n]*\n)+", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PROGRAMS = ("flowact", "flowact-data")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        language: of the fence; "sh" for an indented block.
    """

    page: Path
    language: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The name of the file that the block stands for."""
        found = FILE_NAME.match(self.text.partition("\n")[0])
        return found[1] if found else None


@dataclass(frozen=True)
class Command:
    """One command of a page, as words."""

    page: Path
    words: tuple[str, ...]

    @property
    def program(self) -> str:
        return Path(self.words[0]).name

    @property
    def arguments(self) -> list[str]:
        return list(self.words[1:])

    def __str__(self) -> str:
        return f"{name(self.page)}: {shlex.join(self.words)}"


def name(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page in order, then its indented blocks."""
    text = page.read_text(encoding="utf-8")
    fenced = [Block(page, language, body) for language, body in FENCED.findall(text)]
    rest = FENCED.sub("", text)
    return fenced + [Block(page, "sh", re.sub(r"^    ", "", body, flags=re.MULTILINE)) for body in INDENTED.findall(rest)]


def commands_of(text: str, page: Path) -> list[Command]:
    """The commands of shell text: continued lines joined, comments dropped, `&&`, `;` and `|` split."""
    lexer = shlex.shlex(text.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    found: list[Command] = []
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word and set(word) <= set(";&|"):
            words = words[: words.index(">")] if ">" in words else words
            if words:
                found.append(Command(page, tuple(words)))
            words = []
        else:
            words.append(word)
    return found


def commands(page: Path) -> list[Command]:
    """Every command in the shell blocks of a page."""
    return [command for block in blocks(page) if block.language in SHELLS for command in commands_of(block.text, page)]


def new_plugins(page: Path) -> list[Command]:
    """Commands of a page that write a distribution into the folder of its name."""
    return [command for command in commands(page) if command.words[:3] == ("flowact", "new", "plugin")]


def mentions(page: Path) -> list[Command]:
    """Inline code that begins with a program of ours and names a verb."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [Command(page, tuple(code.split())) for code in INLINE.findall(text) if code.split()[0] in PROGRAMS and len(code.split()) > 1]


def files(page: Path) -> dict[str, str]:
    """Files that a page shows: name -> text."""
    return {block.file_name: block.text for block in blocks(page) if block.file_name}

"""What `tox -e docs` builds: every page is listed, every anchor is a heading, every picture says what it shows, job scripts are shell."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from pages import FENCED, PAGES, ROOT, SHELLS, blocks, commands_of, name

from flowact import cli, registry

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
JOBS = [
    block
    for page in PAGES
    for block in blocks(page)
    if block.language == "text" and re.search(r"^(#!|srun|sbatch|torchrun)", block.text, re.MULTILINE)
]


class AnyTag(yaml.SafeLoader):
    """YAML whose tags are not understood."""


AnyTag.add_multi_constructor("", lambda loader, suffix, node: str(suffix))
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), AnyTag)


def listed(nav: object) -> Iterator[str]:
    """Every page that a navigation names."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        yield from listed(list(nav.values()))
    elif isinstance(nav, list):
        for entry in nav:
            yield from listed(entry)


def plain(page) -> str:
    """A page without its blocks and inline code."""
    return re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text(encoding="utf-8")))


def anchors(page) -> set[str]:
    """Headings as addresses, as Python-Markdown and GitHub both write them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {re.sub(r"\s+", "-", slug.strip()) for slug in slugs}


def test_every_page_is_listed_in_mkdocs_yml_once():
    pages = [entry for entry in listed(SITE["nav"]) if not re.fullmatch(r"<\w+>|changelog.md|contributing.md|benchmarks.md", entry)]
    here = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"reference/index.md"}
    assert len(pages) == len(set(pages))
    assert here - set(pages) == set(), "add them to `nav` in mkdocs.yml"
    assert set(pages) - here == set(), "mkdocs.yml lists pages that are not there"


def test_dead_links_and_anchors_fail_the_build():
    assert set(SITE["validation"]["links"].values()) == set(SITE["validation"]["nav"].values()) == {"warn"}
    tox = (ROOT / "tox.ini").read_text()
    assert "mkdocs build --strict" in tox
    assert "docs" in re.search(r"^env_list = (.*)$", tox, re.MULTILINE)[1].split(", ")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_and_pictures(page):
    for picture, text, address in LINK.findall(plain(page)):
        target, _, anchor = address.partition("#")
        if picture:
            assert len(text) > 8, f"{address} says nothing to those who do not see it"
        if anchor and not re.match("[a-z]+:", target):
            assert anchor in anchors(page.parent / target if target else page), address


@pytest.mark.parametrize(
    ("home", "here", "link", "moved"),
    [
        ("docs/base_models.md", "base_models.md", "[x](../plugins/flowact-wan/README.md#limits)", "[x](shipped/flowact-wan.md#limits)"),
        ("docs/stages/index.md", "stages/index.md", "[x](../data.md)", "[x](../data.md)"),
        ("plugins/README.md", "shipped/index.md", "[x](flowact-wan)", "[x](flowact-wan.md)"),
        ("plugins/flowact-wan/README.md", "shipped/flowact-wan.md", "[x](../../docs/data.md#columns)", "[x](../data.md#columns)"),
        ("CONTRIBUTING.md", "contributing.md", "[x](docs/architecture.md)", "[x](architecture.md)"),
        ("docs/stages/index.md", "stages/index.md", "[data.md](../data.md)", "[Data](../data.md)"),
        ("docs/index.md", "index.md", "[the notice](../NOTICE)", "the notice"),
        ("docs/index.md", "index.md", "[x](nothing.md)", "[x](nothing.md)"),
        ("docs/index.md", "index.md", "[x](https://example.org/a.md)", "[x](https://example.org/a.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks, home, here, link, moved):
    assert hooks.moved(hooks.LINK.fullmatch(link), home, here, hooks.outside()) == moved


def test_there_are_job_scripts():
    assert {"#!/bin/bash", "torchrun"} <= {block.text.split()[0] for block in JOBS}


@pytest.mark.parametrize("block", JOBS, ids=lambda block: name(block.page))
def test_job_scripts_are_shell_and_their_commands_ours(block):
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [command.words for command in commands_of(re.sub(r"^#.*$", "", block.text, flags=re.MULTILINE), block.page)]
    ours = [words[words.index("flowact") + 1 :] for words in found if "flowact" in words]
    assert ours
    for arguments in ours:
        assert cli.PROGRAM.parse([word for word in arguments if "$" not in word]).config


def test_shell_blocks_are_shell():
    shown = [block for page in PAGES for block in blocks(page) if block.language in SHELLS]
    assert len(shown) > 50
    text = "\n".join(f"function block{number} {{\n{block.text}\n:\n}}" for number, block in enumerate(shown))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def hooks():
    """docs/hooks.py."""
    spec = importlib.util.spec_from_file_location("hooks_of_the_site", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_component(hooks):
    pages = hooks.reference()
    ours = [component for component in registry.components() if component.distribution == "flowact"]
    assert ours
    assert [c.name for c in ours if f"## {c.name} {{" not in pages[f"reference/components_{c.kind}.md"]] == []


def test_the_architecture_names_every_room_and_verb():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page[page.index("## The rooms") : page.index("## Contracts")]
    here = [path for path in (ROOT / "flowact").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert len(here) > 20
    named = {path.name for path in here if not path.name.startswith("__")}
    assert {name for name in named if not re.search(rf"[`/]{re.escape(name)}[`/]", rooms)} == set()
    (verbs,) = re.findall(r"one verb, one file: (.*?) \|", rooms)
    assert set(verbs.split(", ")) == set(cli.VERBS)

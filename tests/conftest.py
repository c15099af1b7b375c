"""Fixtures for every room: plugin distributions that exist for one test."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from flowact import registry

Install = Callable[..., Path]
#: what a training in this process leaves in the environment; a later training in another process would take it for its own launch
LAUNCH_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE", "PL_GLOBAL_SEED")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; programs that tests start would be deaf to Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def loggers() -> None:
    """Every test finds loggers as they are in a program that uses FlowAct as a library, whatever commands ran before in this process."""
    logging.getLogger("flowact").setLevel(logging.NOTSET)
    logging.getLogger("flowact").handlers.clear()
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # as its import leaves it; `--quiet` raises it


@pytest.fixture(autouse=True)
def launch_variables() -> Iterator[None]:
    """Every test finds the environment of the command line."""
    before = {name: os.environ.get(name) for name in LAUNCH_VARIABLES}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def run_script() -> Callable[..., None]:
    """`run_script(path, *arguments, timeout=seconds)` runs a training script as from a fresh command line; it must succeed."""

    def run(script: Path, *arguments: object, timeout: float) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, str(script), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, {kind: {name: target}}, {file: text})` lays out an installed package as pip would; gone after the test."""
    before = set(sys.modules)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def add(distribution: str, points: Mapping[str, Mapping[str, str]], files: Mapping[str, str] | None = None, version: str = "1.0") -> Path:
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        sections = [f"[flowact.{kind}]\n" + "".join(f"{name} = {target}\n" for name, target in group.items()) for kind, group in points.items()]
        (info / "entry_points.txt").write_text("\n".join(sections))
        for name, text in (files or {}).items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        registry.refresh()
        return site

    registry.refresh()
    yield add
    registry.refresh()
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def toy() -> Iterator[Path]:
    """The plugin file of `tests/commands/toy`, loaded; its folder."""
    folder = Path(__file__).parent / "commands" / "toy"
    registry.refresh()
    registry.load_plugin_file(folder / "toy.py")
    yield folder
    registry.refresh()


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `canary_module` with a class `Thing`; the returned file exists once anything has imported it."""
    (tmp_path / "canary_module.py").write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nclass Thing: ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "canary_module.ran"
    sys.modules.pop("canary_module", None)

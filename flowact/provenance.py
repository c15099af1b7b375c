"""What ran: versions, command line and git state, as plain values for run folders and checkpoints. Names no host; never fails, never waits long."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import flowact
from flowact import registry
from flowact.strict_yaml import to_yaml

#: stated in every record
ALWAYS = ("flowact", "torch", "lightning", "deepspeed", "numpy", "safetensors", "torchdata", "webdataset")
#: stated where the process has imported them: module and distribution have one name
IF_USED = ("ctranslate2", "diffusers", "peft", "tokenizers", "transformers", "triton")
RECIPE_FILE = "recipe.yaml"
LAUNCHES_FILE = "provenance.json"
GIT_SECONDS = 5.0

_OWN_DISTRIBUTION = "flowact"


def gather(recipe: Mapping[str, Any], command: Sequence[str] | None = None) -> dict[str, Any]:
    """What a run of a recipe consists of besides the recipe.

    Args:
        recipe: resolved, class paths in full.
        command: words of the command line; None takes the process's.

    Returns:
        versions: "python" and distributions, those of the recipe's plugins among them; a plugin file has "sha256:..." for a version.
        git: "working_folder", "flowact" and plugins that are installed from a checkout -> commit, dirty, diff_sha256; only what is in git.
        command: the words as typed, the program without its folder.
    """
    return {"versions": versions(recipe), "git": git_states(recipe), "command": _command(command)}


def _command(words: Sequence[str] | None) -> list[str]:
    first, *rest = words if words is not None else (sys.argv or [""])
    name = Path(first).name
    return [Path(first).parent.name if name == "__main__.py" else name, *rest]


# --- versions ---------------------------------------------------------------------------------------------------------------------------------------


def versions(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Python and distributions that a run depends on, by name; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in (*ALWAYS, *(name for name in IF_USED if name in sys.modules)):
        version = _version(name)
        if version:
            found[name] = version
    for name, package in sorted(_plugins(recipe).items()):
        file = Path(name)
        if file.suffix == ".py":  # registered by --plugin
            found[file.name] = f"sha256:{_sha256(file)[:16]}"
        else:
            found[name] = _version(name) or _version(package)
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def _plugins(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Distributions (or plugin files) beside our own that a recipe's classes come from, each with its top-level module."""
    owners = {c.class_path: c.distribution for c in registry.components()}
    packages = {c.module.partition(".")[0]: c.distribution for c in registry.components()}
    found: dict[str, str] = {}
    for path in _class_paths(recipe):
        package = path.partition(".")[0]
        name = owners.get(path) or packages.get(package) or _distribution_of(package)
        if name and name not in ALWAYS:
            found[name] = package
    return found


def _class_paths(node: Any) -> list[str]:
    if isinstance(node, Mapping):
        own = [node["class_path"]] if isinstance(node.get("class_path"), str) else []
        return own + [path for value in node.values() for path in _class_paths(value)]
    if isinstance(node, (list, tuple)):
        return [path for value in node for path in _class_paths(value)]
    return []


def _distribution_of(package: str) -> str:
    """The distribution of a module that a user trusts; "" for one that is only a folder on the path."""
    if package in ALWAYS:
        return package
    return next(iter(importlib.metadata.packages_distributions().get(package, ())), "")


# --- git --------------------------------------------------------------------------------------------------------------------------------------------


def git_states(recipe: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """State of the working folder, of flowact and of the recipe's plugins where each is a checkout; what is not in git is left out."""
    folders = {"working_folder": Path.cwd(), _OWN_DISTRIBUTION: _checkout(_OWN_DISTRIBUTION)}
    folders |= {Path(name).name: _checkout(package) for name, package in sorted(_plugins(recipe).items())}
    states = {name: git_state(str(folder)) for name, folder in folders.items() if folder is not None}
    return {name: dict(state) for name, state in states.items() if state}


def _checkout(package: str) -> Path | None:
    """Folder of a package that is used from where it is written, not from where pip copied it to."""
    file = getattr(sys.modules.get(package), "__file__", None) or (flowact.__file__ if package == _OWN_DISTRIBUTION else None)
    if file is None or {"site-packages", "dist-packages"} & set(Path(file).parts):
        return None
    return Path(file).resolve().parent


@cache
def git_state(folder: str) -> Mapping[str, Any]:
    """Commit of a folder's repository and what differs from it, as it was when this process first asked.

    Returns:
        commit; dirty: whether tracked files differ, None where git takes too long; diff_sha256: of the difference, None if there is none.
        Empty outside git, without git, or before the first commit.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    difference = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--full-index", "--binary")
    if difference is None:
        return {"commit": commit.decode().strip(), "dirty": None, "diff_sha256": None}
    digest = hashlib.sha256(difference).hexdigest() if difference else None
    return {"commit": commit.decode().strip(), "dirty": bool(difference), "diff_sha256": digest}


def _git(folder: str, *words: str) -> bytes | None:
    """What git prints; None when it fails. A repository's own settings may not start programs."""
    settings = ("-c", "core.fsmonitor=false", "-c", "core.quotepath=true")
    environment = {name: value for name, value in os.environ.items() if name not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["git", *settings, "-C", folder, *words], capture_output=True, env=environment, timeout=GIT_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


# --- the run folder ---------------------------------------------------------------------------------------------------------------------------------


def record_launch(folder: str | Path, recipe: Mapping[str, Any], command: Sequence[str] | None = None) -> dict[str, Any]:
    """Write `recipe.yaml` and add to the list of launches in `provenance.json`, newest last: a run that is resumed has several.

    A recipe that differs from the one there is kept beside it as `recipe-HASH.yaml`; every launch says which file is its own.

    Args:
        folder: of the run's logs; created.
        recipe: resolved.
        command: see `gather`.

    Returns:
        the launch: started (UTC), recipe (file name) and what `gather` returns.

    Raises:
        OSError: the disk refuses.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    launches = read_launches(folder)
    text = to_yaml(recipe)
    file = folder / RECIPE_FILE
    if file.is_file() and (before := file.read_bytes()) != text.encode():
        kept = f"recipe-{hashlib.sha256(before).hexdigest()[:8]}.yaml"
        (folder / kept).write_bytes(before)
        launches = [launch | {"recipe": kept} if launch.get("recipe") == RECIPE_FILE else launch for launch in launches]
    _replace(file, text)
    launch = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "recipe": RECIPE_FILE, **gather(recipe, command)}
    _replace(folder / LAUNCHES_FILE, json.dumps([*launches, launch], indent=2) + "\n")
    return launch


def read_launches(folder: str | Path) -> list[dict[str, Any]]:
    """Launches of a run, oldest first; empty when the folder has no readable list."""
    try:
        found = json.loads((Path(folder) / LAUNCHES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [launch for launch in found if isinstance(launch, dict)] if isinstance(found, list) else []


def _replace(file: Path, text: str) -> None:
    unfinished = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)

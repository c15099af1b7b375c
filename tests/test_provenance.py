from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from flowact import provenance, registry
from flowact.provenance import gather, git_state, read_launches, record_launch, versions
from flowact.recipe import load_recipe
from flowact.strict_yaml import read_yaml_file

BANK = {"model": {"init_args": {"memory": {"class_path": "bank_plugin.DeepBank"}}}}


@pytest.fixture(autouse=True)
def forget():
    git_state.cache_clear()
    yield
    git_state.cache_clear()


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", *settings, "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a.txt").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def state(folder: Path):
    git_state.cache_clear()
    return dict(git_state(str(folder)))


# --- versions


def test_versions_are_those_of_the_installed_distributions():
    found = versions({})
    assert {name: found[name] for name in ("flowact", "torch", "lightning", "deepspeed")} == {
        name: version(name) for name in ("flowact", "torch", "lightning", "deepspeed")
    }
    assert not set(found) - {"python", *provenance.ALWAYS, *provenance.IF_USED}


def test_a_plugin_that_the_recipe_uses_is_stated_and_one_that_it_does_not_use_is_not(install):
    install("bank-plugin", {"memory": {"DeepBank": "bank_plugin:DeepBank"}}, version="3.1")
    assert versions(BANK)["bank-plugin"] == "3.1"
    assert versions({"a": [BANK]})["bank-plugin"] == "3.1"
    assert "bank-plugin" not in versions({"model": {"class_path": "flowact.stages.SelfForcing"}})


def test_a_trusted_class_is_stated_by_the_distribution_that_holds_it():
    assert versions({"model": {"class_path": "omegaconf.OmegaConf"}})["omegaconf"] == version("omegaconf")
    assert set(versions({"model": {"class_path": "no_such_module.Thing"}})) == set(versions({}))


def test_a_plugin_file_is_stated_by_its_contents(toy, tmp_path):
    recipe = load_recipe(toy / "toy.yaml").config
    found = versions(recipe)["toy.py"]
    assert found.startswith("sha256:")
    registry.refresh()
    changed = tmp_path / "toy.py"
    changed.write_text((toy / "toy.py").read_text() + "\n")
    registry.load_plugin_file(changed)
    assert versions(recipe)["toy.py"] not in ("", found)


# --- git


def test_a_clean_and_a_changed_checkout_differ_in_the_hash_of_the_difference(repository):
    clean = state(repository)
    assert clean == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": False, "diff_sha256": None}
    (repository / "a.txt").write_text("two\n")
    first = state(repository)
    assert (first["commit"], first["dirty"]) == (clean["commit"], True)
    assert state(repository) == first
    (repository / "a.txt").write_text("three\n")
    second = state(repository)
    assert second["dirty"]
    assert second["diff_sha256"] != first["diff_sha256"]
    git(repository, "add", ".")
    assert state(repository) == second  # staged or not, the code is the same


def test_no_git_no_repository_no_commit_and_no_time_say_nothing_and_fail_nothing(tmp_path, repository, monkeypatch):
    assert state(tmp_path / "nowhere") == {}
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert state(tmp_path / "plain") == {}
    git(tmp_path / "plain", "init", "-q")
    assert state(tmp_path / "plain") == {}
    real = provenance._git
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: None if words[0] == "diff" else real(folder, *words))
    assert state(repository) == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": None, "diff_sha256": None}
    monkeypatch.setattr(provenance, "_git", real)
    monkeypatch.setenv("PATH", "")
    assert state(repository) == {}


def test_a_repository_cannot_make_us_run_a_program(repository, tmp_path):
    ran = tmp_path / "ran"
    (repository / "run.sh").write_text(f"#!/bin/sh\ntouch {ran}\n")
    (repository / "run.sh").chmod(0o755)
    git(repository, "config", "diff.external", "./run.sh")
    git(repository, "config", "core.fsmonitor", "./run.sh")
    (repository / "a.txt").write_text("two\n")
    assert state(repository)["dirty"]
    assert not ran.exists()


def test_the_working_folder_and_a_checkout_of_a_plugin_are_told_apart(repository, tmp_path, install, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    site = install("bank-plugin", {"memory": {"DeepBank": "bank_plugin:DeepBank"}}, {"bank_plugin.py": "class DeepBank: ..."})
    git(site, "init", "-q")
    git(site, "add", ".")
    git(site, "commit", "-qm", "plugin")
    found = provenance.git_states(BANK)
    assert found["working_folder"]["commit"] == git(repository, "rev-parse", "HEAD")
    assert "bank-plugin" not in found  # never imported: nothing of it ran
    __import__("bank_plugin")
    assert provenance.git_states(BANK)["bank-plugin"]["commit"] == git(site, "rev-parse", "HEAD")


# --- the record


def test_the_record_is_plain_and_names_neither_host_nor_user(monkeypatch, repository):
    monkeypatch.setattr("socket.gethostname", lambda: pytest.fail("asked for the host's name"))
    monkeypatch.chdir(repository)
    record = gather({}, ["/home/someone/venv/bin/flowact", "fit", "--config", "a.yaml"])
    assert json.loads(json.dumps(record)) == record
    assert record["command"] == ["flowact", "fit", "--config", "a.yaml"]
    assert gather({}, ["/x/flowact/__main__.py", "fit"])["command"] == ["flowact", "fit"]
    assert str(repository) not in json.dumps(record)
    assert "someone" not in json.dumps(record)


def test_launches_of_a_run_are_added_and_each_keeps_its_recipe(tmp_path):
    folder = tmp_path / "logs" / "run"
    first = record_launch(folder, {"seed": 1, "a": "${x}"}, ["flowact", "fit"])
    assert read_launches(folder) == [first]
    record_launch(folder, {"seed": 1, "a": "${x}"}, ["flowact", "fit", "--resume", "x"])
    record_launch(folder, {"seed": 2}, ["flowact", "fit"])
    launches = read_launches(folder)
    assert [launch["command"][2:] for launch in launches] == [[], ["--resume", "x"], []]
    recipes = [read_yaml_file(folder / launch["recipe"])[0] for launch in launches]
    assert [recipe["seed"] for recipe in recipes] == [1, 1, 2]
    assert launches[2]["recipe"] == "recipe.yaml"
    assert sorted(path.name for path in folder.iterdir()) == ["provenance.json", launches[0]["recipe"], "recipe.yaml"]


def test_a_list_of_launches_that_was_broken_is_begun_anew(tmp_path):
    (tmp_path / "provenance.json").write_text("{")
    assert read_launches(tmp_path) == []
    record_launch(tmp_path, {})
    assert len(read_launches(tmp_path)) == 1

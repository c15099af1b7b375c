from __future__ import annotations

import importlib.metadata
import json
import shutil

import pytest

from flowact import cli
from flowact.commands import doctor

PLUGINS = doctor._plugins


@pytest.fixture(autouse=True)
def only_good_plugins(monkeypatch):
    monkeypatch.setattr(doctor, "_plugins", list)


def status(findings, name):
    return next(finding for finding in findings if finding.name == name)


def test_what_this_machine_has_is_found():
    found = doctor.findings()
    assert status(found, "torch").value == importlib.metadata.version("torch")
    assert int(status(found, "cores").value) >= 1
    assert status(found, "python").status == "ok"


@pytest.mark.parametrize(("native", "expected"), [(True, "ok"), (False, "optional")])
def test_a_cpu_without_bfloat16_is_named_and_is_no_obstacle(native, expected, monkeypatch):
    monkeypatch.setattr("flowact.machine.computes_bfloat16", lambda device="cpu": native)
    assert status(doctor.findings(), "bfloat16").status == expected


def test_a_missing_compiler_is_no_obstacle_and_the_fix_is_given(monkeypatch, capsys):
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "g++" else which(name))
    for name in ("room", "media", "hub", "ports", "gpus"):
        monkeypatch.setattr(doctor, name, list)  # whatever else this machine lacks
    assert cli.main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    (compiler,) = [finding for finding in record["findings"] if finding["name"] == "g++"]
    assert (record["ok"], compiler["status"], compiler["fix"]) == (True, "optional", "apt-get install g++")


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("surely-not-there>=2", ("surely-not-there", "missing", "pip install 'surely-not-there>=2'")),
        ("surely-not-there>=2; extra == 'hf'", ("surely-not-there [hf]", "optional", "pip install 'flowact[hf]'")),
        ("numpy>=999", ("numpy", "missing", "pip install 'numpy>=999'")),
        ("numpy", ("numpy", "ok", "")),
    ],
)
def test_requirements_are_judged_by_metadata(monkeypatch, requirement, expected):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [requirement, "never; sys_platform == 'os2'"])
    (found,) = doctor._packages()
    assert (found.name, found.status, found.fix) == expected


def test_malicious_lightning_is_called_so(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["lightning>=2"])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.6.3")
    (found,) = doctor._packages()
    assert found.status == "missing"
    assert "malicious" in found.value


def test_healthy_machine_is_zero_and_optional_things_do_not_count(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "findings", lambda: [doctor.Finding("a", "ok", "1"), doctor.Finding("b", "optional", "no", "pip install b")])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines() == ["ok        a  1", "optional  b  no  ->  pip install b", "ready"]


def test_broken_plugin_is_reported(install):
    install("x-plugin", {"memory": {"X": "x_plugin:X"}})
    (found,) = [finding for finding in PLUGINS() if "x-plugin" in finding.value]
    assert (found.name, found.status, found.fix) == ("memory X", "missing", "update or reinstall x-plugin, or pip uninstall x-plugin")

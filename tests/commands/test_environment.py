"""What `flowact doctor` finds on machines that are not this one."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import socket
import subprocess
from collections import namedtuple
from types import SimpleNamespace

import pytest

from flowact.commands import doctor, environment
from flowact.commands.environment import GIBIBYTE, Finding, gpus, hub, media, nvidia, ports, room, runs_on, why_not

Usage = namedtuple("Usage", "total used free")


def status(findings, name):
    (found,) = (finding for finding in findings if finding.name == name)
    return found


@pytest.mark.parametrize(
    ("known", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80", "sm_90"], (7, 5), False),
        (["sm_80", "sm_90"], (12, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),
        (["sm_90a", "sm_120"], (12, 0), True),
        ([], (9, 0), False),
    ],
)
def test_cards_that_this_torch_was_built_for(known, capability, runs):
    assert runs_on(known, *capability) is runs


@pytest.mark.parametrize(
    ("driver", "cuda", "hidden", "said"),
    [
        ("535.104.05", "13.0", None, "CUDA 13.0 needs driver 580.65 or newer"),
        ("580.95.05", "13.0", None, "says why"),
        ("550.54", None, None, "this torch is for CPUs"),
        ("580.95.05", "13.0", "", "unset CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_card_that_torch_cannot_use_has_a_reason(driver, cuda, hidden, said, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert said in why_not(driver, cuda)


def test_a_driver_without_torch_is_missing_and_no_driver_is_none(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment, "nvidia", lambda: ("535.104.05", ["H100"]))
    found = status(gpus(), "gpu")
    assert (found.status, bool(found.fix)) == ("missing", True)
    assert "H100 with driver 535.104.05" in found.value
    monkeypatch.setattr(environment, "nvidia", lambda: ("", []))
    assert status(gpus(), "gpu").status == "optional"


def test_the_driver_is_asked(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    answer = SimpleNamespace(returncode=0, stdout="580.95.05, NVIDIA H200\n580.95.05, NVIDIA H200\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: answer)
    assert nvidia() == ("580.95.05", ["NVIDIA H200", "NVIDIA H200"])
    answer.returncode = 9
    assert nvidia() == ("", [])


def test_tight_shared_memory_and_files_are_said_and_are_no_obstacle(monkeypatch):
    import resource

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 1024**2, 0, 50 * GIBIBYTE))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 524288))
    found = list(room())
    assert (status(found, "shared memory").status, "--shm-size" in status(found, "shared memory").fix) == ("optional", True)
    assert (status(found, "open files").status, status(found, "open files").fix) == ("optional", "ulimit -n 65536")


def test_a_container_has_what_its_group_has(monkeypatch):
    monkeypatch.setattr(environment, "_container_memory", lambda: 1.0 * GIBIBYTE)
    monkeypatch.setattr(environment, "_cpu_quota", lambda: 0.5)
    found = list(room())
    assert (status(found, "memory").status, status(found, "memory").value) == ("missing", "1.0 GiB free")
    assert "may use 0.5" in status(found, "cores").value


def test_a_taken_port_names_another():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", environment.SERVE_PORT))
        except OSError:
            pass  # somebody serves here: as good
        else:
            other.listen()
        found = status(ports(), "port of serve")
    assert (found.status, found.fix) == ("optional", "flowact serve --port 7861")


def test_serve_listens_where_doctor_looks():
    from flowact.cli import PROGRAM

    assert PROGRAM.parse(["serve"]).port == environment.SERVE_PORT


@pytest.mark.parametrize(("offline", "said"), [("1", True), ("0", False)])
def test_a_hub_that_is_switched_off_is_said(offline, said, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    (found,) = hub()
    assert str(tmp_path / "hub") in found.value
    assert ("offline" in found.value) is said


def test_the_encoders_of_this_machine_are_there_and_a_missing_one_is_named(monkeypatch):
    assert {finding.status for finding in media() if finding.name.startswith("encoder")} == {"ok"}
    import av.codec

    def none(name, mode):
        raise ValueError(name)

    monkeypatch.setattr(av.codec, "Codec", none)
    assert status(media(), "encoder libx264").status == "missing"


def test_requirements_of_a_plugin_are_those_that_are_not_met(monkeypatch):
    needs = SimpleNamespace(requires=["numpy>=999", "surely-not-there", "numpy", "x; extra == 'y'", "z; sys_platform == 'os2'"])
    installed = importlib.metadata.version("numpy")
    assert list(environment.unmet(needs)) == [("numpy>=999", f"{installed} is installed"), ("surely-not-there", "not installed")]


def test_a_group_is_a_line_while_all_is_well_and_an_extra_always():
    fix = "pip install 'flowact[hf]'"
    found = [
        Finding("a", "ok", "1", group="required packages"),
        Finding("b", "missing", "not installed", "pip install b", group="required packages"),
        Finding("c [hf]", "optional", "not installed", fix, group="extra hf"),
        Finding("d [hf]", "optional", "1, needs >=2", fix, group="extra hf"),
        Finding("e [lora]", "ok", "1", group="extra lora"),
        Finding("encoder x", "ok", "in PyAV", group="encoders"),
        Finding("encoder y", "ok", "in PyAV", group="encoders"),
    ]
    assert [(line.name, line.status, line.value, line.fix) for line in doctor._lines(found)] == [
        ("b", "missing", "not installed", "pip install b"),
        ("extra hf", "optional", "c (not installed), d (1, needs >=2)", fix),
        ("extra lora", "ok", "e", ""),
        ("encoders", "ok", "x, y", ""),
    ]

"""FlowAct as somebody has it who installed the wheel and never saw the repository."""

from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_the_programs_work_anywhere(fresh, tmp_path):
    environment = fresh("flowact")
    here = tmp_path / "elsewhere"
    here.mkdir()

    def run(*command: str, code: int = 0) -> str:
        done = environment.run(command, here)
        assert done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout

    assert str(environment.folder) in run("python", "-c", "import flowact, data_tools, recipes; print(flowact.__file__, data_tools.__file__)")
    kinds = {row["kind"] for row in json.loads(run("flowact", "list", "--json"))}
    assert {"memory", "conditioning", "schedulers", "steps"} <= kinds
    assert "class_path: StructuredMemory" in run("flowact", "describe", "StructuredMemory")
    assert "ok" in run("flowact", "check", "quickstart/pretraining.yaml", "debug/autoencoder.yaml")
    run("flowact", "plan", "debug/diffusion_forcing.yaml", "--size", "32x32")
    run("flowact", "new", "plugin", "mine", "--kind", "memory")
    assert (here / "mine" / "pyproject.toml").is_file()
    assert "--quick" in run("flowact", "quickstart", "--help")
    assert "flowact-data" in run("flowact", "completion", "fish")
    assert json.loads(environment.run(["flowact", "doctor", "--json"], here).stdout)["findings"]
    run("flowact-data", "synth", "--out", "clips", "--train-identities", "1", "--val-identities", "1", "--seconds", "8", "-j", "1")
    run("flowact-data", "pack", "clips", "--out", "shards", "-j", "1")
    run("flowact-data", "take", "shards/val", "--out", "taken")
    run("flowact", "generate", "--audio", "taken/speech.wav", "--out", "a.mp4", "--seconds", "1")
    assert "decoded" in run("flowact-data", "probe", "a.mp4", "--json")


def test_what_an_extra_brings_is_named_where_it_is_missing(fresh, tmp_path):
    """Nothing fails with a traceback for want of an optional package."""
    environment = fresh("flowact")
    environment.run(["pip", "uninstall", "-y", "fastapi", "peft"], tmp_path)
    for command in (["flowact", "serve", "--no-browser"], ["flowact-data", "build", "x.yaml", "--out", "y"]):
        done = environment.run(command, tmp_path)
        assert "Traceback" not in done.stdout
        assert done.returncode == 2, done.stdout

"""The quickstart: what it refuses, what it remembers, and the whole road at a small size."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from flowact.cli import main
from flowact.commands import quickstart
from flowact.commands.quickstart import Settings, check, open_run, plan
from flowact.errors import UserError
from flowact.recipe import load_recipe


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    open_run(tmp_path / "run", Settings(seed=0))
    assert open_run(tmp_path / "run", Settings(seed=0)).seconds == {}
    with pytest.raises(UserError, match=r"seed: 0 there, 1 now"):
        open_run(tmp_path / "run", Settings(seed=1))


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        open_run(tmp_path, Settings())
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(train_identities=3), "too few"),
        (Settings(val_identities=1), "too few"),
        (Settings(seconds=4), "at least 8 s"),
        (Settings(quick=0.0), "share"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings: Settings, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        check(settings, tmp_path / "new" / "run")


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_machine_decides_the_number_type(native: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowact.machine.computes_bfloat16", lambda device="cpu": native)
    steps = {step.name: step.argv for step in plan(tmp_path, Settings())}
    assert precision in steps["encode"]
    assert ("trainer.precision=32-true" in steps["pretraining"]) != native


def test_a_full_disk_is_seen_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "NEEDED_BYTES", 1 << 60)
    with pytest.raises(UserError, match="GiB free"):
        check(Settings(), tmp_path / "run")


def test_speech_is_looked_at_before_work_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "notes.txt").write_text("no sound here")
    assert main(["quickstart", "--out", str(tmp_path / "run"), "--speech", str(tmp_path / "speech")]) == 2
    assert "speech" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_every_step_is_a_public_command_and_has_its_own_name(tmp_path: Path) -> None:
    steps = plan(tmp_path, Settings())
    assert {step.argv[0] for step in steps} == {"flowact", "flowact-data"}
    assert len({step.name for step in steps}) == len(steps)
    fits = [step for step in steps if step.argv[1] == "fit"]
    assert [step.name for step in fits] == ["autoencoder", *quickstart.STAGES]
    for step in fits:
        overrides = step.argv[step.argv.index("--config") + 2 :]
        config = load_recipe(step.argv[step.argv.index("--config") + 1], list(overrides)).config
        assert Path(config["trainer"]["callbacks"]["checkpoint"]["init_args"]["dirpath"]) == tmp_path / "checkpoints" / step.name
        assert config["trainer"]["strategy"]["class_path"].endswith("DeepSpeed")
    stages = [load_recipe(f"quickstart/{stage}.yaml", [f"vars.run={tmp_path}"]).config for stage in quickstart.STAGES]
    assert [config.get("init_from") for config in stages] == [None, *(f"{tmp_path}/checkpoints/{stage}" for stage in quickstart.STAGES[:-1])]


def test_finished_steps_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def fail_at(name: str) -> None:
        def execute(step: quickstart.Step, out: Path) -> None:
            if step.name == name:
                raise UserError("stop")
            done.append(step.name)

        monkeypatch.setattr(quickstart, "execute", execute)

    monkeypatch.setattr(quickstart, "finish", lambda *unused: None)
    monkeypatch.setattr(quickstart, "summarise", lambda *unused: None)
    argv = ["quickstart", "--out", str(tmp_path / "run"), "--quiet"]
    fail_at("diffusion_forcing")
    assert main(argv) == 2
    fail_at("nothing")
    assert main(argv) == 0
    assert done == [step.name for step in plan(tmp_path, Settings())]


@pytest.mark.timeout(1500)
def test_the_whole_road_at_a_small_size(tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = ["quickstart", "--out", str(out), "--quick", "0.01", "--train-identities", "16", "--val-identities", "3", "--seconds", "12", "--quiet"]
    assert main(argv) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["stages"]) == list(quickstart.STAGES)
    assert metrics["truth"]["lip_correlation"] > 0.8  # the principal components alone carry the mouth
    assert metrics["stream"]["evaluations_per_chunk"] == 3
    assert metrics["stream"]["duration_seconds"] >= 12
    assert set(metrics["seconds"]) == {step.name for step in plan(out, Settings())}
    with av.open(str(out / "stream.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.audio[0].codec_context.name == "aac"
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == round(metrics["stream"]["duration_seconds"] * 25)
    with wave.open(str(out / "held_out" / "speech.wav")) as sound:
        assert np.isclose(sound.getnframes() / 16_000, 12, atol=0.05)
    for stage in quickstart.STAGES:
        lineage = json.loads((out / "checkpoints" / stage / "lineage.json").read_text())
        assert [ancestor["stage"] for ancestor in lineage["ancestors"]] == list(quickstart.STAGES[: quickstart.STAGES.index(stage)])
        assert list((out / "logs" / stage / "media").glob("*.mp4")), "a preview with sound"
    report = (out / "report.html").read_text()
    assert "stream" in report
    assert (out / "shards" / "train" / "000000.tar").is_file()
    assert list((out / "human" / "shards" / "train").glob("*.tar"))
    before = (out / "stream.mp4").read_bytes()
    assert main(argv) == 0  # nothing is done again
    assert (out / "stream.mp4").read_bytes() == before

"""`flowact plan`: what it prints, as tables and as JSON, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import pytest

from flowact import cli
from flowact.budget import records
from flowact.budget.units import bytes_text, flops_text, rate_text, seconds_text

RECIPE = "debug/diffusion_forcing.yaml"
ARGV = ["plan", RECIPE, "--size", "64x64", "--text-tokens", "8"]


@pytest.fixture(scope="module")
def printed():
    """A function that gives what a command line prints; equal ones run once."""
    known: dict[tuple[str, ...], str] = {}

    def run(*argv):
        if argv not in known:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                assert cli.main([*ARGV, *argv]) == 0
            known[argv] = out.getvalue()
        return known[argv]

    return run


def test_tables_show_every_part(printed):
    text = printed()
    assert text.startswith(f"{RECIPE}: ChunkwiseDiffusionForcing of MMDiT, pictures of 64x64, latent frames of 96x4x4")
    for title in ("parameters", "tokens of the training", "operations of a forward pass", "kept for the backward", "memory of each of 1 devices"):
        assert title in text
    assert "assumed: latents of 96 channels are those of CausalVideoAutoencoder" in text
    assert "344 in all, 140 of memory; 76% of all pairs attend" in text
    assert "predicted at 40% of the peak (published work reaches 30 to 60 %)" in text
    assert "1.44 s of sound ahead, a new prompt is seen after 1.44 s" in text
    assert "warning: trainer.precision 32-true" in text
    assert "…" not in text  # nothing is cut short


def test_json_is_the_same_plan(printed):
    tree = json.loads(printed("--json"))
    assert list(tree) == [field.name for field in dataclasses.fields(records.Plan)]
    assert tree["recipe"] == RECIPE
    assert tree["device"]["name"] == "H100 SXM"
    assert f"{tree['roles'][0]['parameters']:,}" in printed()
    assert [row["states"]["zero"] for row in tree["memory_by_zero"]] == [0, 1, 2, 3]


def test_overrides_and_options_reach_the_plan(printed):
    tree = json.loads(
        printed("data.init_args.batch_size=5", "--json", "--processes", "3", "--zero", "2", "--utilisation", "0.5", "--device", "100,1,20",
                "--micro-steps", "2", "trainer.precision=bf16-mixed")
    )  # fmt: skip
    assert tree["training"]["batch_size"] == 5
    assert (tree["strategy"]["processes"], tree["strategy"]["zero"], tree["utilisation"]) == (3, 2, 0.5)
    assert tree["device"]["bf16_flops"] == 1e14
    assert tree["stream"]["evaluations_per_chunk"] == 6
    assert tree["stream"]["reuses_memory"]
    assert tree["precision"] == "bf16-mixed"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "64"], "--size 64: write two numbers with an x between them, such as 480x832"),
        (["--strides", "4x0"], "--strides 4x0: write two numbers"),
        (["--processes", "0"], "--processes 0: must be at least 1"),
        (["--utilisation", "1.5"], "--utilisation 1.5: a share of the peak is above 0 and at most 1"),
        (["--device", "h10"], "Did you mean h100?"),
        (["--zero", "4"], "invalid choice: 4"),
        (["data.init_args.batch_sise=2"], "Did you mean batch_size"),
    ],
)
def test_what_cannot_be_planned_is_told(argv, message, capsys):
    try:
        code = cli.main(["plan", RECIPE, *argv])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (68 << 30, "68 GiB"), (231.4 * 2**30, "231 GiB")])
def test_figures_have_three_digits(value, text):
    assert bytes_text(value) == text


def test_units_of_operations_time_and_rates():
    assert (flops_text(1.113e14), flops_text(2.5e15)) == ("111 TFLOP", "2.5 PFLOP")
    assert (seconds_text(0.9464), seconds_text(7.567)) == ("946 ms", "7.57 s")
    assert (rate_text(8.4512), rate_text(1311.7)) == ("8.45", "1,312")

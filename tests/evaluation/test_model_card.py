"""The model card says where a model comes from, and does not hide what is not known."""

from __future__ import annotations

import re

import pytest
import yaml

from flowact.evaluation.card import CardFacts, render_card

SET = {
    "name": "anna", "clips": 12, "seconds": 90.0, "people": 1, "character": None, "states": ["speaking"],
    "licenses": {"proprietary | Studio": 12}, "consents": {"signed 2026-01": 12},
}  # fmt: skip
OPEN = {**SET, "name": "crowd", "people": 3, "licenses": {"CC-BY-4.0": 12}}
LINEAGE = {
    "stage": "self_forcing", "step": 300, "fps": 25, "chunk_frames": 3, "training_data": [SET], "versions": {"flowact": "0.1.0", "torch": "2.14"},
    "ancestors": [{"stage": "pretraining", "step": 500, "weights_sha256": "ab" * 32, "training_data": [OPEN]}], "command": ["flowact", "fit"],
    "git": {"working_folder": {"commit": "c" * 40, "dirty": True}},
}  # fmt: skip
REPORT = {
    "out": "x",
    "format": "checkpoint",
    "layers": 0,
    "whole": 0,
    "keys": 111,
    "difference": 0.0,
    "output_difference": 1e-6,
    "parameters": 5_500_000,
}
RECIPE = {"model": {"init_args": {"denoiser": {"class_path": "flowact.models.mmdit.MMDiT", "init_args": {}}}}}


def facts(lineage=None, form="checkpoint", **options):
    given = {"autoencoder_lineage": {"stage": "autoencoder", "step": 9, "training_data": [OPEN]}, "picture_size": (64, 48)} | options
    return CardFacts("anna-live", REPORT | {"format": form}, RECIPE, LINEAGE | (lineage or {}), **given)


def front(card):
    return yaml.safe_load(card.split("---")[1])


def test_licence_consent_ancestry_and_versions_are_in_it():
    card = render_card(facts())
    assert front(card)["license"] == "other"
    assert front(card)["license_name"] == "CC-BY-4.0, proprietary | Studio"
    assert "| self_forcing | anna | 12 | 1.5 | 1 | proprietary \\| Studio (12) | signed 2026-01 (12) |" in card
    assert card.count("| crowd |") == 2, "of the autoencoder and of pretraining"
    assert "| pretraining | 500 | `abababababab` |" in card
    assert "torch 2.14" in card
    assert "working folder at cccccccccccc with changes" in card
    assert "48x64 pixels at 25 frames a second" in card
    assert "111 tensors matched" in card
    assert "Not recorded" not in card
    assert "state no" not in card
    assert "flowact fit" not in card, "the command line may name places of the machine"


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        ([OPEN], {}, ("cc-by-4.0", None)), ([OPEN], {"license": "Apache-2.0"}, ("apache-2.0", None)),
        ([OPEN], {"license": "Studio licence 3"}, ("other", "Studio licence 3")),
        ([OPEN | {"licenses": {"unknown": 1, "MIT": 2}}], {}, ("unknown", None)),
        (None, {}, ("unknown", None)), (None, {"license": "mit"}, ("mit", None)),
    ],
)  # fmt: skip
def test_the_licence_is_the_owners_word_or_what_all_data_state(data, options, expected):
    card = render_card(facts({"training_data": data}, **options))
    assert (front(card)["license"], front(card).get("license_name")) == expected


def test_what_is_unknown_is_said_in_bold():
    doubtful = SET | {"licenses": {"unknown": 2, "MIT": 10}, "consents": {"unknown": 12}}
    card = render_card(facts({"training_data": [doubtful]}))
    assert "**2 of 36 clips state no licence.**" not in card, "the open set counts once, whatever stages saw it"
    assert "**2 of 24 clips state no licence.**" in card
    assert "**12 of 24 clips state no consent of the people shown.**" in card
    card = render_card(facts({"training_data": None}, autoencoder_lineage=None))
    assert "**Not recorded: what self_forcing was trained on**" in card


def test_only_drawn_characters_are_told_from_people():
    drawn = OPEN | {"character": "Puppet"}
    lineage = {"training_data": [drawn], "ancestors": []}
    card = render_card(facts(lineage, autoencoder_lineage={"training_data": [drawn]}))
    assert "Its characters are drawn and show no real person." in card
    assert "rendered from Puppet" in card
    assert "Its characters are drawn" not in render_card(facts({"training_data": [drawn]}))


@pytest.mark.parametrize("form", ["checkpoint", "diffusers", "peft", "comfyui"])
def test_every_form_has_its_use(form):
    base = {"stage": "self_forcing", "step": 3, "weights_sha256": "cd" * 32}
    card = render_card(facts({"base": base} if form in ("peft", "comfyui") else None, form, needs=["flowact-wan"]))
    assert "pip install flowact flowact-wan\n" in card
    (lora,) = [form in ("peft", "comfyui")]
    assert ("--lora anna-live" in card) == lora
    assert ("flowact generate --checkpoint anna-live" in card) != lora
    assert ("cdcdcdcd" in card) == lora
    assert ("lora" in front(card)["tags"]) == lora
    assert front(card)["library_name"] == ("peft" if form == "peft" else "flowact")
    assert "{{" not in card
    assert not re.search(r"\bNone\b|built-in", card)


def test_a_base_model_and_parts_that_stay_behind_are_named():
    card = render_card(
        facts(base_model="studio/base", elsewhere=[("T5Text", "models/wan")], library=("diffusers", "WanTransformer3DModel"), additions=7)
    )
    assert front(card)["base_model"] == "studio/base"
    assert "- `T5Text` reads `models/wan`" in card


def test_measurements_are_a_table_and_their_absence_is_said():
    assert "No measurements were given" in render_card(facts())
    stages = {"base": {"lip_correlation": 0.4}, "anna": {"lip_correlation": 0.8, "details": {"skipped": {"state_accuracy": "no truth"}}}}
    card = render_card(facts(metrics={"stages": stages}))
    assert "| Lip sync | 0.400 | 0.800 | higher is better |" in card
    assert "State accuracy was not measured: no truth." in card


def test_the_hub_reads_the_front_matter():
    hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
    data = hub.ModelCard(render_card(facts(pictures=[("pictures/stream.png", "stills")], base_model="studio/base"))).data
    assert (data.license, data.pipeline_tag, data.base_model) == ("other", "image-to-video", "studio/base")
    assert "talking-head" in data.tags

"""Weight formats: what every format inherits, and that the conformance check finds a format that loses something."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flowact import registry, testing
from flowact.errors import UserError
from flowact.models import Addition, WeightFormat
from flowact.models.formats import installed_formats
from flowact.models.rules import Ignored, Rearrange, Rename
from flowact.models.translation import export_state

PLUGIN = Path(__file__).with_name("tiny_format.py")
CONFIG = {"_class_name": "TinyTransformer", "_diffusers_version": "0.36", "dim": 12, "layers": 3}


@pytest.fixture(autouse=True)
def tiny() -> Iterator[type[WeightFormat]]:
    registry.refresh()
    registry.load_plugin_file(PLUGIN)
    yield registry.load("TinyFormat", "formats")
    registry.refresh()


def test_a_plugin_file_registers_its_formats(tiny: type[WeightFormat]) -> None:
    assert isinstance(installed_formats()["TinyFormat"], tiny)
    assert registry.resolve("TinyFormat", "formats").kind == "formats"


def test_the_tiny_format_keeps_the_laws(tiny: type[WeightFormat], tmp_path: Path) -> None:
    testing.check_constructor(tiny)
    testing.check_format(tiny(), CONFIG, audio_width=5)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    form = tiny()
    network = registry.instantiate(form.denoiser_spec(CONFIG, audio_width=5), "denoisers")
    theirs = export_state(form.rules(form.complete(CONFIG)), form.divide(network.state_dict())[0])
    save_file(theirs, tmp_path / "model.safetensors")
    testing.check_format(form, tmp_path, audio_width=5)
    save_file({**theirs, "layers.0.scale": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(AssertionError, match=r"the rules know every tensor that the library writes[\s\S]*unexpected: layers.0.scale"):
        testing.check_format(form, tmp_path, audio_width=5)


class Scaling(Rearrange):
    """No change of layout but arithmetic, which rounds."""

    def to_ours(self, theirs):
        return theirs * 3

    def to_theirs(self, ours):
        return ours / 3


def without(rules: list, template: str) -> list:
    return [rule for rule in rules if not any(t.text == template for t in (*rule.theirs, *rule.ours))]


#: name -> what a careless author writes, and the law that finds it
CARELESS: dict[str, tuple[dict[str, Any], str]] = {
    "recognises everything": ({"recognises": lambda self, config: True}, "it recognises no other class"),
    "recognises nothing": ({"recognises": lambda self, config: False}, "it recognises its own config.json"),
    "swallows unknown keys": (
        {"complete": lambda self, config: {**self.defaults, "dim": 12}},
        "a key of config.json that it does not know is refused",
    ),
    "forgets a key on export": (
        {"config": lambda self, arguments: {"dim": 12}},
        "config.json that is imported and exported says the same': .*layers: 3 became None",
    ),
    "exports another value": (
        {"config": lambda self, arguments: {**self.defaults, "dim": arguments["width"], "layers": arguments["num_blocks"], "heads": 1}},
        "says the same': heads: 2 became 1",
    ),
    "addition that is not there": (
        {"additions": (Addition("audio", ("audio_*",), ("audio_blocks.*",)), Addition("depth", ("depth.*",), ("depth.*",)))},
        "every addition is there': depth",
    ),
    "gate that is open": ({"additions": (Addition("audio", ("audio_*",), ("audio_*",)),)}, "a new addition has no effect"),
    "no gates": ({"additions": (Addition("audio", ("audio_*",), ()),)}, "a new addition has no effect"),
    "two additions overlap": (
        {"additions": (Addition("audio", ("audio_*",), ("audio_blocks.*",)), Addition("blocks", ("audio_blocks.*",), ("audio_blocks.*",)))},
        "a tensor belongs to one addition",
    ),
    "addition holds a known tensor": (
        {"additions": (Addition("audio", ("audio_*", "text_in.*"), ("audio_blocks.*",)),)},
        "no rule makes a tensor of an addition': text_in",
    ),
}


@pytest.mark.parametrize("fault", CARELESS)
def test_the_check_names_the_law_that_a_careless_format_breaks(tiny: type[WeightFormat], fault: str) -> None:
    changes, law = CARELESS[fault]
    form = type("Careless", (tiny,), changes)()
    with pytest.raises(AssertionError, match=law):
        testing.check_format(form, CONFIG, audio_width=5)


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (lambda rules: without(rules, "embed.bias"), "one rule for each tensor.*unexpected: visual_in.bias"),
        (lambda rules: [*rules, Rename("b.{i}", "blocks.{i}.norm")], "one rule for each tensor.*2 rules claim"),
        (lambda rules: [*without(rules, "embed.bias"), Rename("embed.weight", "visual_in.bias")], "one rule for each tensor.*two rules make"),
        (lambda rules: [*rules, Ignored("context.*")], "rules claim the tensor context"),
        (
            lambda rules: [*without(rules, "embed.bias"), Rename("embed.bias", "visual_in.bias", Scaling("a -> a"))],
            "ours to theirs and back is exact",
        ),
    ],
)
def test_the_check_finds_rules_that_lose_something(tiny: type[WeightFormat], change: Any, law: str) -> None:
    form = type("Careless", (tiny,), {"rules": lambda self, config: change(tiny.rules(self, config))})()
    with pytest.raises((AssertionError, ValueError), match=rf"(?s){law}"):
        testing.check_format(form, CONFIG, audio_width=5)


# --- what every format inherits


def test_an_unknown_key_of_config_json_is_refused_and_absent_ones_have_defaults(tiny: type[WeightFormat]) -> None:
    assert tiny().complete(CONFIG) == {**tiny.defaults, "dim": 12, "layers": 3}
    with pytest.raises(UserError, match=r"'head' .*does not know. Did you mean heads.*update the plugin"):
        tiny().complete({**CONFIG, "head": 4})


def test_a_spec_is_complete_and_does_not_contradict_config_json(tiny: type[WeightFormat]) -> None:
    with pytest.raises(UserError, match=r"needs audio_width.*--set audio_width="):
        tiny().denoiser_spec(CONFIG)
    with pytest.raises(UserError, match=r"width=16: it follows from config.json of TinyTransformer and is 12"):
        tiny().denoiser_spec(CONFIG, audio_width=5, width=16)
    with pytest.raises(UserError, match=r"no argument 'audio_gat'. Did you mean audio_gate"):
        tiny().denoiser_spec(CONFIG, audio_width=5, audio_gat=1)
    with pytest.raises(UserError, match="audio_width"):
        tiny().denoiser_spec(CONFIG, audio_width="wide")
    with pytest.raises(UserError, match=r"norm is 'layer' in config.json"):
        tiny().denoiser_spec({**CONFIG, "norm": "layer"}, audio_width=5)
    spec = tiny().denoiser_spec(CONFIG, audio_width=5, width=12)
    assert spec["init_args"] == {"latent_channels": 4, "text_width": 6, "width": 12, "num_heads": 2, "num_blocks": 3, "audio_width": 5}
    assert tiny().writes(spec)
    assert not tiny().writes({"class_path": "MMDiT"})


def test_export_says_also_what_the_recipe_left_at_its_default(tiny: type[WeightFormat]) -> None:
    spec = {"class_path": "TinyDenoiser", "init_args": {"latent_channels": 4, "text_width": 6, "audio_width": 5}}
    assert tiny().exported_config(spec) == {"_class_name": "TinyTransformer", **tiny.defaults}


def test_an_addition_is_silent_while_all_its_gates_are_zero() -> None:
    addition = Addition("audio", ("audio.*",), ("*.gate",))
    assert addition.is_silent({"audio.w": torch.ones(2), "audio.gate": torch.zeros(2), "block.gate": torch.ones(2)})
    assert not addition.is_silent({"audio.gate": torch.zeros(2), "audio.b.gate": torch.tensor([0.0, 1e-30])})
    assert not addition.is_silent({"audio.w": torch.zeros(2)})

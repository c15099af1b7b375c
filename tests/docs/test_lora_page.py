"""The recipe that the page on LoRA shows fits the network that it names; `flowact check` builds none."""

from __future__ import annotations

from pages import ROOT, files

from flowact.models.adapters import LoRA, adapted_layers
from flowact.recipe import load_recipe
from flowact.registry import instantiate


def test_the_patterns_of_the_page_match(tmp_path):
    ((name, text),) = files(ROOT / "docs" / "lora.md").items()
    (tmp_path / name).write_text(text)
    arguments = load_recipe(tmp_path / name).config["model"]["init_args"]
    network = instantiate(arguments["denoiser"], "denoisers")
    adapter = instantiate(arguments["adapter"], "adapters")
    assert isinstance(adapter, LoRA)
    adapter.attach(network)
    assert 0 < len(adapted_layers(network)) < len(adapter.stored_names(network))

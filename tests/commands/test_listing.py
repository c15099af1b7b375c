from __future__ import annotations

import json

import pytest
import yaml

from flowact import cli, registry


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(list(argv))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_list_shows_kind_name_words_and_origin_of_plugins(install, capsys):
    text = 'from flowact.memory import NoMemory\n\nclass DeepBank(NoMemory):\n    """Forgets nothing."""'
    install("bank-plugin", {"memory": {"DeepBank": "bank_plugin:DeepBank"}}, {"bank_plugin.py": text})
    code, out, _ = run(capsys, "list", "memory")
    assert code == 0
    assert out.splitlines()[0] == "memory"
    assert [line.split(None, 1) for line in out.splitlines() if "DeepBank" in line] == [["DeepBank", "Forgets nothing.  [bank-plugin 1.0]"]]
    assert "HashedText" not in out


def test_list_keeps_going_over_broken_plugins(install, capsys):
    install("a-plugin", {"memory": {"DeepBank": "gone_plugin:DeepBank"}})
    install("b-plugin", {"memory": {"OpenBank": "b_plugin:OpenBank"}}, {"b_plugin.py": "class OpenBank: ..."})
    install("c-plugin", {"memory": {"OpenBank": "b_plugin:OpenBank"}})
    code, out, err = run(capsys, "list")
    assert code == 0
    assert "HashedText" in out
    assert "warning: DeepBank of a-plugin: no class gone_plugin:DeepBank" in err
    assert "warning: OpenBank of b-plugin: claimed by b-plugin 1.0 and c-plugin 1.0" in err


def test_list_json_is_one_record_per_component(capsys):
    code, out, _ = run(capsys, "list", "conditioning", "--json")
    records = json.loads(out)
    assert code == 0
    assert {record["name"] for record in records} == {c.name for c in registry.components("conditioning")}
    assert set(records[0]) == {"kind", "name", "class_path", "distribution", "version", "summary", "problem", "fix"}


def test_describe_tells_arguments_and_gives_yaml_that_works(toy, capsys):
    code, out, _ = run(capsys, "describe", "ToyBank")
    assert code == 0
    assert "num_long: int  (default 3)" in out
    assert "chunks kept for long." in out
    spec = yaml.safe_load(out[out.index("class_path: ToyBank") :])
    assert registry.instantiate(spec).read() == 3


def test_describe_json_marks_required_arguments_and_plain_defaults(toy, capsys):
    record = json.loads(run(capsys, "describe", "ToyStage", "--json")[1])
    arguments = {argument["name"]: argument for argument in record["arguments"]}
    assert [name for name, argument in arguments.items() if argument["required"]] == ["memory", "width"]
    assert arguments["rates"]["default"] == {"slow": 1e-3, "fast": 1e-2}
    assert yaml.safe_load(record["example"]) == {
        "class_path": "ToyStage",
        "init_args": {"memory": {"class_path": "OtherBank"}, "width": 64, "rates": {"slow": 1e-3, "fast": 1e-2}, "mode": "plain", "decay": None},
    }
    assert (record["kind"], record["base"]) == ("stages", "Stage")


def test_describe_follows_keyword_arguments_to_their_owner(install, capsys):
    text = '''
from flowact.memory.base import MemoryBank

class Parent(MemoryBank):
    """A parent.

    Args:
        depth: how deep.
    """
    num_frames = num_segments = history_chunks = 1
    def __init__(self, depth: int = 2): ...
    def reset(self, reference): ...
    def write(self, state, chunk): ...
    def read(self, state): ...

class Child(Parent):
    """A child."""
    def __init__(self, width: float = 1.0, **kwargs): super().__init__(**kwargs)
'''
    install("bank-plugin", {"memory": {"Child": "child_plugin:Child"}}, {"child_plugin.py": text})
    record = json.loads(run(capsys, "describe", "Child", "--json")[1])
    assert [(a["name"], a["type"], a["doc"]) for a in record["arguments"]] == [("width", "float", ""), ("depth", "int", "how deep.")]


def test_describe_suggests(capsys):
    code, _, err = run(capsys, "describe", "HashdText")
    assert code == 2
    assert "Did you mean HashedText?" in err


@pytest.mark.parametrize("component", [c for c in registry.components() if registry.summary(c) is not None], ids=lambda c: c.name)
def test_every_component_can_be_described_and_its_example_passes_the_check(component, capsys):
    code, out, err = run(capsys, "describe", component.name)
    assert (code, err) == (0, "")
    assert component.class_path in out
    assert f"{component.module.partition('.')[0]}/" in out
    pasted = yaml.safe_load(out[out.index(f"class_path: {component.name}\n" if "init_args:" in out else f"class_path: {component.name}") :])
    registry.check_spec(registry.expand(pasted))
    if component.kind in ("memory", "schedulers", "corruptors", "solvers", "adapters", "planners"):
        assert type(registry.instantiate(pasted)).__name__ == component.name


@pytest.mark.parametrize("class_path", ["lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.callbacks.EarlyStopping", "torch.optim.AdamW"])
def test_a_class_of_a_library_can_be_described_too(class_path, capsys):
    code, out, _ = run(capsys, "describe", class_path)
    assert code == 0
    assert f"{class_path}, from {class_path.partition('.')[0]} " in out
    pasted = yaml.safe_load(out[out.rindex(f"class_path: {class_path}") :])
    assert pasted["class_path"] == class_path
    if class_path.startswith("lightning"):
        registry.check_spec(pasted)


def test_a_class_outside_the_allow_list_is_not_imported_to_be_described(canary, capsys):
    code, _, err = run(capsys, "describe", "canary_module.Thing")
    assert code == 2
    assert "outside flowact" in err
    assert not canary.exists()

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flowact import registry
from flowact.errors import UserError

BANK = """
import pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
from flowact.memory.base import MemoryBank

class {name}(MemoryBank):
    \"\"\"Forgets nothing.

    Not this line.
    \"\"\"
    num_frames = num_segments = history_chunks = 1
    def __init__(self, depth: int = 2): self.depth = depth
    def reset(self, reference): ...
    def write(self, state, chunk): ...
    def read(self, state): ...
"""


def bank(install, distribution="bank-plugin", name="DeepBank", module="bank_plugin", kind="memory"):
    return install(distribution, {kind: {name: f"{module}:{name}"}}, {f"{module}.py": BANK.format(name=name)})


def test_installed_plugin_is_listed_and_summarised_without_being_imported(install):
    site = bank(install)
    found = registry.resolve("DeepBank")
    assert (found.kind, found.class_path, found.distribution, found.version) == ("memory", "bank_plugin.DeepBank", "bank-plugin", "1.0")
    assert registry.summary(found) == "Forgets nothing."
    assert not (site / "bank_plugin.imported").exists()
    assert registry.load("DeepBank", "memory").__name__ == "DeepBank"
    assert (site / "bank_plugin.imported").exists()  # the canary can fail


def test_own_components_come_from_the_same_metadata():
    assert {c.distribution for c in registry.components("conditioning")} == {"flowact"}
    assert registry.load("HashedText").__module__ == "flowact.conditioning.text"
    assert set(registry.groups()) == {c.kind for c in registry.components()} | set(registry.KINDS)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no MemoryBank called 'StructuredMemry'.*Did you mean StructuredMemory\?"):
        registry.resolve("StructuredMemry", "memory")
    with pytest.raises(UserError, match=r"no kind of component called 'memry'. Did you mean memory\?"):
        registry.components("memry")


def test_a_name_in_the_wrong_kind_is_unknown_there(install):
    bank(install)
    with pytest.raises(UserError, match="no NoiseScheduler called 'DeepBank'"):
        registry.resolve("DeepBank", "schedulers")


def test_clash_names_both_distributions_and_hides_nothing_else(install):
    bank(install)
    bank(install, distribution="other-bank", module="other_bank")
    with pytest.raises(UserError, match=r"'DeepBank' is claimed by bank-plugin 1\.0 .* and other-bank 1\.0"):
        registry.resolve("DeepBank")
    assert [{c.distribution for c in claim} for claim in registry.clashes()] == [{"bank-plugin", "other-bank"}]
    assert registry.resolve("HashedText").distribution == "flowact"
    assert registry.load_class("other_bank.DeepBank").__module__ == "other_bank"  # the full path says which


def test_same_name_in_two_kinds_must_be_told_apart(install):
    bank(install)
    bank(install, distribution="other-bank", module="other_bank", kind="schedulers")
    with pytest.raises(UserError, match=r"exists as memory and as schedulers; .* bank_plugin\.DeepBank, other_bank\.DeepBank"):
        registry.resolve("DeepBank")
    assert registry.resolve("DeepBank", "schedulers").module == "other_bank"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no licence')", r"DeepBank of bank-plugin 1\.0 fails at import: RuntimeError: no licence"),
        ("import surely_not_there", r"DeepBank of bank-plugin 1\.0 needs the package 'surely_not_there', which is not installed"),
        ("class DepBank: ...", r"DeepBank of bank-plugin 1\.0: module bank_plugin has no class 'DeepBank'\. Did you mean DepBank\?"),
        ("DeepBank = 3", "is a int, not a class"),
        ("class DeepBank: ...", r"bank-plugin 1\.0 registers DeepBank as memory, but the class does not derive from MemoryBank"),
        (
            "from flowact.memory.base import MemoryBank\nclass DeepBank(MemoryBank):\n    def read(self, state): ...",
            "DeepBank of bank-plugin 1.0 is half a MemoryBank: it does not define history_chunks, num_frames, num_segments, reset, write",
        ),
        ("from subprocess import Popen as DeepBank", r"'subprocess\.Popen' is outside flowact"),
    ],
)
def test_broken_plugin_is_a_named_error(install, text, message):
    install("bank-plugin", {"memory": {"DeepBank": "bank_plugin:DeepBank"}}, {"bank_plugin.py": text})
    with pytest.raises(UserError, match=message):
        registry.load("DeepBank")
    assert registry.load("HashedText")  # the others still load


def test_missing_module_of_a_registered_class_is_seen_without_import(install):
    install("bank-plugin", {"memory": {"DeepBank": "bank_plugin.gone:DeepBank"}}, {"bank_plugin/__init__.py": ""})
    assert registry.summary(registry.resolve("DeepBank")) is None
    with pytest.raises(UserError, match=r"there is no module 'bank_plugin\.gone'"):
        registry.load("DeepBank")


@pytest.mark.parametrize(
    "class_path", ["canary_module.Thing", "os.system", "subprocess.Popen", "torch.hub.load", "builtins.eval", "jsonargparse.CLI"]
)
def test_class_path_outside_the_allow_list_is_refused_before_import(canary, class_path):
    with pytest.raises(UserError, match=f"'{class_path}' is outside flowact"):
        registry.load_class(class_path)
    assert not canary.exists()
    assert registry.load_class("canary_module.Thing", trusted=["canary_module"]).__name__ == "Thing"
    assert canary.exists()  # the canary can fail


@pytest.mark.parametrize("class_path", ["flowact.registry.Path", "flowact.cli.argparse.ArgumentParser", "lightning.pytorch.cli.os.system"])
def test_an_allowed_module_is_no_way_to_what_it_imports(class_path):
    with pytest.raises(UserError, match=r"outside flowact|no module|not a class"):
        registry.load_class(class_path)


def test_what_one_check_trusts_the_next_does_not(toy, canary):
    spec = registry.expand({"class_path": "ToyBank", "init_args": {"inner": "canary_module.Thing"}})
    with pytest.raises(UserError, match="subclass of MemoryBank"):
        registry.check_spec(spec, trusted=["canary_module"])
    with pytest.raises(UserError, match="outside flowact"):
        registry.check_spec(spec)


def test_trust_lasts_for_the_process_and_wants_a_prefix():
    registry.trust("my_company.models")
    registry.check_allowed("my_company.models.Bank")
    with pytest.raises(UserError, match="outside flowact"):
        registry.check_allowed("my_company.modelsx.Bank")
    registry.refresh()
    with pytest.raises(UserError, match="outside flowact"):
        registry.check_allowed("my_company.models.Bank")
    for wrong in ("*", "a b", "jsonargparse", ""):
        with pytest.raises(UserError, match="cannot be trusted"):
            registry.trust(wrong)


# --- plugin files


def test_plugin_file_registers_by_base_class(toy):
    assert {(c.kind, c.name) for c in registry.components() if c.distribution.endswith("toy.py")} == {
        *{("memory", "ToyBank"), ("memory", "OtherBank"), ("stages", "ToyStage"), ("data", "ToyData"), ("callbacks", "ToyWitness")}
    }
    assert registry.load("ToyBank")(num_long=5).read() == 5
    assert registry.load_plugin_file(toy / "toy.py")  # twice is once
    assert len(registry.clashes()) == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.py", "x = 1\nraise KeyError('k')", r"mine\.py:2: KeyError"),
        ("mine.py", "def f(:\n", r"mine\.py:1: SyntaxError"),
        ("mine.py", "class Plain: ...", "no class in it derives from a base class of FlowAct"),
        ("my-file.py", "", r"must be a Python name, such as my_file\.py"),
        ("mine.txt", "", "not a Python file"),
        ("mine.py", BANK.format(name="HashedBank").replace("HashedBank", "NoMemory"), r"'NoMemory' is claimed by flowact .* and by .*mine\.py"),
    ],
)
def test_plugin_file_that_cannot_be_used_says_why(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    count = len(registry.components())
    with pytest.raises(UserError, match=message):
        registry.load_plugin_file(tmp_path / name)
    assert len(registry.components()) == count
    assert "flowact_plugin_mine" not in sys.modules


# --- specs


def test_expand_finds_names_anywhere_and_leaves_the_rest(install):
    bank(install)
    node = {"a": [{"class_path": "DeepBank", "init_args": {"depth": 1}}], "b": {"class_path": "torch.optim.AdamW"}, "c": "DeepBank"}
    assert registry.expand(node) == {
        "a": [{"class_path": "bank_plugin.DeepBank", "init_args": {"depth": 1}}],
        "b": {"class_path": "torch.optim.AdamW"},
        "c": "DeepBank",
    }
    assert node["a"][0]["class_path"] == "DeepBank"
    with pytest.raises(UserError, match=r"model\.memory\.class_path: no component called 'DepBank'.*Did you mean DeepBank"):
        registry.expand({"model": {"memory": {"class_path": "DepBank"}}})


def test_spec_hash_is_of_the_meaning_not_of_the_writing(install):
    bank(install)
    short = {"class_path": "DeepBank", "init_args": {"depth": 1, "width": [1, 2]}}
    full = {"init_args": {"width": (1, 2), "depth": 1}, "class_path": "bank_plugin.DeepBank"}
    assert registry.spec_hash(short) == registry.spec_hash(full)
    assert len(registry.spec_hash(short)) == 8
    assert registry.spec_hash(short) != registry.spec_hash({"class_path": "DeepBank", "init_args": {"depth": 2, "width": [1, 2]}})
    for bad in (float("nan"), object()):
        with pytest.raises(UserError, match="plain values only"):
            registry.spec_hash({"class_path": "DeepBank", "init_args": {"depth": bad}})


def test_instantiate_builds_nested_components(toy):
    spec = {"class_path": "ToyBank", "init_args": {"num_long": 4, "inner": {"class_path": "OtherBank", "init_args": {"width": 2.0}}}}
    built = registry.instantiate(spec, "memory", label="z")
    assert (built.num_long, built.label, built.inner.width) == (4, "z", 2.0)
    assert registry.instantiate({"class_path": "flowact_plugin_toy.OtherBank"}).width == 0.5
    inner = registry.instantiate({"class_path": "OtherBank"})
    assert registry.instantiate({"class_path": "ToyBank", "init_args": {"num_long": 1}}, inner=inner).inner is inner
    assert spec["init_args"] == {"num_long": 4, "inner": {"class_path": "OtherBank", "init_args": {"width": 2.0}}}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"class_path": "ToyBank", "init_args": {"num_lng": 1}},
            r"^init_args\.num_lng: ToyBank takes no argument 'num_lng'\. Did you mean num_long\?",
        ),
        ({"class_path": "ToyBank", "init_args": {"num_long": "many"}}, r"^init_args\.num_long: expected int\. Got value: many"),
        (
            {"class_path": "ToyBank", "init_args": {"inner": {"class_path": "OtherBank", "init_args": {"width": "w"}}}},
            r"^init_args\.inner\.init_args\.width: expected float\. Got value: w",
        ),
        (
            {"class_path": "ToyBank", "init_args": {"inner": {"class_path": "HashedText"}}},
            r"^init_args\.inner: .*HashedText.* subclass of MemoryBank",
        ),
        ({"class_path": "ToyBank", "init_arg": {}}, r"^init_arg: .*Did you mean init_args\?"),
        ({"class_path": "ToyBank", "init_args": {"inner": {"class_pth": "ToyBank"}}}, r"^init_args\.inner\.class_pth: .*Did you mean class_path"),
        ({"class_path": "ToyBank", "init_args": {"inner": {"init_args": {}}}}, r"^init_args\.inner\.init_args: a component has a class_path"),
        ({"class_path": "ToyBank", "dict_kwargs": {}}, "^dict_kwargs: a component has class_path and init_args only"),
        ({"class_path": "ToyBank", "init_args": [1]}, "init_args"),
        ({"class_path": "OtherBank", "init_args": {"width": -1.0}}, r"^OtherBank: width -1\.0 is not positive"),
        ({"class_path": "ToyData", "init_args": {}}, r"^init_args: ToyData needs width"),
        ({"init_args": {}}, "a component is given as class_path and init_args"),
    ],
)
def test_instantiate_says_the_place_and_the_rule(toy, spec, message):
    with pytest.raises(UserError, match=message):
        registry.instantiate(spec)


def test_instantiate_checks_the_kind(toy):
    with pytest.raises(UserError, match="ToyBank is not a NoiseScheduler"):
        registry.instantiate({"class_path": "ToyBank"}, "schedulers")
    with pytest.raises(UserError, match="Did you mean memory"):
        registry.instantiate({"class_path": "ToyBank"}, "memry")


@pytest.mark.parametrize(
    "hostile",
    [
        {"class_path": "canary_module.Thing"},
        {"class_path": "ToyBank", "init_args": {"inner": {"class_path": "canary_module.Thing"}}},
        {"class_path": "ToyBank", "init_args": {"inner": "canary_module.Thing"}},
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}},
        {"class_path": "flowact.registry.Component", "init_args": {}},
    ],
)
def test_a_spec_from_a_checkpoint_names_components_only(toy, canary, hostile):
    with pytest.raises(UserError, match=r"not a registered component|outside flowact"):
        registry.instantiate(hostile)
    assert not canary.exists()


def test_registry_imports_no_heavy_library():
    code = "import sys, flowact.registry as r; [*map(r.summary, r.components())]; print({'torch', 'lightning', 'jsonargparse'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert done.stdout.strip() == "set()"

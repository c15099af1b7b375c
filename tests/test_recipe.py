from __future__ import annotations

from pathlib import Path

import pytest

from flowact import recipe as recipes
from flowact import registry
from flowact.errors import UserError
from flowact.recipe import check_recipe, differences, find_recipe, load_recipe, packaged_recipes, trainer_arguments
from flowact.strict_yaml import to_yaml

TOY = Path(__file__).parent / "commands" / "toy" / "toy.yaml"


@pytest.fixture
def write(tmp_path: Path):
    def add(name: str, text: str) -> Path:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return add


# --- composition


def test_child_is_laid_over_its_bases_in_order(write):
    write("a.yaml", "trainer: {max_steps: 1, precision: a, callbacks: {x: {class_path: torch.nn.X}}}\nmodel: {list: [1, 2]}")
    write("sub/b.yaml", "trainer: {max_steps: 2}\nmodel: {list: [3]}")
    child = write("c.yaml", "_base_: [a.yaml, sub/b.yaml]\ntrainer: {devices: 3}\nmodel: {list+: [4], new+: [5]}")
    loaded = load_recipe(child)
    assert loaded.config == {
        "seed": 0,
        "model": {"list": [3, 4], "new": [5]},
        "trainer": {"max_steps": 2, "precision": "a", "callbacks": {"x": {"class_path": "torch.nn.X"}}, "devices": 3},
    }
    assert [source.name for source in loaded.sources] == ["a.yaml", "b.yaml", "c.yaml"]
    assert loaded.origins["trainer.max_steps"].endswith("b.yaml:1")
    assert loaded.origins["trainer.devices"].endswith("c.yaml:2")


def test_replace_drops_what_the_bases_say(write):
    write("a.yaml", "model: {memory: {class_path: torch.nn.A, init_args: {x: 1}}, keep: 1}")
    child = write("b.yaml", "_base_: a.yaml\nmodel: {memory: {_replace_: true, class_path: torch.nn.B}}")
    assert load_recipe(child).config["model"] == {"memory": {"class_path": "torch.nn.B"}, "keep": 1}
    child = write("c.yaml", "_base_: a.yaml\nmodel: {memory: {_replace_: 1}}")
    with pytest.raises(UserError, match=r"model\.memory\._replace_ .*c\.yaml:2.*true or false"):
        load_recipe(child)


def test_a_base_is_looked_for_beside_the_file_then_among_the_packaged(write, monkeypatch, tmp_path):
    monkeypatch.setattr(recipes, "packaged_folder", lambda: tmp_path / "packaged")
    write("packaged/base/tiny.yaml", "trainer: {max_steps: 5}")
    child = write("mine/child.yaml", "_base_: base/tiny.yaml\ntrainer: {devices: 1}")
    assert load_recipe(child).config["trainer"] == {"max_steps": 5, "devices": 1}
    assert packaged_recipes() == ["base/tiny.yaml"]
    assert load_recipe("base/tiny.yaml").config["trainer"] == {"max_steps": 5}
    write("mine/base/tiny.yaml", "trainer: {max_steps: 6}")
    assert load_recipe(child).config["trainer"]["max_steps"] == 6
    with pytest.raises(UserError, match=r"no recipe 'base/tny\.yaml'.*Did you mean base/tiny\.yaml\?"):
        find_recipe("base/tny.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_base_: gone.yaml", r"r\.yaml:1: no recipe 'gone\.yaml'"),
        ("\n_base_: r.yaml", "leads back to itself: r.yaml -> r.yaml"),
        ("_base_: {a: b}", r"r\.yaml:1: _base_ is a recipe or a list of recipes"),
        ("- a", r"r\.yaml:1: a recipe is a mapping"),
        ("", r"r\.yaml:1: a recipe is a mapping"),
        ("trainr: {}", r"trainr \(.*r\.yaml:1\): a recipe has no 'trainr'\. Did you mean trainer\?"),
        ("about: {expectd: 3}", r"about\.expectd \(.*r\.yaml:1\).*Did you mean expected\?"),
        ("model: 3", r"model \(.*r\.yaml:1\): a mapping is expected"),
        ("trainer:\n  x+: 3", r"trainer\.x\+ .*r\.yaml:2.*appends a list to a list"),
        ("trainer: {callbacks: [1]}", r"trainer\.callbacks \(.*r\.yaml:1\): a mapping name -> component"),
        ("trainer:\n  callbacks:\n    ema: {init_args: {}}", r"trainer\.callbacks\.ema \(.*r\.yaml:3\): a callback has a class_path"),
        (
            "model:\n  memory:\n    class_path: StructuredMemry",
            r"model\.memory\.class_path \(.*r\.yaml:3\): no component called.*Did you mean StructuredMemory",
        ),
        ("model:\n  memory: {class_path: os.system}", r"model\.memory\.class_path \(.*r\.yaml:2\): 'os\.system' is outside flowact"),
        ("model: {class_path: 3}", r"model\.class_path \(.*r\.yaml:1\): 3 is not the name of a class"),
        ("model: {a: 1, a: 2}", r"r\.yaml:1: 'model\.a' is written twice"),
    ],
)
def test_mistakes_of_a_file_are_told_with_file_and_line(write, text, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write("r.yaml", text))


def test_loading_runs_no_code_that_a_recipe_names(write, canary):
    file = write("r.yaml", "model: {class_path: canary_module.Thing}")
    with pytest.raises(UserError, match="outside flowact"):
        load_recipe(file)
    assert load_recipe(file, trust=["canary_module"]).config["model"]["class_path"] == "canary_module.Thing"
    assert not canary.exists()


# --- interpolation


def test_interpolation_follows_overrides_and_keeps_types(write):
    file = write(
        "r.yaml",
        "vars: {dim: 16, name: x}\n"
        "model: {a: '${vars.dim}', b: '${model.a}', c: 'w-${vars.dim}-${vars.name}', d: ['${vars.dim}'], e: '\\${literal}'}",
    )
    assert load_recipe(file).config["model"] == {"a": 16, "b": 16, "c": "w-16-x", "d": [16], "e": "${literal}"}
    assert load_recipe(file, ["vars.dim=32"]).config["model"]["b"] == 32
    assert load_recipe(file, ["model.a=7"]).config["model"] == {"a": 7, "b": 7, "c": "w-16-x", "d": [16], "e": "${literal}"}


def test_interpolation_follows_a_child(write):
    write("a.yaml", "vars: {dim: 16}\nmodel: {a: '${vars.dim}'}")
    assert load_recipe(write("b.yaml", "_base_: a.yaml\nvars: {dim: 64}")).config["model"]["a"] == 64


def test_environment_is_limited_to_our_names(write, monkeypatch):
    monkeypatch.setenv("FLOWACT_ROOT", "/data")
    monkeypatch.setenv("AWS_SECRET", "s3cret")
    file = write("r.yaml", "data: {root: '${oc.env:FLOWACT_ROOT}', other: '${oc.env:FLOWACT_NONE,here}/x'}")
    assert load_recipe(file).config["data"] == {"root": "/data", "other": "here/x"}
    for text in ("${oc.env:AWS_SECRET}", "${oc.env:FLOWACT_X,${oc.env:AWS_SECRET}}", "${oc.decode:'1'}", "${oc.${vars.e}:HOME}", "${oc.create:{}}"):
        with pytest.raises(UserError, match=r"data\.root \(.*r\.yaml:1\).*may be interpolated") as caught:
            load_recipe(write("r.yaml", f"data: {{root: \"{text}\"}}\nvars: {{e: env}}\nmodel: {{x: '${{vars.e}}'}}"))
        assert "s3cret" not in str(caught.value)
    with pytest.raises(UserError, match="ambiguous"):
        load_recipe(write("r.yaml", "data: {root: '\\\\${oc.env:AWS_SECRET}'}"))
    with pytest.raises(UserError, match="FLOWACT_NONE"):
        load_recipe(write("r.yaml", "data: {root: '${oc.env:FLOWACT_NONE}'}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vars: {dim: 1}\nmodel: {a: '${vars.dmi}'}", r"refers to nothing in the recipe\. Did you mean vars\.dim\?|nothing in the recipe reads it"),
        ("model: {a: '${model.b}', b: '${model.a}'}", "Recursive interpolation|lead back"),
        ("model: {a: '${vars.x'}", "may be interpolated"),
        ("model: {a: '???'}", r"model\.a \(.*r\.yaml:1\).*leaves it to you"),
        ("vars: {dim: 1, unused: 2}\nmodel: {a: '${vars.dim}'}", r"vars\.unused \(.*r\.yaml:1\): nothing in the recipe reads it"),
    ],
)
def test_references_that_cannot_be_followed_are_told(write, text, message):
    with pytest.raises(UserError, match=message):
        load_recipe(write("r.yaml", text))


def test_an_inherited_variable_may_be_unused_but_a_new_one_may_not(write):
    write("a.yaml", "vars: {dim: 16}\nmodel: {a: '${vars.dim}'}")
    child = write("b.yaml", "_base_: a.yaml\nmodel: {_replace_: true, a: 1}")
    assert load_recipe(child).config["model"] == {"a": 1}
    with pytest.raises(UserError, match=r"vars\.dmi \(command line\): nothing in the recipe reads it\. Did you mean dim\?"):
        load_recipe("a.yaml" if Path("a.yaml").exists() else child.parent / "a.yaml", ["vars.dmi=3"])


# --- overrides


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("trainer.max_steps=1e3", ("trainer", "max_steps"), 1000.0),
        ("trainer.new.deep=[1, a]", ("trainer", "new", "deep"), [1, "a"]),
        ("model.list[1]=9", ("model", "list"), [1, 9, {"k": 3}]),
        ("model.list.2.k=9", ("model", "list"), [1, 2, {"k": 9}]),
        ("model.list+=[4]", ("model", "list"), [1, 2, {"k": 3}, 4]),
        ("model.memory={a: 1}", ("model", "memory"), {"a": 1}),
        ("model.memory=torch.nn.B", ("model", "memory"), {"class_path": "torch.nn.B"}),
        ("model.memory.class_path=torch.nn.B", ("model", "memory"), {"class_path": "torch.nn.B"}),
        ("model.memory.class_path=torch.nn.A", ("model", "memory"), {"class_path": "torch.nn.A", "init_args": {"x": 1}}),
        ("model.memory=null", ("model", "memory"), None),
        ("model.text=a=b", ("model", "text"), "a=b"),
        ("model.text=", ("model", "text"), None),
    ],
)
def test_override_sets_the_value_at_its_place(write, override, place, value):
    file = write("r.yaml", "trainer: {max_steps: 1}\nmodel: {list: [1, 2, {k: 3}], memory: {class_path: torch.nn.A, init_args: {x: 1}}}")
    node = load_recipe(file, [override]).config
    for key in place:
        node = node[key]
    assert node == value


def test_overrides_apply_in_order(write):
    file = write("r.yaml", "model: {memory: {class_path: torch.nn.A, init_args: {x: 1}}}")
    loaded = load_recipe(file, ["model.memory=torch.nn.B", "model.memory.init_args.y=2", "model.memory.init_args.y=3"])
    assert loaded.config["model"]["memory"] == {"class_path": "torch.nn.B", "init_args": {"y": 3}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_steps", "write section.key=value"),
        ("=3", "write section.key=value"),
        ("trainer..x=3", "write section.key=value"),
        ("trainer.max_steps.x=3", "trainer.max_steps is 1, it has no parts"),
        ("model.list.7=3", "'7' is not a position in a list of 2"),
        ("model.list.x=3", "'x' is not a position"),
        ("model.a=[1", "override 'model.a':1: not valid YAML"),
        ("trainer.max_steps+=[1]", "appends a list to a list"),
        ("traner.max_steps=1", "Did you mean trainer"),
        ("trainer.callbacks.eam=null", "the recipe has no callback 'eam' to leave out. Did you mean ema?"),
        ("model.a=!!python/name:os.system", "is not allowed"),
    ],
)
def test_override_that_cannot_be_is_told(write, override, message):
    file = write("r.yaml", "trainer: {max_steps: 1, callbacks: {ema: {class_path: torch.nn.X}}}\nmodel: {list: [1, 2]}")
    with pytest.raises(UserError) as caught:
        load_recipe(file, [override])
    assert message in str(caught.value)


def test_a_child_adds_changes_and_leaves_out_callbacks(write):
    write("a.yaml", "trainer: {callbacks: {ema: {class_path: torch.nn.X, init_args: {d: 1}}, log: {class_path: torch.nn.Y}}}")
    child = write("b.yaml", "_base_: a.yaml\ntrainer: {callbacks: {ema: {init_args: {d: 2}}, log: null, new: {class_path: torch.nn.Z}}}")
    loaded = load_recipe(child)
    assert trainer_arguments(loaded.config)["callbacks"] == [{"class_path": "torch.nn.X", "init_args": {"d": 2}}, {"class_path": "torch.nn.Z"}]
    with pytest.raises(UserError, match=r"trainer\.callbacks\.lgo .*no base has a callback of this name.*Did you mean log\?"):
        load_recipe(write("c.yaml", "_base_: a.yaml\ntrainer: {callbacks: {lgo: null}}"))


# --- signatures


def test_the_toy_recipe_passes_and_stores_full_paths(toy):
    loaded = load_recipe(TOY)
    check_recipe(loaded)
    assert loaded.config["model"]["class_path"] == "flowact_plugin_toy.ToyStage"
    assert loaded.config["model"]["init_args"]["memory"]["init_args"]["inner"]["class_path"] == "flowact_plugin_toy.ToyBank"
    assert list(loaded.config) == ["about", "seed", "data", "model", "trainer"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.init_args.memory.init_args.num_long=2.5",
            r"^model\.init_args\.memory\.init_args\.num_long \(command line\): expected int\. Got value: 2\.5",
        ),
        ("model.init_args.rates.slwo=3", r"^model\.init_args\.rates\.slwo \(command line\): .*Did you mean slow\?"),
        ("model.init_args.decay.rte=3", r"^model\.init_args\.decay\.rte \(command line\): .*Did you mean rate\?"),
        ("model.init_args.decay.rate=abc", r"^model\.init_args\.decay\.rate \(command line\): expected float"),
        ("model.init_args.decay=5", r"^model\.init_args\.decay \(command line\): .*Got value: 5"),
        ("model.init_args.rates.slow=abc", r"^model\.init_args\.rates\.slow \(command line\): expected float"),
        ("model.init_args.memory.init_args.inner=canary_module.Thing", "outside flowact"),
        (
            "trainer.logger=canary_module.Thing",
            r"^trainer\.logger \(command line\): 'canary_module\.Thing' is outside flowact.*--trust canary_module",
        ),
        ("model.init_args.memory={class_path: HashedText}", r"^model\.init_args\.memory \(command line\).*subclass of MemoryBank"),
        ("trainer.max_stps=3", r"^trainer\.max_stps \(command line\): Trainer takes no argument 'max_stps'\. Did you mean max_steps"),
        ("trainer.max_steps=many", r"^trainer\.max_steps \(command line\): expected int"),
        ("trainer.callbacks.progress.init_args.every=x", r"^trainer\.callbacks\.progress\.init_args\.every .*expected int"),
        ("trainer.callbacks.progress=ToyBank", r"^trainer\.callbacks\.progress\.class_path \(command line\): ToyBank is not a Callback"),
        ("data=ToyBank", r"^data\.class_path \(command line\): ToyBank is not a LightningDataModule"),
        ("data.init_args.width=null", r"^data\.init_args \(.*toy\.yaml:\d+\): ToyData needs width"),
        ("data={}", r"^data \(command line\): needs a class_path and init_args; there is .*ShardDataModule"),
        ("model.init_args=null", r"^model\.init_args \(command line\): ToyStage needs memory, width"),
        ("seed=-1", "seed .*whole number"),
        ("seed=true", "seed .*whole number"),
        ("init_from=[a]", "init_from .*not the path of a checkpoint"),
    ],
)
def test_what_a_constructor_does_not_take_is_told_with_place_and_rule(toy, canary, override, message):
    with pytest.raises(UserError, match=message):
        check_recipe(load_recipe(TOY, [override]))
    assert not canary.exists()


# --- storing and comparing


def test_a_stored_recipe_loads_back_equal(toy, write):
    loaded = load_recipe(TOY, ["model.init_args.mode='\\${x} 1e5'"])
    assert loaded.config["model"]["init_args"]["mode"] == "${x} 1e5"
    stored = load_recipe(write("recipe.yaml", to_yaml(loaded.config)))
    assert stored.config == loaded.config
    assert registry.spec_hash(stored.config["model"]) == registry.spec_hash(loaded.config["model"])


def test_a_stored_recipe_without_a_callback_that_was_left_out_loads_back(toy, write):
    loaded = load_recipe(TOY, ["trainer.callbacks.early=null"])
    assert list(loaded.config["trainer"]["callbacks"]) == ["progress"]
    assert load_recipe(write("recipe.yaml", to_yaml(loaded.config))).config == loaded.config


def test_differences_are_leaves_and_skip_what_says_nothing():
    before = {"about": {"a": 1}, "model": {"x": 1, "y": [1, 2], "z": {}}, "seed": 0}
    after = {"about": {"a": 2}, "model": {"x": 2, "y": [1, 3, 4], "z": {}}, "seed": 0}
    assert [(d.place, d.before, d.after) for d in differences(before, after)] == [
        *(("model.x", 1, 2), ("model.y[1]", 2, 3), ("model.y[2]", recipes.MISSING, 4)),
    ]
    assert differences(before, before) == []

"""Components swapped, added and named in files and on the command line, and what is said of slips."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowact.errors import UserError, differ_by_a_letter
from flowact.recipe import check_recipe, load_recipe

TOY = Path(__file__).parent / "commands" / "toy" / "toy.yaml"


@pytest.fixture
def write(tmp_path: Path):
    def add(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return add


# --- swapping components


PART = "model: {memory: {class_path: torch.nn.A, init_args: {x: 1, deep: {class_path: torch.nn.D, init_args: {z: 1}}}}}"


@pytest.mark.parametrize(
    ("child", "memory"),
    [
        ("{init_args: {x: 2}}", {"class_path": "torch.nn.A", "init_args": {"x": 2, "deep": {"class_path": "torch.nn.D", "init_args": {"z": 1}}}}),
        (
            "{class_path: torch.nn.A, init_args: {y: 2}}",
            {"class_path": "torch.nn.A", "init_args": {"x": 1, "deep": {"class_path": "torch.nn.D", "init_args": {"z": 1}}, "y": 2}},
        ),
        ("{class_path: torch.nn.B, init_args: {y: 2}}", {"class_path": "torch.nn.B", "init_args": {"y": 2}}),
        ("torch.nn.B", {"class_path": "torch.nn.B"}),
        ("torch.nn.A", {"class_path": "torch.nn.A"}),
        ("auto", "auto"),
        ("{init_args: {deep: {class_path: torch.nn.E}}}", {"class_path": "torch.nn.A", "init_args": {"x": 1, "deep": {"class_path": "torch.nn.E"}}}),
    ],
)
def test_in_a_file_another_class_starts_from_its_own_defaults_as_on_the_command_line(write, child, memory):
    write("a.yaml", PART)
    loaded = load_recipe(write("b.yaml", f"_base_: a.yaml\nmodel: {{memory: {child}}}"))
    assert loaded.config["model"]["memory"] == memory
    if not child.startswith("{"):
        assert load_recipe(write("a.yaml", PART), [f"model.memory={child}"]).config["model"]["memory"] == memory


def test_a_short_and_a_full_name_are_one_class(write):
    write("a.yaml", "model: {memory: {class_path: StructuredMemory, init_args: {long: 2}}}")
    full = "flowact.memory.structured.StructuredMemory"
    loaded = load_recipe(write("b.yaml", f"_base_: a.yaml\nmodel: {{memory: {{class_path: {full}, init_args: {{short: 2}}}}}}"))
    assert loaded.config["model"]["memory"] == {"class_path": full, "init_args": {"long": 2, "short": 2}}


def test_another_stage_keeps_what_its_base_says_and_tells_what_it_does_not_take(toy, write):
    write("toy.yaml", TOY.read_text())
    child = write("b.yaml", "_base_: toy.yaml\nmodel:\n  class_path: flowact.stages.AutoencoderTraining")
    loaded = load_recipe(child)
    assert loaded.config["model"]["init_args"]["width"] == 4
    with pytest.raises(UserError, match=r"init_args\.memory \(.*toy\.yaml:22\): .*another class .*named later \(.*b\.yaml:3\): `_replace_: true`"):
        check_recipe(loaded)
    named = load_recipe(TOY, ["model.class_path=flowact.stages.AutoencoderTraining"])
    assert named.config["model"] == loaded.config["model"]


def test_a_forgotten_class_leaves_no_lines_behind(write):
    write("a.yaml", "model:\n  memory:\n    class_path: torch.nn.A\n    init_args:\n      x: 1")
    loaded = load_recipe(write("b.yaml", "_base_: a.yaml\nmodel:\n  memory:\n    class_path: torch.nn.B\n    init_args: {y: 2}"))
    inside = {place: where.rpartition("/")[2] for place, where in loaded.origins.items() if place.startswith("model.memory.")}
    assert inside == {"model.memory.class_path": "b.yaml:4", "model.memory.init_args": "b.yaml:5", "model.memory.init_args.y": "b.yaml:5"}


def test_what_is_appended_has_its_own_line(write):
    write("a.yaml", "model:\n  list:\n  - 1\n  - {k: 2}")
    loaded = load_recipe(write("b.yaml", "_base_: a.yaml\nmodel:\n  list+:\n  - {j: 3}"), ["model.list+=[4]"])
    where = {place: line.rpartition("/")[2] for place, line in loaded.origins.items() if place.startswith("model.list[")}
    assert where == {
        "model.list[0]": "a.yaml:3",
        "model.list[1]": "a.yaml:4",
        "model.list[1].k": "a.yaml:4",
        "model.list[2]": "b.yaml:4",
        "model.list[2].j": "b.yaml:4",
        "model.list[3]": "command line",
    }


LAID_BARE = {
    "file": "model: {init_args: {memory: {init_args: {inner: OtherBank, label: OtherBank}}}}\ntrainer: {callbacks: {pre: ToyWitness}}",
    "command line": [
        "model.init_args.memory.init_args.inner=OtherBank",
        "model.init_args.memory.init_args.label=OtherBank",
        "trainer.callbacks.pre=ToyWitness",
    ],
}


@pytest.mark.parametrize("way", LAID_BARE)
def test_a_bare_name_is_a_component_where_one_belongs_and_text_elsewhere(toy, write, way):
    base = TOY.read_text().replace("        inner:\n          class_path: ToyBank\n          init_args:\n            label: innermost\n", "")
    file = write("toy.yaml", base)
    loaded = load_recipe(write("b.yaml", f"_base_: toy.yaml\n{LAID_BARE[way]}")) if way == "file" else load_recipe(file, LAID_BARE[way])
    check_recipe(loaded)
    arguments = loaded.config["model"]["init_args"]["memory"]["init_args"]
    assert (arguments["inner"], arguments["label"]) == ({"class_path": "flowact_plugin_toy.OtherBank"}, "OtherBank")
    assert loaded.config["trainer"]["callbacks"]["pre"] == {"class_path": "flowact_plugin_toy.ToyWitness"}


def test_a_bare_name_may_be_given_arguments_next(toy, write):
    loaded = load_recipe(TOY, ["model.init_args.memory=ToyBank", "model.init_args.memory.init_args.num_long=5", "trainer.strategy=auto"])
    check_recipe(loaded)
    assert loaded.config["model"]["init_args"]["memory"] == {"class_path": "flowact_plugin_toy.ToyBank", "init_args": {"num_long": 5}}
    place = "model.init_args.memory.init_args.inner.init_args.inner"
    absent = [f"{place}=OtherBank", f"{place}.init_args.width=2.0"]
    inner = load_recipe(TOY, absent).config["model"]["init_args"]["memory"]["init_args"]["inner"]["init_args"]["inner"]
    assert inner == {"class_path": "flowact_plugin_toy.OtherBank", "init_args": {"width": 2.0}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OtherBnk", "there is no 'OtherBnk'; here belongs a MemoryBank. Did you mean OtherBank"),
        ("LoRA", "LoRA is a Adapter; here belongs a MemoryBank"),
    ],
)
def test_a_bare_name_that_does_not_fit_is_told(toy, name, message):
    with pytest.raises(UserError) as caught:
        check_recipe(load_recipe(TOY, [f"model.init_args.memory.init_args.inner.init_args.inner={name}"]))
    assert str(caught.value).startswith("model.init_args.memory.init_args.inner.init_args.inner (command line): ")
    assert message in str(caught.value)


def test_a_second_callback_whose_name_is_a_slip_is_refused(toy, write):
    write("toy.yaml", TOY.read_text())
    for name, refused in (("progrss", True), ("porgress", True), ("progress2", False), ("other", False)):
        loaded = load_recipe(write("b.yaml", f"_base_: toy.yaml\ntrainer:\n  callbacks:\n    {name}: {{class_path: ToyWitness}}"))
        if refused:
            with pytest.raises(UserError, match=rf"callbacks\.{name} \(.*b\.yaml:4\): a second ToyWitness .*toy\.yaml:37.*mean progress\?"):
                check_recipe(loaded)
        else:
            check_recipe(loaded)


def test_every_mistake_is_told_at_once(toy):
    overrides = [
        "trainer.max_stps=1",
        "data.init_args.widht=2",
        "model.init_args.memory.init_args.num_lnog=3",
        "model.init_args.memory.init_args.x=3",
        "seed=-1",
    ]
    with pytest.raises(UserError) as caught:
        check_recipe(load_recipe(TOY, overrides))
    places = [line.partition(" ")[0] for line in str(caught.value).splitlines()]
    assert places == ["seed", "data.init_args.widht", *(f"model.init_args.memory.init_args.{name}" for name in ("num_lnog", "x")), "trainer.max_stps"]


@pytest.mark.parametrize(
    ("class_path", "near"),
    [
        ("lihgtning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.CSVLogger"),
        ("lightning.pytroch.loggers.CSVLogger", "lightning.pytorch.loggers.CSVLogger"),
        ("lightning.pytorch.logers.CSVLogger", "lightning.pytorch.loggers.CSVLogger"),
        ("lightning.pytorch.loggers.CVSLogger", "CSVLogger"),
        ("flowact.memry.StructuredMemory", "flowact.memory.StructuredMemory"),
        ("torch.optmi.AdamW", "torch.optim.AdamW"),
    ],
)
def test_a_misspelt_dotted_path_is_answered_with_the_right_one(toy, class_path, near):
    with pytest.raises(UserError, match=rf"^trainer\.logger\.class_path \(command line\).* Did you mean ([\w.]+, )*{near.replace('.', '[.]')}"):
        check_recipe(load_recipe(TOY, [f"trainer.logger={{class_path: {class_path}}}"]))


def test_a_slip_in_a_base_is_not_taken_for_another_class_that_a_child_replaces(write):
    write("a.yaml", "model:\n  memory:\n    class_path: StructuredMemry\n    init_args: {long: 2}")
    with pytest.raises(UserError, match=r"model\.memory\.class_path \(.*a\.yaml:3\): .*'StructuredMemry'.* Did you mean StructuredMemory\?"):
        load_recipe(write("b.yaml", "_base_: a.yaml\nmodel: {memory: {class_path: StructuredMemory}}"))
    # a name that is far from the child's may be of a plugin that is not installed, and is not needed
    loaded = load_recipe(write("b.yaml", "_base_: a.yaml\nmodel: {memory: {class_path: NoMemory}}"))
    assert loaded.config["model"]["memory"] == {"class_path": "flowact.memory.none.NoMemory"}


@pytest.mark.parametrize("key", ["init__args", "iniit_args", "intit_args"])
def test_a_key_on_the_way_to_a_component_is_told_and_not_the_component(write, key):
    write("a.yaml", "model: {class_path: torch.nn.A, init_args: {part: {class_path: torch.nn.B, init_args: {x: 1}}}}")
    with pytest.raises(UserError, match=rf"^model\.{key} \(.*b\.yaml:2\): .*Did you mean init_args\?"):
        load_recipe(write("b.yaml", f"_base_: a.yaml\nmodel: {{{key}: {{part: {{init_args: {{x: 2}}}}}}}}"))


def test_what_a_slip_of_the_finger_makes_of_a_name():
    assert all(differ_by_a_letter("average", slip) for slip in ("averge", "averagee", "avreage", "aaverage"))
    assert not any(differ_by_a_letter("average", other) for other in ("average", "average2", "averaxe", "avg", "preview"))

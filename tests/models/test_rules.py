"""Rules between two naming schemes: exact in both directions, whole or not at all, and one tensor at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping

import pytest
import torch
import torch.nn.functional as nnf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowact.errors import UserError
from flowact.models.rules import Constant, Ignored, Part, PermuteHeads, Rearrange, Rename, Rule, Split, Stack, Template
from flowact.models.translation import export_state, import_state, outline_of, translate

NUMBER_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)


def exactly_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


# --- laws


@st.composite
def maps_of(draw: st.DrawFn, shape: tuple[int, ...]) -> list:
    """Maps that fit a tensor of this shape, as it is after each of them."""
    maps: list = []
    for _ in range(draw(st.integers(0, 3))):
        dims = [d for d, length in enumerate(shape) if length % 2 == 0]
        if dims and draw(st.booleans()):
            dim = draw(st.sampled_from(dims))
            heads = draw(st.sampled_from([h for h in (1, 2, 3) if shape[dim] % (2 * h) == 0]))
            maps.append(PermuteHeads(heads, dim - draw(st.sampled_from([0, len(shape)]))))
        else:
            axes = [f"a{d}" for d in range(len(shape))]
            order = draw(st.permutations(axes))
            cuts = sorted(draw(st.sets(st.integers(1, max(len(axes) - 1, 1)))))
            groups = [order[i:j] for i, j in zip([0, *cuts], [*cuts, len(order)], strict=True) if order[i:j]]
            sizes = dict(zip(axes, shape, strict=True))
            maps.append(Rearrange(f"{' '.join(axes)} -> 1 {' '.join('(' + ' '.join(group) + ')' for group in groups)}", sizes))
        shape = tuple(maps[-1].to_ours(torch.empty(shape, device="meta")).shape)
    return maps


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[Rule], dict[str, Tensor]]:
    """A set of rules, and a state of theirs that they cover."""
    rules: list[Rule] = []
    theirs: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shapes = st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=4).map(tuple)

    def fill(template: str, shape: tuple[int, ...], number_type: torch.dtype, numbers: range) -> None:
        for i in numbers:
            values = (100 * torch.randn(shape, generator=generator)).to(number_type)
            theirs[template.replace("{i}", str(i))] = values

    for index in range(draw(st.integers(1, 5))):
        numbers = range(draw(st.integers(1, 3)))
        number_type = draw(st.sampled_from(NUMBER_TYPES))
        shape = draw(shapes)
        kind = draw(st.sampled_from(["rename", "stack", "split"]))
        names = [f"their{index}.{{i}}.{part}" for part in "abc"]
        ours = [f"our{index}.{part}.{{i}}" for part in "abc"]
        if kind == "rename":
            rules.append(Rename(names[0], ours[0], *draw(maps_of(shape))))
            fill(names[0], shape, number_type, numbers)
            continue
        dim = draw(st.integers(0, len(shape) - 1))
        sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        equal = len(set(sizes)) == 1 and draw(st.booleans())
        shapes_of_parts = [(*shape[:dim], size, *shape[dim + 1 :]) for size in sizes]
        if kind == "split":
            parts = [Part(name, *draw(maps_of(part))) for name, part in zip(ours, shapes_of_parts, strict=False)]
            rules.append(Split(names[0], parts, dim, None if equal else sizes))
            fill(names[0], (*shape[:dim], sum(sizes), *shape[dim + 1 :]), number_type, numbers)
        else:
            parts = [Part(name, PermuteHeads(1, dim)) if size % 2 == 0 else Part(name) for name, size in zip(names, sizes, strict=False)]
            rules.append(Stack(parts, ours[0], dim - draw(st.sampled_from([0, len(shape)])), None if equal else sizes))
            for part, part_shape in zip(parts, shapes_of_parts, strict=True):
                fill(part.name, part_shape, number_type, numbers)
    return rules, theirs


@settings(max_examples=120, deadline=None)
@given(worlds())
def test_a_round_trip_is_exact_in_both_directions(world: tuple[list[Rule], dict[str, Tensor]]) -> None:
    rules, theirs = world
    ours = import_state(rules, theirs)
    assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in theirs.values())
    assert exactly_equal(export_state(rules, ours), theirs)
    other = {name: torch.randint(-100, 100, tensor.shape).to(tensor.dtype) for name, tensor in ours.items()}
    assert exactly_equal(import_state(rules, export_state(rules, other)), other)


@settings(max_examples=60, deadline=None)
@given(worlds(), st.data())
def test_what_is_planned_is_what_is_made_and_no_absence_is_overlooked(world: tuple[list[Rule], dict[str, Tensor]], data: st.DataObject) -> None:
    rules, theirs = world
    translation = translate(rules, theirs, "ours")
    ours = dict(translation.tensors())
    assert list(ours) == list(translation.outline)
    assert all((ours[name].shape, ours[name].dtype) == (planned.shape, planned.dtype) for name, planned in translation.outline.items())
    lost = data.draw(st.sampled_from(sorted(theirs)))
    with pytest.raises(UserError, match=rf"(?m)^  missing: {lost}$"):
        import_state(rules, {name: theirs[name] for name in theirs if name != lost}, translation.outline)
    with pytest.raises(UserError, match=r"(?m)^  unexpected: stranger$"):
        import_state(rules, {**theirs, "stranger": torch.zeros(1)}, translation.outline)
    wrong = {**theirs, lost: torch.zeros(*theirs[lost].shape, 5)}
    with pytest.raises(UserError, match=f"shape of {lost}: "):
        import_state(rules, wrong, translation.outline)


# --- what the maps mean


def test_a_patch_convolution_becomes_a_linear_map_on_patches() -> None:
    convolution = torch.nn.Conv3d(3, 5, (1, 2, 2), stride=(1, 2, 2), dtype=torch.float64)
    video = torch.randn(1, 3, 2, 4, 6, dtype=torch.float64)
    rule = Rename("proj.weight", "into.weight", Rearrange("D C 1 h w -> D (h w C)", {"h": 2, "w": 2}))
    weight = import_state([rule], {"proj.weight": convolution.weight.detach()})["into.weight"]
    patches = video[0].unflatten(2, (2, 2)).unflatten(4, (3, 2)).permute(1, 2, 4, 3, 5, 0).flatten(3)  # frame, row, column, (h, w, C)
    wanted = convolution(video)[0].permute(1, 2, 3, 0)
    torch.testing.assert_close(nnf.linear(patches, weight, convolution.bias), wanted)


def test_permuted_heads_turn_by_halves_as_theirs_do_by_neighbours() -> None:
    """Scores of queries and keys after a rotation stay, which is what the permutation is for."""
    num_heads, width, length = 3, 8, 5
    weight_q, weight_k = torch.randn(2, num_heads * width, 7, dtype=torch.float64)
    x = torch.randn(length, 7, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * torch.rand(width // 2, dtype=torch.float64)
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]

    def by_neighbours(q: Tensor) -> Tensor:
        first, second = q[..., 0::2], q[..., 1::2]
        return torch.stack([first * cosine - second * sine, first * sine + second * cosine], -1).flatten(-2)

    def by_halves(q: Tensor) -> Tensor:
        first, second = q.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)

    heads = (length, num_heads, width)
    theirs = [by_neighbours((x @ weight.T).view(heads)) for weight in (weight_q, weight_k)]
    ours = [by_halves((x @ PermuteHeads(num_heads).to_ours(weight).T).view(heads)) for weight in (weight_q, weight_k)]
    torch.testing.assert_close(torch.einsum("qnd,knd->nqk", *ours), torch.einsum("qnd,knd->nqk", *theirs))
    head = torch.arange(num_heads * width)
    turned = PermuteHeads(num_heads).to_ours(head).view(num_heads, width)
    assert turned[1].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]


# --- names


@pytest.mark.parametrize(
    ("template", "name", "values"),
    [
        ("a.{i}.b", "a.12.b", {"i": "12"}),
        ("a.{i}.b", "a.012.b", None),
        ("a.{i}.b", "a.x.b", None),
        ("a.{i}.b", "a.1.bb", None),
        ("a.{kind:weight|bias}", "a.bias", {"kind": "bias"}),
        ("a.{kind:weight|bias}", "a.scale", None),
        ("a+(b).{i}", "a+(b).0", {"i": "0"}),
        ("a.b", "axb", None),
    ],
)
def test_a_template_matches_its_names_and_fills_them_again(template: str, name: str, values: dict[str, str] | None) -> None:
    assert Template(template).match(name) == values
    if values is not None:
        assert Template(template).fill(values) == name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Template("a.{i}.{i}"), "twice"),
        (lambda: Template("a.{i"), "brace"),
        (lambda: Rename("a.{i}", "b.{j}"), "same placeholders"),
        (lambda: Rename("a.{k:x|y}", "b.{k:x|z}"), "same placeholders"),
        (lambda: Stack(["a.{i}", "b"], "c.{i}"), "same placeholders"),
        (lambda: Stack([], "c"), "at least one part"),
        (lambda: Split("a", ["b", "c"], sizes=[1]), "one size for each"),
        (lambda: Constant("a.{i}", torch.ones(1)), "one name"),
        (lambda: Rearrange("a b"), "no arrow"),
        (lambda: Rearrange("a b -> a"), "same axes"),
        (lambda: Rearrange("a a -> a a"), "same axes"),
        (lambda: Rearrange("a b -> (a b)"), "all lengths but one"),
        (lambda: Rearrange("a b -> ((a) b)", {"a": 2}), "cannot read"),
        (lambda: Rearrange("a b -> (a b", {"a": 2}), "left open"),
        (lambda: Rearrange("a b -> b a", {"c": 2}), "the sizes of c"),
        (lambda: Rearrange("a b -> b a", {"a": 0}), "the sizes of a"),
    ],
)
def test_rules_that_mean_nothing_are_refused_when_they_are_made(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("rule", "shapes", "words"),
    [
        (Rename("a", "b", PermuteHeads(2)), {"a": (6,)}, "does not divide into 2 heads of even width"),
        (Rename("a", "b", PermuteHeads(1, dim=1)), {"a": (6,)}, "none is axis 1"),
        (Rename("a", "b", Rearrange("x y -> y x")), {"a": (6,)}, "has 1 axes, .* needs 2"),
        (Rename("a", "b", Rearrange("x 1 -> x")), {"a": (6, 2)}, "is 2 long, needed is 1"),
        (Rename("a", "b", Rearrange("(x y) -> y x", {"x": 4})), {"a": (6,)}, "a multiple of 4"),
        (Split("a", ["b", "c"]), {"a": (5,)}, "2 equal parts"),
        (Split("a", ["b", "c"], sizes=[2, 2]), {"a": (5,)}, r"into \[2, 2\]"),
        (Split("a", ["b", "c"], dim=1), {"a": (4,)}, "no axis 1"),
        (Stack(["a", "c"], "b"), {"a": (5,), "c": (4,)}, r"\[5, 4\] long"),
        (Stack(["a", "c"], "b", sizes=[5, 5]), {"a": (5,), "c": (4,)}, r"needed is \[5, 5\]"),
        (Stack(["a", "c"], "b"), {"a": (2, 3), "c": (2, 4)}, "do not join"),
        (Stack(["a", "c"], "b"), {"a": (2,), "c": (2, 1)}, "do not join"),
        (Constant("a", torch.arange(3.0)), {"a": (4,)}, r"constant of shape \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit_a_rule_are_told_with_the_rule(rule: Rule, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UserError, match=rf"1 misshapen[\s\S]*shape of a.*{words}"):
        import_state([rule], {name: torch.zeros(shape) for name, shape in shapes.items()})


def test_tensors_of_different_number_types_do_not_become_one() -> None:
    with pytest.raises(UserError, match=r"float32 .*bfloat16"):
        import_state([Stack(["a", "c"], "b")], {"a": torch.zeros(2), "c": torch.zeros(2, dtype=torch.bfloat16)})


# --- whole or not at all

RULES = [
    Stack(["l.{i}.q", "l.{i}.k"], "b.{i}.qk"),
    Rename("l.{i}.o", "b.{i}.out"),
    Constant("table", torch.arange(3.0)),
    Ignored("junk.*"),
]


def their_state(num_blocks: int = 2) -> dict[str, Tensor]:
    blocks = {f"l.{i}.{part}": torch.randn(2, 3) for i in range(num_blocks) for part in "qko"}
    return {**blocks, "table": torch.arange(3.0), "junk.a": torch.zeros(1)}


def test_one_error_lists_all_that_is_wrong() -> None:
    like = outline_of(import_state(RULES, their_state()))
    broken = their_state(3) | {"l.0.q": torch.zeros(4, 3), "stranger": torch.zeros(1)}
    for name in ("l.1.k", "l.1.o", "table"):
        del broken[name]
    with pytest.raises(UserError) as caught:
        import_state(RULES, broken, like)
    lines = str(caught.value).splitlines()
    assert "(3 missing, 4 unexpected, 1 misshapen of 9 tensors); nothing was converted" in lines[0]
    assert [line.strip() for line in lines[1:]] == [
        *("missing: l.1.k", "missing: l.1.o", "missing: table"),
        *("unexpected: l.2.k", "unexpected: l.2.o", "unexpected: l.2.q", "unexpected: stranger"),
        "shape of l.0.q: (4, 3), needed is (2, 3)",
    ]


def test_without_knowing_the_result_a_half_present_group_is_missing_its_rest() -> None:
    broken = their_state()
    del broken["l.1.k"]
    with pytest.raises(UserError, match=r"1 missing, 0 unexpected, 0 misshapen[\s\S]*missing: l.1.k"):
        import_state(RULES, broken)
    with pytest.raises(UserError, match=r"missing: b.0.qk2"):
        export_state([Split("x.{i}", ["b.{i}.qk1", "b.{i}.qk2"])], {"b.0.qk1": torch.zeros(2)})


def test_constants_are_checked_and_written_and_ignored_tensors_are_neither() -> None:
    translation = translate(RULES, their_state(), "ours")
    assert translation.ignored == ("junk.a",)
    ours = dict(translation.tensors())
    assert set(ours) == {"b.0.qk", "b.0.out", "b.1.qk", "b.1.out"}
    assert set(export_state(RULES, ours)) == set(their_state()) - {"junk.a"}
    assert torch.equal(export_state(RULES, ours)["table"], torch.arange(3.0))
    with pytest.raises(UserError, match=r"table: is not the .* constant"):
        import_state(RULES, their_state() | {"table": torch.ones(3)})
    with pytest.raises(UserError, match=r"shape of table"):
        import_state(RULES, their_state() | {"table": torch.arange(3)})


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([*RULES, Rename("l.0.o", "elsewhere")], "2 rules claim the tensor l.0.o"),
        ([*RULES, Ignored("l.1.*")], "rules claim the tensor l.1"),
        ([*RULES[:1], Rename("l.{i}.o", "b.{i}.qk"), *RULES[2:]], "two rules make the tensor b.0.qk"),
    ],
)
def test_rules_that_contradict_each_other_are_a_fault_of_their_author(rules: list[Rule], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        import_state(rules, their_state())
    assert not isinstance(caught.value, UserError)


def test_a_wanted_tensor_that_no_rule_makes_is_a_fault_of_their_author() -> None:
    like = outline_of(import_state(RULES, their_state()))
    with pytest.raises(ValueError, match="no rule makes forgotten") as caught:
        import_state(RULES, their_state(), {**like, "forgotten": torch.zeros(1)})
    assert not isinstance(caught.value, UserError)
    with pytest.raises(ValueError, match=r"rules do not fit what they should make: shape of b.0.qk"):
        import_state(RULES, their_state(), {**like, "b.0.qk": torch.zeros(3, 3)})


# --- one at a time


class CountingReader(Mapping[str, Tensor]):
    """Reads a new tensor whenever it is asked for one, and counts the numbers of those that are still held."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes
        self.held = self.peak = self.total = 0

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.zeros(self.shapes[name])
        size = tensor.numel()
        self.held += size
        self.total += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(tensor.untyped_storage(), self._release, size)
        return tensor

    def _release(self, size: int) -> None:
        self.held -= size

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def test_nothing_is_held_beyond_the_result_and_the_sources_of_one_rule() -> None:
    num_blocks, size = 20, 50
    shapes = {f"l.{i}.{part}": (size,) for i in range(num_blocks) for part in "qkvo"} | {f"l.{i}.wide": (2 * size,) for i in range(num_blocks)}
    reader = CountingReader(shapes)
    rules = [Stack([f"l.{{i}}.{part}" for part in "qkv"], "b.{i}.qkv"), Rename("l.{i}.o", "b.{i}.out"), Split("l.{i}.wide", ["b.{i}.m", "b.{i}.n"])]
    translation = translate(rules, reader, "ours")
    gc.collect()
    assert (reader.held, reader.total, reader.peak) == (0, num_blocks * 6 * size, 2 * size)  # planning looks at one tensor after the other
    reader.peak = 0
    result = {}
    for name, tensor in translation.tensors():
        result[name] = tensor
        passed_on = sum(tensor.numel() for name, tensor in result.items() if name.endswith("out"))  # renamed only: the source is the result
        assert 0 <= reader.held - passed_on <= 3 * size
    assert sum(tensor.numel() for tensor in result.values()) == num_blocks * 6 * size
    assert reader.total == 2 * num_blocks * 6 * size

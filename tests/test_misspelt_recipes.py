"""Every key and every component's name of every shipped recipe, misspelt: refused with the right name and the line where it stands.

A slip leaves a letter out, doubles one or swaps two. By default each distinct place of the recipes gets one slip, in one of the files that write it;
`-m slow` has three slips for each line of each file. Keys that a recipe makes up itself (names of callbacks, of a chain's members) have no right
name: they are looked at apart.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowact import recipe as recipes
from flowact import registry, strict_yaml
from flowact.commands.check import result_of
from flowact.errors import UserError
from flowact.recipe import check_recipe, load_recipe, packaged_folder, packaged_recipes
from flowact.strict_yaml import read_yaml, to_yaml

SEED = 7
FOLDER = packaged_folder()
#: what recipes name themselves
OWN_NAMES = re.compile(r"trainer\.callbacks\.\w+|.*\.corruptor\.init_args\.(members|weights)\.\w+")
#: recipes whose composed whole is misspelt too: one of each stage that has its own arguments
COMPOSED = ("debug/distribution_matching.yaml", "debug/audio_motion.yaml", "debug/lora.yaml")


@dataclass(frozen=True)
class Place:
    """A key, or the name of a component, and where it is written."""

    file: Path
    line: int
    place: str
    word: str
    is_key: bool


def slips(word: str) -> list[str]:
    """What a slip of the finger makes of a word, by kind: a letter left out, doubled, or swapped with the next."""
    kinds = [
        [word[:i] + word[i + 1 :] for i in range(len(word))],
        [word[: i + 1] + word[i:] for i in range(len(word))],
        [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)],
    ]
    return [random.Random(f"{SEED}{word}{kind}").choice(sorted(set(made) - {word, ""})) for kind, made in enumerate(kinds) if set(made) - {word, ""}]


@functools.cache
def text_of(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@functools.cache
def read(file: Path) -> tuple[dict, dict[str, str]]:
    return read_yaml(text_of(file), str(file))


def places_in(file: Path, config: object, origins: dict[str, str]) -> Iterator[Place]:
    for place, where in origins.items():
        key = re.split(r"[.\]]", place)[-1]
        if not key:
            continue
        line = int(where.rpartition(":")[2])
        yield Place(file, line, place, key, True)
        if key == "class_path":
            found = re.search(r"class_path: ([\w.]+)", text_of(file).splitlines()[line - 1] if file.exists() else "")
            name = found[1] if found else ""
            if name:
                yield Place(file, line, place, name.rpartition(".")[2], False)


@functools.cache
def written() -> tuple[Place, ...]:
    """All of them, as the files write them."""
    files = [FOLDER / name for name in packaged_recipes()]
    return tuple(place for file in files for place in places_in(file, *read(file)))


@functools.cache
def sources(name: Path) -> frozenset[Path]:
    """A recipe and its bases."""
    bases = read(name)[0].get("_base_", [])
    found = {name}
    for base in [bases] if isinstance(bases, str) else bases:
        found |= sources((name.parent / base).resolve() if (name.parent / base).is_file() else FOLDER / base)
    return frozenset(found)


@functools.cache
def takers(file: Path) -> tuple[Path, ...]:
    """Whole recipes that a file is part of, those with the fewest bases first."""
    whole = [FOLDER / name for name in packaged_recipes() if not name.rpartition("/")[2].startswith("_")]
    return tuple(sorted((path for path in whole if file in sources(path)), key=lambda path: (len(sources(path)), str(path))))


def misspelt(place: Place, word: str) -> str:
    """The file's text with one word changed."""
    lines = text_of(place.file).splitlines(keepends=True)
    pattern = rf"(?<!\w){re.escape(place.word)}(?=\+?:)" if place.is_key else rf"(?<=[ .]){re.escape(place.word)}(?!\w)"
    lines[place.line - 1], count = re.subn(pattern, word, lines[place.line - 1], count=1)
    assert count == 1, place
    return "".join(lines)


@pytest.fixture
def fast(monkeypatch):
    """Reading a file and accepting arguments are functions of what they get: what was read or accepted once is not looked at again."""
    changed: dict[Path, str] = {}
    accepted: set[tuple] = set()
    real = registry.argument_mistakes

    def read_file(path: Path):
        path = Path(path).resolve()
        if path in changed:
            return read_yaml(changed[path], str(path))
        config, origins = read(path)
        return copy.deepcopy(config), dict(origins)

    def arguments(cls, given, at, names_only=False):
        key = (cls, json.dumps(given, sort_keys=True, default=str), names_only)
        if key in accepted:
            return
        found = list(real(cls, given, at, names_only))
        if not found:
            accepted.add(key)
        yield from found

    monkeypatch.setattr(recipes, "read_yaml_file", read_file)
    monkeypatch.setattr(recipes, "argument_mistakes", arguments)
    monkeypatch.setattr(registry, "argument_mistakes", arguments)
    return changed


def answer(path: Path) -> str | None:
    try:
        check_recipe(load_recipe(path))
    except UserError as error:
        return str(error)
    return None


def wrong_answer(place: Place, word: str, changed: dict[Path, str]) -> str | None:
    """Misspell one word; None when the answer has the right name and the line."""
    changed[place.file.resolve()] = misspelt(place, word)
    message = answer(takers(place.file)[0])
    changed.clear()
    if message is None:
        return f"{place.file.name}:{place.line} {place.place}: {word} was accepted"
    names_it = any(place.word in re.findall(r"\w+", near) for near in re.findall(r"Did you mean ([^?]*)\?", message))
    if names_it and f"{place.file.name}:{place.line})" in message.replace(f"{place.file.name}:{place.line}:", f"{place.file.name}:{place.line})"):
        return None
    return f"{place.file.name}:{place.line} {place.place}: {word} was answered with {message}"


def is_checked(place: Place) -> bool:
    return not (place.is_key and OWN_NAMES.fullmatch(place.place)) and bool(takers(place.file))


def test_each_place_of_the_shipped_recipes_misspelt_once_is_refused_with_the_right_name_and_line(fast):
    distinct: dict[tuple[str, str], list[Place]] = {}
    for place in filter(is_checked, written()):
        distinct.setdefault((place.place, "" if place.is_key else place.word), []).append(place)
    assert len(distinct) > 150
    chosen = [random.Random(f"{SEED}{key}").choice(found) for key, found in distinct.items()]
    slip = [random.Random(f"{SEED}{place}").choice(slips(place.word)) for place in chosen]
    assert [wrong for place, word in zip(chosen, slip, strict=True) if (wrong := wrong_answer(place, word, fast))] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("folder", sorted({Path(name).parts[0] for name in packaged_recipes()}))
def test_every_line_of_the_shipped_recipes_misspelt_in_three_ways_is_refused(fast, folder):
    places = [place for place in written() if is_checked(place) and place.file.relative_to(FOLDER).parts[0] == folder]
    assert places
    assert [wrong for place in places for word in slips(place.word) if (wrong := wrong_answer(place, word, fast))] == []


@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_recipe_as_checkpoints_store_it_is_as_strict(fast, tmp_path, name):
    stored = tmp_path / "recipe.yaml"
    stored.write_text(to_yaml(load_recipe(name).config), encoding="utf-8")
    assert answer(stored) is None
    config, origins = strict_yaml.read_yaml(text_of(stored), str(stored))
    places = [place for place in places_in(stored, config, origins) if not (place.is_key and OWN_NAMES.fullmatch(place.place))]
    wrong = []
    for place in random.Random(SEED).sample(places, 20):
        fast[stored.resolve()] = misspelt(place, slips(place.word)[0])
        message = answer(stored) or ""
        if not (place.word in message and f"recipe.yaml:{place.line}" in message):
            wrong.append((place.place, message))
    assert wrong == []


def test_a_name_of_its_own_is_refused_where_something_refers_to_it(tmp_path):
    """A chain's members are named in `weights` too, and a child changes a base's callback by its name."""
    for key in ("members.gaussian", "weights.gaussian"):
        place = f"model.init_args.corruptor.init_args.{key}"
        (found,) = [p for p in written() if p.place == place]
        root = tmp_path / key
        (root / "quickstart").mkdir(parents=True)
        for file in (FOLDER / "quickstart").glob("*.yaml"):
            (root / "quickstart" / file.name).write_text(text_of(file))
        (root / "quickstart" / found.file.name).write_text(misspelt(found, "guassian"))
        args = type("Args", (), {"keys_only": False, "device": None, "strict": False})()
        error = result_of(str(root / "quickstart" / found.file.name), [], [], args)["error"]
        weights = next(p.line for p in written() if p.place == "model.init_args.corruptor.init_args.weights.gaussian")
        assert error is not None
        assert f"{found.file.name}:{weights})" in error
        assert "Did you mean " + ("guassian" if key.startswith("members") else "gaussian") in error
    child = tmp_path / "child.yaml"
    child.write_text("_base_: quickstart/pretraining.yaml\ntrainer:\n  callbacks:\n    averge: {init_args: {decay: 0.5}}\n")
    with pytest.raises(UserError, match=r"trainer\.callbacks\.averge \(.*child\.yaml:4\): a callback has a class_path\. Did you mean average\?"):
        load_recipe(child)

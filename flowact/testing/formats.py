"""Laws of weight formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowact import registry
from flowact.checkpoints import read_json
from flowact.errors import UserError
from flowact.models.base import Denoiser
from flowact.models.formats import CLASS_NAME, WeightFormat
from flowact.models.rules import Constant
from flowact.models.translation import Translation, export_state, import_state, translate
from flowact.models.weights import build_outline, build_partly, read_folder
from flowact.testing.laws import broken, ensure, refuses, seeded


def check_format(format: WeightFormat, source: Mapping[str, Any] | str | Path, **settings: Any) -> None:
    """The laws of `WeightFormat`.

    Args:
        format: of the other library.
        source: a folder that the library saved (a small network will do), or the content of a config.json; only a folder shows that the rules know
            every tensor of the library's.
        settings: arguments of our denoiser that config.json does not say.
    """
    folder = None if isinstance(source, Mapping) else Path(source)
    config = read_json(folder / "config.json") if folder else dict(source)  # type: ignore[arg-type]
    config.setdefault(CLASS_NAME, format.class_name)
    ensure(format.recognises(config), format, "it recognises its own config.json", str(config[CLASS_NAME]))
    ensure(not format.recognises({**config, CLASS_NAME: "AnotherModel"}), format, "it recognises no other class")
    refuses(lambda: format.complete({**config, "an_unknown_key": 1}), format, "a key of config.json that it does not know is refused")

    complete = json.loads(json.dumps(format.complete(config)))
    spec = format.denoiser_spec(config, **settings)
    exported = json.loads(json.dumps(format.exported_config(json.loads(json.dumps(spec)))))
    before, after = set(_items(complete)), {item for item in _items(exported) if not item[0].startswith("_")}
    changed = ", ".join(f"{key}: {complete.get(key)!r} became {exported.get(key)!r}" for key in sorted({key for key, _ in before ^ after}))
    ensure(not changed, format, "config.json that is imported and exported says the same", changed)

    def build() -> Denoiser:
        return registry.instantiate(spec, "denoisers")

    known, added = format.divide(build_outline(build))
    _check_additions(format, build_partly(build, added.__contains__))
    made = [name for name in added if any(template.match(name) for rule in format.rules(complete) for template in rule.ours)]
    ensure(not made, format, "no rule makes a tensor of an addition", ", ".join(made))
    theirs = _check_rules(format, complete, known)
    if folder is not None:
        try:
            translate(format.rules(complete), read_folder(folder), "ours", known)
        except UserError as error:
            broken(format, "the rules know every tensor that the library writes", str(error))
    constants = {rule.theirs[0].text: rule.value for rule in format.rules(complete) if isinstance(rule, Constant)}
    for number_type in (torch.float32, torch.bfloat16):
        ours = _random_state(known, number_type)
        again = import_state(format.rules(complete), export_state(format.rules(complete), ours), known)
        _ensure_equal(format, ours, again, "ours to theirs and back is exact")
        other = {**_random_state(theirs.outline, number_type), **constants}
        again = export_state(format.rules(complete), import_state(format.rules(complete), other, known))
        _ensure_equal(format, other, again, "theirs to ours and back is exact")


def _items(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, json.dumps(value)) for key, value in config.items()]


def _check_additions(format: WeightFormat, fresh: Mapping[str, Tensor]) -> None:
    for name, tensors in format.by_addition(fresh).items():
        ensure(tensors, format, "every addition is there", name)
    silent = [addition.name for addition in format.additions if addition.is_silent(fresh)]
    ensure(len(silent) == len(format.additions), format, "a new addition has no effect: it has gates and they are zero", f"only {silent} have none")
    held = [name for tensors in format.by_addition(fresh).values() for name in tensors]
    ensure(len(held) == len(set(held)), format, "a tensor belongs to one addition")


def _check_rules(format: WeightFormat, complete: Mapping[str, Any], known: Mapping[str, Tensor]) -> Translation:
    try:
        return translate(format.rules(complete), known, "theirs")
    except ValueError as error:
        broken(format, "one rule for each tensor of ours that is no addition", str(error))


def _random_state(outline: Mapping[str, Tensor], number_type: torch.dtype) -> dict[str, Tensor]:
    state = {}
    for seed, (name, tensor) in enumerate(outline.items()):
        values = torch.randn(tensor.shape, generator=seeded(seed))
        state[name] = values.to(number_type) if tensor.is_floating_point() else (100 * values).to(tensor.dtype)
    return state


def _ensure_equal(format: WeightFormat, before: Mapping[str, Tensor], after: Mapping[str, Tensor], law: str) -> None:
    ensure(before.keys() == after.keys(), format, law, f"tensors on one side only: {sorted(before.keys() ^ after.keys())}")
    for name in before:
        ensure(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), format, law, name)

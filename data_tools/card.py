"""The dataset card: README.md with a front matter by which `datasets.load_dataset(FOLDER)` finds the shards and the types of their members."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_tools.manifest import describe_dataset, read_clips
from flowact.data.rights import UNKNOWN
from flowact.data.schema import read_dataset, write_atomically

CARD_FILE = "README.md"
MARKER = "written by flowact-data, and anew when the dataset changes; remove this line to keep what you edit"
#: splits as the Hugging Face hub calls them
PUBLIC_SPLITS = {"val": "validation"}
#: member -> its type for `datasets`; KEY.json holds lists of mixed types, which no table can infer
FEATURES: dict[str, Any] = {
    "json": "json",
    "mp4": "binary",
    "wav": "binary",
    "ref.png": "image",
    "txt": "string",
    "states.npy": ["uint8"],
    "boxes.npy": [[["float32"]]],
    "truth.npy": [["float32"]],
}
#: SPDX names of licences -> as the hub spells them
HUB_LICENSES = {
    "apache-2.0": "apache-2.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc0-1.0": "cc0-1.0",
    "mit": "mit",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))


def write_card(root: Path, changes: bool = True) -> Path:
    """Write README.md of a dataset.

    Args:
        root: of the dataset.
        changes: name what was edited since it was made.

    Raises:
        UserError: a shard can not be read.
    """
    path = root / CARD_FILE
    write_atomically(path, render(root, changes).encode())
    return path


def is_ours(path: Path) -> bool:
    """Whether a card is there that may be written anew."""
    return path.is_file() and MARKER in path.read_text(encoding="utf-8", errors="replace")


def render(root: Path, changes: bool = True) -> str:
    """The card's text, a function of the dataset."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    info, numbers = read_dataset(root), describe_dataset(root)
    tools, members = Counter[str](), dict[str, None]()
    for clip in read_clips(root):
        tools[_maker(clip.metadata)] += 1
        members.update(dict.fromkeys(clip.members))
    licenses, consents = (_total(numbers, name) for name in ("licenses", "consents"))
    license_, license_name = _front_license(licenses)
    splits = [_split(name, split) for name, split in sorted(numbers["splits"].items())]
    states = sorted({state for split in numbers["splits"].values() for state in split["states"]})
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    history = json.loads((root / "work" / "changes.json").read_bytes()) if changes and (root / "work" / "changes.json").is_file() else []
    people = Counter(name for split in numbers["splits"].values() for name in split["seconds_of_identity"])
    return environment.get_template("card.md.j2").render(
        name=info.name,
        front_license=license_,
        license_name=license_name,
        size_category=next((label for bound, label in _SIZES if sum(licenses.values()) < bound), "n>10M"),
        splits=splits,
        features=_feature_lines(members),
        clips=sum(licenses.values()),
        hours=round(sum(split["hours"] for split in numbers["splits"].values()), 2),
        identities=len(people),
        shared=[_cell(name) for name, count in sorted(people.items()) if count > 1 and info.split_by == "person"],
        fps=info.fps,
        sample_rate=info.sample_rate,
        samples_per_frame=info.samples_per_frame,
        states=[
            {"name": state, "shares": [f"{split['states'].get(state, 0):.0%}" for _, split in sorted(numbers["splits"].items())]} for state in states
        ],
        unknown_license=licenses[UNKNOWN],
        unknown_consent=consents[UNKNOWN],
        licenses=[(_cell(name), count) for name, count in sorted(licenses.items())],
        consents=[(_cell(name), count) for name, count in sorted(consents.items())],
        tools=[f"{count} clips by {tool}" for tool, count in sorted(tools.items())],
        character=str(info.character["class_path"]).rpartition(".")[2] if info.character else None,
        changes=[_cell(json.dumps(entry, ensure_ascii=False)) for entry in history],
        columns=sorted(info.columns),
        members=[f"`.{suffix}`" for suffix in sorted(members)],
        marker=MARKER,
    )


def _split(name: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    shards = sorted(numbers["shards"])
    whole = shards == [f"{number:06d}.tar" for number in range(len(shards))] and len(shards) > 1
    return {
        "name": name,
        "public": PUBLIC_SPLITS.get(name, name),
        "clips": numbers["clips"],
        "excluded": numbers["excluded"],
        "hours": numbers["hours"],
        "people": len(numbers["seconds_of_identity"]),
        "shards": len(shards),
        "megabytes": round(numbers["bytes"] / 1e6, 1),
        "pattern": f"{name}/" + (f"{{000000..{len(shards) - 1:06d}}}.tar" if whole else shards[0]),
    }


def _feature_lines(members: Mapping[str, None]) -> list[str]:
    """Entries of `dataset_info.features`, for the members that the shards have."""
    lines: list[str] = []
    for suffix in sorted(members):
        kind, keys = FEATURES.get(suffix, "binary"), [f"  - name: {suffix}"]
        indent = "    "
        while isinstance(kind, list) and isinstance(kind[0], list):
            keys.append(f"{indent}list:")
            indent, kind = indent + "  ", kind[0]
        keys.append(f"{indent}list: {kind[0]}" if isinstance(kind, list) else f"{indent}dtype: {kind}")
        lines += keys
    return [*lines, "  - name: __key__", "    dtype: string", "  - name: __url__", "    dtype: string"]


def _maker(metadata: Mapping[str, Any]) -> str:
    tool = metadata.get("tool") or {}
    return f"{tool.get('name', 'flowact-data')} {tool['version']}, recipe {tool.get('recipe', '?')}" if tool.get("version") else "flowact-data pack"


def _total(numbers: Mapping[str, Any], name: str) -> Counter[str]:
    total = Counter[str]()
    for split in numbers["splits"].values():
        total.update(split[name])
    return total


def _front_license(licenses: Mapping[str, int]) -> tuple[str, str | None]:
    """(`license`, `license_name`) of the front matter: one of the hub's names, else 'other'; 'unknown' as soon as one clip states none."""
    if UNKNOWN in licenses:
        return UNKNOWN, None
    names = sorted(licenses)
    if len(names) == 1 and names[0].lower() in HUB_LICENSES:
        return HUB_LICENSES[names[0].lower()], None
    return "other", ", ".join(names)[:200]


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.replace("|", "\\|").replace("`", "'").split())

"""The model card of an export: README.md with the front matter that hosts of models read, made of what the checkpoint says about itself.

The front matter is that of the Hugging Face hub. It is written here and not by `huggingface_hub`, which is no requirement of ours; a test reads it
with that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from flowact.data.rights import UNKNOWN, total, trained_on
from flowact.evaluation.comparison import compared_stages
from flowact.sampling.pipeline import FEW_STEP_STAGES, trained_staircase
from flowact.strict_yaml import to_yaml
from flowact.types import FRAMES_PER_SECOND

CARD = "README.md"
TEMPLATES = Path(__file__).parents[1] / "templates"
#: licences that the hub knows by these names
HUB_LICENSES = frozenset({
    "afl-3.0", "apache-2.0", "artistic-2.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc",
    "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0", "epl-1.0",
    "epl-2.0", "eupl-1.1", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2",
    "llama3", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "unlicense",
    "wtfpl", "zlib", "other", "unknown",
})  # fmt: skip
FORMS = {
    "checkpoint": "a checkpoint folder",
    "diffusers": "a folder in the layout of diffusers",
    "peft": "a LoRA for peft",
    "comfyui": "a LoRA for ComfyUI",
}


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        name: of the export.
        report: of the export: `out`, `format`, `layers`, `whole`, `keys`, `difference`, `output_difference`, `parameters`.
        recipe: the resolved recipe.
        lineage: of what was exported, with its ancestors.
        autoencoder_lineage: of the autoencoder that travels with it; None where it is unknown.
        metrics: the content of a metrics.json, or None.
        pictures: (file in the export, what it shows).
        license: of the model, as its owner says; None takes what its data state.
        base_model: name of the base on a hub, or None.
        needs: distributions besides flowact that are needed to use it.
        elsewhere: (class, folder) of parts that do not travel with it.
        library: library and class of the network in the layout of diffusers, where that library knows it.
        additions: number of tensors that this library does not know.
        eight_bit: whether weights were rounded to eight bits.
        picture_size: height and width in pixels of what it makes; None where it is unknown.
    """

    name: str
    report: Mapping[str, Any]
    recipe: Mapping[str, Any]
    lineage: Mapping[str, Any]
    autoencoder_lineage: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    pictures: Sequence[tuple[str, str]] = ()
    license: str | None = None
    base_model: str | None = None
    needs: Sequence[str] = ()
    elsewhere: Sequence[tuple[str, str]] = ()
    library: tuple[str, str] | None = None
    additions: int = 0
    eight_bit: bool = False
    picture_size: tuple[int, int] | None = None

    @property
    def is_lora(self) -> bool:
        return self.report["format"] in ("peft", "comfyui")

    @property
    def stages(self) -> list[dict[str, Any]]:
        """Everything that was trained on, oldest first, the autoencoder's stage before the others."""
        first = [] if self.autoencoder_lineage is None else trained_on(self.autoencoder_lineage)
        return [*first, *trained_on(self.lineage)]

    @property
    def sets(self) -> list[dict[str, Any]]:
        """Data sets of all stages."""
        return [entry for stage in self.stages for entry in stage["training_data"] or ()]


def write_card(folder: Path, facts: CardFacts) -> Path:
    """Write README.md into a folder."""
    path = folder / CARD
    path.write_text(render_card(facts), encoding="utf-8")
    return path


def render_card(facts: CardFacts) -> str:
    """The card as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["cell"] = cell
    lineage, sets, stages = facts.lineage, facts.sets, facts.stages
    licenses, consents = total(sets, "licenses"), total(sets, "consents")
    own = {stage.get("stage") for stage in [lineage, *lineage.get("ancestors", ())]}
    height, width = facts.picture_size or (0, 0)
    text = environment.get_template("model_card.md.j2").render(
        front=front_matter(facts).rstrip("\n"),
        name=facts.name,
        form=facts.report["format"],
        form_text=FORMS[facts.report["format"]],
        denoiser=_denoiser(facts.recipe),
        parameters=_parameters(facts.report.get("parameters", 0)),
        is_lora=facts.is_lora,
        report=facts.report,
        size=f"{width}x{height}" if height else "",
        fps=lineage.get("fps", FRAMES_PER_SECOND),
        chunk=lineage.get("chunk_frames"),
        evaluations=trained_staircase(lineage, {}).evaluations_per_chunk,
        distilled=bool(own & FEW_STEP_STAGES),
        pictures=facts.pictures,
        needs=facts.needs,
        elsewhere=facts.elsewhere,
        library=facts.library,
        additions=facts.additions,
        eight_bit=facts.eight_bit,
        base=lineage.get("base"),
        stages=stages,
        silent_stages=[stage["stage"] for stage in stages if stage["training_data"] is None],
        licenses=licenses,
        consents=consents,
        unknown_licenses=licenses.get(UNKNOWN, 0),
        unknown_consents=consents.get(UNKNOWN, 0),
        clips=sum(licenses.values()),
        owner_license=facts.license,
        front_unknown=front_license(facts)[0] == UNKNOWN,
        people=max((int(entry.get("people") or 0) for entry in sets), default=0),
        characters=sorted({str(entry["character"]) for entry in sets if entry.get("character")}),
        only_synthetic=bool(sets) and all(entry.get("character") for entry in sets) and not any(stage["training_data"] is None for stage in stages),
        ancestry=_ancestry(lineage),
        versions=lineage.get("versions") or {},
        git=_git(lineage),
        metrics=_metrics(facts.metrics),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def front_matter(facts: CardFacts) -> str:
    """YAML between the dashes: what hosts of models sort and filter by."""
    license_, license_name = front_license(facts)
    front: dict[str, Any] = {"license": license_}
    if license_name:
        front["license_name"] = license_name
    front["library_name"] = "peft" if facts.report["format"] == "peft" else "flowact"
    front["pipeline_tag"] = "image-to-video"
    if facts.base_model:
        front |= {"base_model": facts.base_model, "base_model_relation": "adapter" if facts.is_lora else "finetune"}
    front["tags"] = ["flowact", "talking-head", "avatar", "audio-driven", "streaming", *(["lora"] if facts.is_lora else [])]
    return to_yaml(front)


def front_license(facts: CardFacts) -> tuple[str, str | None]:
    """(`license`, `license_name`): the owner's word, else what all data state, else 'other' with their names; 'unknown' where some state none."""
    if facts.license is not None:
        return _hub_license(facts.license)
    licenses = total(facts.sets, "licenses")
    if not licenses or UNKNOWN in licenses or any(stage["training_data"] is None for stage in facts.stages):
        return UNKNOWN, None
    names = sorted(licenses)
    return _hub_license(names[0]) if len(names) == 1 else ("other", ", ".join(names)[:200])


def _hub_license(name: str) -> tuple[str, str | None]:
    known = name.strip().lower()
    return (known, None) if known in HUB_LICENSES else ("other", name.strip()[:200])


def cell(text: object) -> str:
    """Text that stays in its cell of a table and is no markup."""
    return " ".join(str(text).replace("|", "\\|").replace("`", "'").replace("<", "&lt;").split())


def _denoiser(recipe: Mapping[str, Any]) -> str:
    spec = ((recipe.get("model") or {}).get("init_args") or {}).get("denoiser") or {}
    return str(spec.get("class_path", "network")).rpartition(".")[2]


def _parameters(number: int) -> str:
    for bound, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= bound:
            return f"{number / bound:.1f} {unit}"
    return str(number)


def _ancestry(lineage: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for stage in [*lineage.get("ancestors", ()), lineage]:
        sha = stage.get("weights_sha256") or (stage.get("merged_from") or {}).get("weights_sha256") or ""
        rows.append({"stage": str(stage.get("stage")), "step": str(stage.get("step")), "sha": str(sha)[:12]})
    return rows


def _git(lineage: Mapping[str, Any]) -> list[str]:
    states = lineage.get("git") or {}
    return [
        f"{name.replace('_', ' ')} at {str(state.get('commit'))[:12]}" + (" with changes" if state.get("dirty") else "")
        for name, state in states.items()
        if isinstance(state, Mapping) and state.get("commit")
    ]


def _metrics(metrics: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Columns, rows and remarks of the table of measurements."""
    return None if not metrics else compared_stages(metrics)

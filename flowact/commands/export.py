"""`flowact export`: a checkpoint for others, with a model card: merged weights, a folder in diffusers' layout, or its LoRA for peft or ComfyUI."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowact.commands.lora import print_report, progress_of
from flowact.errors import UserError
from flowact.shipped import named_folder

if TYPE_CHECKING:
    from flowact.checkpoints import Checkpoint
    from flowact.evaluation import HeldOut
    from flowact.models.lora_files import ExportReport
    from flowact.sampling.pipeline import Pipeline

#: larger networks are not streamed for their card unless they are told to: on a CPU it would take hours
SMALL_NETWORK = 50_000_000
#: of the streams on a card
SECONDS, PEOPLE = 4, 4
PICTURES = "pictures"
#: what pictures show that `flowact evaluate --sheets` writes
CAPTIONS = {"before-after": "The same held-out clips before and after the training, and what they should show"}
PICTURE_TYPES = (".png", ".jpg", ".jpeg", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to write, how, and where to; and what its card tells."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, or the name of a model that comes with FlowAct, such as puppet")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; it must not exist yet")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--merge", action="store_true", help="a checkpoint of all weights, which needs no base")
    what.add_argument("--diffusers", action="store_true", help="the same as a folder in the layout of diffusers, which FlowAct reads too")
    what.add_argument("--lora", choices=("peft", "comfyui"), help="the LoRA: a folder that peft loads, or lora.safetensors with the names of ComfyUI")
    parser.add_argument("--base", metavar="DIR", help="where the base of the LoRA is now, if it was moved")
    parser.add_argument(
        "--add", metavar="PATH", help="with --merge or --diffusers: merge this LoRA too, a folder for peft or ComfyUI or a .safetensors file"
    )
    parser.add_argument("--eight-bit", action="store_true", help="with --merge: a quarter of the bytes; weights are rounded to 8 bits a number")
    parser.add_argument("--trained", action="store_true", help="the trained weights, not their moving average")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    card = parser.add_argument_group("model card")
    card.add_argument("--metrics", metavar="FILE", help="metrics.json of `flowact evaluate`, best with --before: its figures go into the card")
    card.add_argument(
        "--pictures", nargs="+", default=[], metavar="FILE", help="pictures for the card, or folders of them, such as those of --sheets"
    )
    card.add_argument(
        "--shards",
        metavar="SPEC",
        help="stream clips of these through what was written, and put stills and a clip into the card "
        "(default for small networks: the validation set of the recipe, where every clip states consent)",
    )
    card.add_argument("--no-stream", action="store_true", help="stream nothing for the card")
    card.add_argument("--device", default="cpu", help="where to stream for the card (default: %(default)s)")
    card.add_argument("--license", metavar="NAME", help="of the model, such as apache-2.0 (default: what all training data state)")
    card.add_argument("--base-model", metavar="ID", help="name of the base model on a hub, for the card's front matter")


@dataclass(frozen=True)
class CardWishes:
    """What the command line says about the card, checked.

    Attributes:
        metrics: content of the metrics file, or None.
        pictures: files to show.
        shards: clips to stream; None takes those of the recipe, if that is quick and allowed.
        stream: whether to stream at all.
        device: where to stream.
        license: of the model, or None.
        base_model: name on a hub, or None.
        base: where the base of a LoRA is, or None.
    """

    metrics: dict[str, Any] | None
    pictures: tuple[Path, ...]
    shards: str | None
    stream: bool
    device: str
    license: str | None
    base_model: str | None
    base: str | None


def run(args: argparse.Namespace) -> int:
    """Write, read back, compare, and only then put it in its place.

    Raises:
        UserError: options that do not go together, a place that is taken, a base that is missing, or keys that do not match.
    """
    if args.add and args.lora:
        raise UserError(f"--add {args.add} merges a LoRA into all weights, so it goes with --merge or --diffusers")
    if args.eight_bit and not args.merge:
        raise UserError("--eight-bit rounds all weights, so it goes with --merge")
    wishes = card_wishes(args)
    from flowact.checkpoints import open_checkpoint
    from flowact.models.lora_files import check_free, export_lora, export_merged

    check_free(args.out)
    say = progress_of(args)
    checkpoint = open_checkpoint(named_folder(args.checkpoint))
    say(f"read {args.checkpoint}: {'a LoRA' if checkpoint.is_lora else 'all weights'} of stage {checkpoint.lineage['stage']}, step {checkpoint.step}")

    def finish(folder: Path, report: ExportReport) -> None:
        add_card(folder, report, checkpoint, wishes, args.eight_bit, say)

    if args.merge:
        report = export_merged(checkpoint, args.out, args.base, args.add, not args.trained, say, args.eight_bit, finish)
    elif args.diffusers:
        from flowact.models.diffusers_folder import export_diffusers
        from flowact.sampling.pipeline import trained_shift

        shift = trained_shift(checkpoint.stage_arguments)
        report = export_diffusers(checkpoint, args.out, args.base, args.add, not args.trained, shift, say, finish)
    else:
        report = export_lora(checkpoint, args.out, args.lora, args.base, not args.trained, say, finish)
    print_report(report, args)
    return 0


def card_wishes(args: argparse.Namespace) -> CardWishes:
    """What the card shall tell.

    Raises:
        UserError: a file that is not there or is no picture, metrics that are none, or options that contradict each other.
    """
    from flowact.evaluation.metrics_file import read_metrics

    if args.metrics and not Path(args.metrics).is_file():
        raise UserError(f"--metrics {args.metrics}: there is no such file; write it with `flowact evaluate --out FILE`")
    if args.shards and args.no_stream:
        raise UserError("--shards names clips to stream and --no-stream streams none; leave out one of them")
    pictures: list[Path] = []
    for name in args.pictures:
        path = Path(name)
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURE_TYPES) if path.is_dir() else [path]
        for file in found:
            if not file.is_file() or file.suffix.lower() not in PICTURE_TYPES:
                raise UserError(
                    f"--pictures {file}: {'is no picture' if file.is_file() else 'there is no such file'}; give {', '.join(PICTURE_TYPES)}"
                )
        pictures += found
    if len({path.name for path in pictures}) < len(pictures):
        raise UserError("--pictures: two files have one name, and so would their copies; rename one")
    metrics = read_metrics(args.metrics) if args.metrics else None
    return CardWishes(
        metrics, tuple(pictures), args.shards, not args.no_stream, args.device, args.license, args.base_model, args.base
    )  # fmt: skip


def add_card(folder: Path, report: ExportReport, checkpoint: Checkpoint, wishes: CardWishes, eight_bit: bool, say: Callable[[str], None]) -> None:
    """Stream what was written, where that was wished or is quick, and write its model card.

    Args:
        folder: as written and compared.
        report: of that.
        checkpoint: the source.
        wishes: of the command line.
        eight_bit: whether weights were rounded.
        say: gets lines of progress.
    """
    import dataclasses
    import shutil

    from flowact.checkpoints import read_json
    from flowact.evaluation.card import CardFacts, write_card

    lineage = read_json(folder / "lineage.json")
    sizes, shown = picture_size(checkpoint), []
    for path in wishes.pictures:
        (folder / PICTURES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / PICTURES / path.name)
        shown.append((f"{PICTURES}/{path.name}", CAPTIONS.get(path.stem, path.stem.replace("_", " ").replace("-", ", "))))
    shown = stream_pictures(folder, report, checkpoint, wishes, say) + shown
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    library, cls = index.get("transformer", ("flowact", ""))
    facts = CardFacts(
        name=Path(report.out).name,
        report=dataclasses.asdict(report),
        recipe=checkpoint.recipe,
        lineage=lineage,
        autoencoder_lineage=autoencoder_lineage(checkpoint),
        metrics=wishes.metrics,
        pictures=shown,
        license=wishes.license,
        base_model=wishes.base_model,
        needs=needed_distributions(checkpoint),
        elsewhere=[
            (str(spec["class_path"]).rpartition(".")[2], str(spec["init_args"]["path"]))
            for spec in (lineage.get("encoders") or {}).values()
            if (spec.get("init_args") or {}).get("path")
        ],
        library=None if library == "flowact" else (library, cls),
        additions=count_additions(folder),
        eight_bit=eight_bit,
        picture_size=sizes,
    )
    write_card(folder, facts)
    say(f"wrote the model card, with {len(shown)} picture{'' if len(shown) == 1 else 's'}")


def picture_size(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Height and width in pixels of what a checkpoint makes; None where it does not say."""
    shape = checkpoint.lineage.get("latent_shape")
    if not shape or checkpoint.autoencoder is None:
        return None
    from flowact.autoencoders import load_autoencoder

    stride = load_autoencoder(checkpoint.autoencoder).spatial_stride
    return int(shape[1]) * stride, int(shape[2]) * stride


def autoencoder_lineage(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the autoencoder of a checkpoint says about itself."""
    from flowact.checkpoints import read_json

    path = None if checkpoint.autoencoder is None else checkpoint.autoencoder / "lineage.json"
    return read_json(path) if path is not None and path.is_file() else None


def count_additions(folder: Path) -> int:
    """Tensors beside those that another library knows."""
    from flowact.checkpoints import ADDITIONS
    from flowact.models.weights import tensor_names

    path = folder / "transformer" / ADDITIONS
    return len(tensor_names(path)) if path.is_file() else 0


def needed_distributions(checkpoint: Checkpoint) -> list[str]:
    """Plugins without which the model can not be built."""
    from flowact import registry

    lineage, arguments = checkpoint.lineage, checkpoint.stage_arguments
    parts = [arguments["denoiser"], arguments.get("memory"), lineage.get("autoencoder"), *(lineage.get("encoders") or {}).values()]
    found = set()
    for _, spec in registry.specs([part for part in parts if part]):
        component = registry.resolve(str(spec["class_path"]))
        if component.version:  # a plugin file has none, and travels with the recipe's author
            found.add(component.distribution)
    return sorted(found - {"flowact"})


# --- pictures


def stream_pictures(
    folder: Path, report: ExportReport, checkpoint: Checkpoint, wishes: CardWishes, say: Callable[[str], None]
) -> list[tuple[str, str]]:
    """Stills, and a clip with sound, of what the written folder streams: (file, what it shows); empty where nothing is streamed.

    Raises:
        UserError: shards that were named and can not be read.
    """
    spec = wishes.shards or (default_shards(report, checkpoint, say) if wishes.stream else None)
    if spec is None:
        return []
    from flowact.evaluation import read_held_out
    from flowact.sampling.pipeline import Pipeline, steps_to_stream

    try:
        held_out = read_held_out(spec, limit=PEOPLE)
    except UserError as error:
        if wishes.shards:
            raise
        say(f"no pictures for the card: {error}")
        return []
    is_lora = report.format in ("peft", "comfyui")
    streamed = checkpoint.base(wishes.base).path if is_lora else folder
    micro_steps, _ = steps_to_stream(checkpoint.path, None)
    pipeline = Pipeline.from_checkpoint(streamed, wishes.device, micro_steps, loras=[folder] if is_lora else ())
    say(f"streaming {len(held_out.clips)} clips of {spec} through what was written")
    return write_stream(folder / PICTURES, pipeline, held_out)


def default_shards(report: ExportReport, checkpoint: Checkpoint, say: Callable[[str], None]) -> str | None:
    """The validation set that the recipe names, if it is still there, the network is small, and every clip of it states consent."""
    from flowact.data import open_split
    from flowact.data.rights import UNKNOWN, count_rights

    hint = "name clips with --shards, or pictures with --pictures"
    given: Any = ((checkpoint.recipe.get("data") or {}).get("init_args") or {}).get("val")
    first: Any = given[0] if isinstance(given, list) and given else given
    spec = first.get("folder") if isinstance(first, dict) else first
    if not isinstance(spec, str) or not Path(spec).is_dir():
        say(f"no stream for the card: the recipe's validation set is not here; {hint}")
        return None
    if report.parameters > SMALL_NETWORK:
        say(f"no stream for the card: {report.parameters:,} parameters may take long; {hint}")
        return None
    try:
        rights = count_rights(open_split(spec))
    except UserError as error:
        say(f"no stream for the card: {error}")
        return None
    if rights.consents.get(UNKNOWN):
        say(f"no stream for the card: {rights.consents[UNKNOWN]} of {rights.clips} clips of {spec} state no consent to be shown; {hint}")
        return None
    return spec


def write_stream(folder: Path, pipeline: Pipeline, held_out: HeldOut) -> list[tuple[str, str]]:
    """Stream the first seconds of clips; write stream.png and stream.mp4 into a folder."""
    from flowact.evaluation.pictures import identity_sheet
    from flowact.types import FRAMES_PER_SECOND
    from flowact.writers.mp4 import Mp4Writer

    clips = [clip.cut(min(clip.num_frames, SECONDS * FRAMES_PER_SECOND + 1)) for clip in held_out.clips]
    made = pipeline.generate([clip.reference_CHW() for clip in clips], [clip.heard() for clip in clips], [clip.prompts() for clip in clips])
    shown = [clip.against(frames) for clip, frames in zip(clips, made.frames, strict=True)]
    folder.mkdir(exist_ok=True)
    identity_sheet(shown, held_out.references, seconds=range(1, SECONDS + 1), num_clips=PEOPLE).save(folder / "stream.png")
    height, width = shown[0].frames_THWC.shape[1:3]
    with Mp4Writer(folder / "stream.mp4", width, height, scale=max(1, 384 // height), filter="nearest") as writer:
        writer.write(shown[0].frames_THWC, shown[0].samples)
    return [(f"{PICTURES}/stream.png", "Reference pictures of held-out clips, and what it streamed for their speech")]

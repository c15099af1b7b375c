"""`flowact-data encode latents|audio|text|all DATASET`: features of every clip as columns beside the shards.

A column is a folder named after its encoder and the hash of everything that decides the features, with the same shard numbers, keys and order as the
shards. So features of another encoder land in another folder, and what is finished is never made again.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_tools.footage import from_png
from data_tools.workplace import check_room, locked, progress, remove_unfinished, work
from flowact import registry
from flowact.autoencoders import SPEC, WEIGHTS, Autoencoder, latent_space, load_autoencoder
from flowact.conditioning.base import AudioEncoder, TextEncoder
from flowact.data.media import decode_sound, decode_video
from flowact.data.references import reference_frames
from flowact.data.schema import (
    COLUMN_FILE,
    COLUMNS,
    COLUMNS_FOLDER,
    ColumnInfo,
    check_metadata,
    column_folder_name,
    parse_captions,
    read_column,
    read_dataset,
    write_column,
    write_dataset,
)
from flowact.data.shards import (
    ClipRef,
    Shard,
    ShardReader,
    ShardWriter,
    Split,
    decode,
    encode_array,
    file_sha256,
    open_shard,
    open_split,
    split_folders,
)
from flowact.errors import UserError, did_you_mean
from flowact.strict_yaml import read_yaml
from flowact.types import SAMPLE_RATE

DEFAULT_ENCODERS = {"audio": "LogMel", "text": "HashedText"}
BASES = {"audio": AudioEncoder, "text": TextEncoder}
AUTOENCODER_FOLDER = "autoencoder"
_UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Recipe:
    """What decides a column.

    Attributes:
        column: latents, audio or text.
        spec: {class_path, init_args} of the encoder.
        hash: of the spec, and of the weights for an autoencoder.
        autoencoder: folder of the autoencoder; latents only.
        weights_sha256: likewise.
        references: candidate reference pictures of a clip; latents only.
        device: to encode on.
        precision: arithmetic of the autoencoder; what is stored is float16 either way.
    """

    column: str
    spec: dict[str, Any]
    hash: str
    autoencoder: Path | None = None
    weights_sha256: str | None = None
    references: int = 1
    device: str = "cpu"
    precision: str = "fp32"

    @property
    def folder_name(self) -> str:
        return column_folder_name(self.column, self.spec, self.hash)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `flowact-data encode`."""
    parser.add_argument("column", choices=(*COLUMNS, "all"), help="what to encode")
    parser.add_argument("dataset", type=Path, help="folder with dataset.yaml and the shards")
    parser.add_argument("--autoencoder", type=Path, help=f"folder with {WEIGHTS} and {SPEC}; needed for latents")
    parser.add_argument("--encoder", nargs="+", metavar=("NAME", "KEY=VALUE"), help="encoder of the one column, e.g. --encoder LogMel num_mels=40")
    parser.add_argument("--audio-encoder", nargs="+", metavar=("NAME", "KEY=VALUE"), help=f"with all (default: {DEFAULT_ENCODERS['audio']})")
    parser.add_argument("--text-encoder", nargs="+", metavar=("NAME", "KEY=VALUE"), help=f"with all (default: {DEFAULT_ENCODERS['text']})")
    parser.add_argument("--references", type=int, default=4, help="candidate reference pictures of a clip, its own first (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="arithmetic of the autoencoder (default: %(default)s)")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the columns as JSON")


def run(args: argparse.Namespace) -> int:
    """Encode what is missing.

    Raises:
        UserError: no dataset, no encoder of that name, a folder of another encoder, or a clip that can not be encoded.
    """
    info = read_dataset(args.dataset)
    folders = split_folders(args.dataset)
    if not folders:
        raise UserError(f"{args.dataset} has no splits with shards")
    if args.encoder and args.column not in BASES:
        raise UserError(f"--encoder names one encoder, for audio or text; with {args.column} use --audio-encoder and --text-encoder")
    recipes = [_recipe(column, args) for column in (COLUMNS if args.column == "all" else (args.column,))]
    splits = {folder.name: open_split(folder) for folder in folders}
    made = []
    with locked(args.dataset):
        for recipe in recipes:
            column = encode_column(args.dataset, splits, recipe, args.jobs)
            made.append({"column": recipe.column, "folder": str(column), "hash": recipe.hash, "encoder": recipe.spec})
            names = dict.fromkeys([*info.columns, column.name])
            info = type(info)(**{**vars(info), "columns": tuple(names)})
            write_dataset(args.dataset, info)
    if args.json:
        print(json.dumps(made, indent=1))
    else:
        for entry in made:
            print(f"{entry['column']}: {entry['folder']}")
    return 0


def encode_column(dataset: Path, splits: dict[str, Split], recipe: Recipe, jobs: int) -> Path:
    """Write a column's missing shards, then its column.yaml.

    Raises:
        UserError: the folder is of another encoder, or a clip can not be encoded.
    """
    folder = dataset / COLUMNS_FOLDER / recipe.folder_name
    if (folder / COLUMN_FILE).is_file():
        old = read_column(folder)
        if (old.hash, registry.expand(old.encoder)) != (recipe.hash, registry.expand(recipe.spec)):
            raise UserError(f"{folder} was made by {json.dumps(old.encoder)}, now {json.dumps(recipe.spec)}; columns are not mixed: delete it")
    missing = []
    for name, split in splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder / name)
        extra = {path.name for path in (folder / name).glob("*.tar")} - {path.name for path in split.folder.glob("*.tar")}
        if extra:
            raise UserError(f"{folder / name} has shards that the dataset has not ({min(extra)}); the clips were packed anew: delete the column")
        missing += [shard for shard in split.shards if not _is_finished(folder / name / shard.path.name, shard)]
    if recipe.autoencoder is not None and not (folder / AUTOENCODER_FOLDER / SPEC).is_file():
        _copy_autoencoder(recipe.autoencoder, folder / AUTOENCODER_FOLDER)
    if missing:
        first = next(iter(splits.values()))
        check_room(folder, _estimate(first, recipe, missing), f"the column {folder.name}")
        paths = [shard.path for shard in missing]
        for _ in progress(work(_encode_shard, paths, jobs, _start, (recipe, folder)), len(paths), f"encode {recipe.column}", "shards"):
            pass
    write_column(folder, _describe(folder, splits, recipe))
    return folder


def encoder_spec(words: Sequence[str], column: str) -> dict[str, Any]:
    """The full spec of `NAME key=value ...`: every constructor argument is written down, so that a changed default is another encoder.

    Raises:
        UserError: an unknown encoder or argument, or a word that is no key=value.
    """
    name, *settings = words
    encoder = registry.load(name, "conditioning") if "." not in name else registry.load_class(name)
    base = BASES[column]
    if not issubclass(encoder, base):
        raise UserError(f"{name} is no {base.__name__}, so it can not encode {column}")
    parameters = {key: value for key, value in inspect.signature(encoder).parameters.items() if key != "self"}
    arguments = {key: value.default for key, value in parameters.items() if value.default is not inspect.Parameter.empty}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--encoder {name}: {setting!r} is no KEY=VALUE")
        if key not in parameters:
            raise UserError(f"--encoder {name}: there is no argument {key!r}.{did_you_mean(key, parameters)}")
        arguments[key] = read_yaml(text, f"{name} {key}")[0]
    missing = [key for key in parameters if key not in arguments]
    if missing:
        raise UserError(f"--encoder {name} needs {', '.join(f'{key}=VALUE' for key in missing)}")
    return {"class_path": f"{encoder.__module__}.{encoder.__qualname__}", "init_args": arguments}


def autoencoder_spec(folder: Path) -> tuple[dict[str, Any], str]:
    """({class_path, init_args}, sha256 of the weights) of an autoencoder's folder.

    Raises:
        UserError: not such a folder.
    """
    for name in (SPEC, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; --autoencoder takes the folder that training an autoencoder leaves")
    try:
        values = json.loads((folder / SPEC).read_bytes())
        spec = {"class_path": values["class_path"], "init_args": values.get("init_args", {})}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / SPEC} is damaged ({error!r}); copy the autoencoder again") from error
    return spec, file_sha256(folder / WEIGHTS)


# --- in the processes -----------------------------------------------------------------------------------------------------------------------------

_job: tuple[Recipe, Path] | None = None
_encoder: Any = None


def _start(recipe: Recipe, folder: Path) -> None:
    global _job, _encoder
    _job = (recipe, folder)
    if recipe.autoencoder is not None:
        _encoder = load_autoencoder(recipe.autoencoder).to(recipe.device)
    else:
        _encoder = registry.instantiate(recipe.spec, "conditioning").to(recipe.device)


@torch.inference_mode()
def _encode_shard(path: Path) -> Path:
    assert _job is not None  # set when the process started
    recipe, folder = _job
    shard = open_shard(path)
    shapes: dict[str, tuple[int, ...]] = {}
    with ShardWriter(folder / path.parent.name, max_bytes=_UNBOUNDED, first=int(path.stem)) as writer:
        for sample, entry in enumerate(shard.entries):
            clip = Clip(shard, sample)
            features = _ENCODE[recipe.column](clip, recipe)
            members = {suffix: encode_array(_to_half(feature, clip.where)) for suffix, feature in features.items()}
            for suffix, feature in features.items():
                fixed = _fixed(recipe.column, feature.shape[1:])
                if shapes.setdefault(suffix, fixed) != fixed:
                    raise UserError(f"{clip.where}: {suffix} has shape {fixed}, clips before it {shapes[suffix]}; an encoder has one width")
            writer.write(entry.key, members, clip.frames)
    return path


class Clip:
    """A clip while it is encoded; also one that is excluded, as columns have the keys of the shards."""

    def __init__(self, shard: Shard, sample: int) -> None:
        self._shard, self._sample = shard, sample
        self.where = f"{shard.path.parent.name}/{shard.path.stem}/{shard.entries[sample].key}"
        self.metadata = check_metadata(decode("json", self.read("json"), self.where), self.where)
        self.frames: int = self.metadata["frames"]

    def read(self, suffix: str) -> bytes:
        """Checked bytes of a member."""
        return self._shard.read(self._sample, suffix)


def _encode_latents(clip: Clip, recipe: Recipe) -> dict[str, Tensor]:
    autoencoder: Autoencoder = _encoder
    frames = decode_video(clip.read("mp4"), clip.where, count=clip.frames)
    stride, space = autoencoder.temporal_stride, autoencoder.spatial_stride
    if frames.shape[1] % space or frames.shape[2] % space:
        raise UserError(
            f"{clip.where}: {frames.shape[2]}x{frames.shape[1]} pixels are no multiple of the autoencoder's {space}; pack with another --size"
        )
    stated = (clip.metadata.get("height", frames.shape[1]), clip.metadata.get("width", frames.shape[2]))
    if stated != frames.shape[1:3]:
        found = f"the video has {frames.shape[2]}x{frames.shape[1]} pixels"
        raise UserError(f"{clip.where}: KEY.json says {stated[1]}x{stated[0]}, {found}; pack the clip again")
    own = from_png(clip.read("ref.png"), clip.where)
    if own.shape != frames.shape[1:]:
        raise UserError(f"{clip.where}: ref.png has shape {own.shape}, the video {frames.shape[1:]}; make them the same size")
    stills = np.stack([own, *frames[reference_frames(clip.frames, recipe.references - 1)]]) if recipe.references > 1 else own[None]
    whole = frames[: (clip.frames - 1) // stride * stride + 1]
    with torch.autocast(torch.device(recipe.device).type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        latents_FCHW = autoencoder.encode(_to_pixels(whole[None], recipe.device))[0]
        reference_RCHW = autoencoder.encode(_to_pixels(stills[:, None], recipe.device))[:, 0]
    return {"latents.npy": latents_FCHW, "reference.npy": reference_RCHW}


def _encode_audio(clip: Clip, recipe: Recipe) -> dict[str, Tensor]:
    samples = decode_sound(clip.read("wav"), clip.where, SAMPLE_RATE)
    audio_TD = _encoder.encode(torch.from_numpy(samples.astype(np.float32) / 2**15))
    if len(audio_TD) != clip.frames:
        raise UserError(f"{clip.where}: {len(samples)} samples of sound give {len(audio_TD)} features for {clip.frames} frames; lint the shards")
    return {"audio.npy": audio_TD}


def _encode_text(clip: Clip, recipe: Recipe) -> dict[str, Tensor]:
    return {"text.npy": _encoder.encode(list(parse_captions(clip.metadata, clip.where).texts))}


_ENCODE = {"latents": _encode_latents, "audio": _encode_audio, "text": _encode_text}


def _to_pixels(frames_BTHWC: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(frames_BTHWC).to(device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1.0).contiguous()


def _to_half(feature: Tensor, where: str) -> np.ndarray:
    half = feature.detach().float().cpu().numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError(
            f"{where}: the encoder gives values that are not finite in float16 (largest {float(feature.abs().max()):g}); train it further"
        )
    return half


# --- before and after -----------------------------------------------------------------------------------------------------------------------------


def _recipe(column: str, args: argparse.Namespace) -> Recipe:
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if column == "latents":
        if args.autoencoder is None:
            raise UserError(f"encoding latents needs --autoencoder FOLDER, with {WEIGHTS} and {SPEC}")
        if args.references < 1:
            raise UserError(f"--references {args.references}: must be at least 1, the clip's own")
        spec, weights = autoencoder_spec(args.autoencoder)
        return Recipe(column, spec, latent_space(args.autoencoder), args.autoencoder, weights, args.references, device, args.precision)
    words = (args.encoder if args.column == column else getattr(args, f"{column}_encoder")) or [DEFAULT_ENCODERS[column]]
    spec = encoder_spec(words, column)
    return Recipe(column, spec, registry.spec_hash(spec), device=device)


def _is_finished(path: Path, shard: Shard) -> bool:
    if not path.is_file():
        return False
    if ShardReader(path).index.keys != tuple(entry.key for entry in shard.entries):
        raise UserError(f"{path} holds other clips than {shard.path}; the clips were packed anew: delete the column and encode again")
    return True


def _copy_autoencoder(source: Path, target: Path) -> None:
    """Latents travel with the autoencoder that decodes them."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            shutil.copyfile(path, part / path.name)
    part.replace(target)


def _estimate(split: Split, recipe: Recipe, missing: Sequence[Shard]) -> float:
    """Bytes that the missing shards take, about: from one clip's features."""
    _start(recipe, Path())
    clip = split.clips[0]
    with torch.inference_mode():
        features = _ENCODE[recipe.column](Clip(split.shards[clip.shard], clip.sample), recipe)
    a_frame = sum(2 * feature.numel() for feature in features.values()) / max(clip.frames, 1)
    return 1.1 * a_frame * sum(entry.frames for shard in missing for entry in shard.entries)


def _fixed(column: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The part of a feature's shape that all clips share: of latents the channels, as pictures may have several sizes."""
    return tuple(shape[:1] if column == "latents" else shape)


def _describe(folder: Path, splits: dict[str, Split], recipe: Recipe) -> ColumnInfo:
    """column.yaml from what was written; with pictures of several sizes it names the shape that most clips have.

    Raises:
        UserError: shards whose features differ in width.
    """
    counts: dict[str, Counter[tuple[int, ...]]] = {}
    for split in splits.values():
        column = split.column(folder)
        alike: dict[tuple[Any, ...], list[ClipRef]] = {}
        for clip in split.clips:
            metadata = split.metadata(clip)[0] if recipe.column == "latents" else {}
            alike.setdefault((clip.shard, metadata.get("width"), metadata.get("height")), []).append(clip)
        for clips in alike.values():
            for suffix in column.members(clips[0]):
                shape = tuple(column.decode(clips[0], suffix).shape[1:])
                found = counts.setdefault(suffix, Counter())
                if any(_fixed(recipe.column, shape) != _fixed(recipe.column, other) for other in found):
                    raise UserError(f"{column.where(clips[0])}: {suffix} has shape {shape}, other shards {next(iter(found))}; delete the column")
                found[shape] += len(clips)
    shapes = {suffix: list(min((-count, shape) for shape, count in found.items())[1]) for suffix, found in counts.items()}
    strides = {}
    if recipe.autoencoder is not None:
        autoencoder = load_autoencoder(recipe.autoencoder)
        strides = {"temporal_stride": autoencoder.temporal_stride, "spatial_stride": autoencoder.spatial_stride}
    info = next(iter(splits.values())).info
    fps = {"fps": info.fps} if info else {}
    return ColumnInfo(recipe.column, recipe.spec, recipe.hash, shapes, weights_sha256=recipe.weights_sha256, **strides, **fps)

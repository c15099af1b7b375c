"""A build from recipe to dataset: examine every recording, compare clips, assign splits, make and pack what is missing, write the records."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from data_tools.building import examine, making
from data_tools.building.accounts import MAKING, funnel_text, write_records
from data_tools.building.edits import read_edits
from data_tools.building.examine import READING, Examined, Task, remove_parts, remove_stale, stamp_of
from data_tools.building.ledger import PREVIOUS_FOLDER, WORK_FOLDER, ClipRecord, Ledger
from data_tools.building.making import Item, Made, Maker, uri_of
from data_tools.building.packing import Layout, Packer, Wanted, in_order
from data_tools.building.recipe import BuildRecipe, dump_recipe
from data_tools.building.splits import SPLITS, assign_people, join
from data_tools.inputs import Skipped, Source, find_sources
from data_tools.manifest import import_pyarrow
from data_tools.rewrite import finish_stopped_change
from data_tools.steps.base import Rejection, json_hash
from data_tools.workplace import Failed, check_room, locked, progress, work
from flowact.data.schema import COLUMNS_FOLDER, DATASET_FILE, DatasetInfo, read_dataset, write_atomically, write_dataset
from flowact.data.shards import ShardReader
from flowact.errors import UserError

RECIPE_FILE = "recipe.yaml"
#: of decoded frames that a process holds at most: half a minute of 720p
KEEP_BYTES = 1 << 30
#: states of a build, as the ledger notes them
EXAMINING, EXAMINED, PACKING, FINISHED = "examining recordings", "examined, not packed", "packing clips", "finished"
#: a recording or clip that takes longer is given up: enough for ten hours of footage, and no night is lost to a file that hangs the decoder
TIMEOUT_SECONDS = 2 * 3600.0


@dataclass(frozen=True)
class Options:
    """How a build runs; nothing here changes the dataset, besides `limit` and `score_only`.

    Attributes:
        jobs: processes.
        limit: recordings at most, the first ones; None for all.
        dry_run: examine and count, but make nothing.
        score_only: judge, but reject nothing.
        drop_missing: take out clips of recordings that the input no longer holds; otherwise they are an error.
        plugins: files with further components.
        trusted: dotted prefixes that class paths may have.
    """

    jobs: int = 2
    limit: int | None = None
    dry_run: bool = False
    score_only: bool = False
    drop_missing: bool = False
    plugins: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What a build came to.

    Attributes:
        clips: all, kept and rejected.
        skipped: files that were no recordings.
        splits: split -> {shards, samples, frames}; empty for a dry run.
        missing: clips that a dry run would have made.
        measured: recordings that were looked at anew.
        made: clips that were made anew.
        lost_edits: clips that were relabelled by hand and had to be made anew.
    """

    clips: tuple[ClipRecord, ...]
    skipped: tuple[Skipped, ...]
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: int = 0
    measured: int = 0
    made: int = 0
    lost_edits: tuple[str, ...] = ()

    @property
    def kept(self) -> list[ClipRecord]:
        return [clip for clip in self.clips if clip.rejection is None]


def build(recipe: BuildRecipe, config: Mapping[str, Any], out: Path, options: Options) -> Outcome:
    """Build a dataset, or what is missing of it.

    Raises:
        UserError: a step lacks what it needs, no recordings, nothing kept (with the funnel), too little room, another build in the folder.
    """
    import_pyarrow()
    for step in recipe.chain:
        step.check()
    with locked(out):
        finish_stopped_change(out)
        sources, skipped = find_all(recipe, options.limit)
        ledger = Ledger(out, code=version("flowact"))
        try:
            return _Build(recipe, config, out, options, ledger, sources, skipped).run()
        finally:
            ledger.close()


def find_all(recipe: BuildRecipe, limit: int | None = None) -> tuple[list[Source], tuple[Skipped, ...]]:
    """Recordings of all inputs, ids unique.

    Raises:
        UserError: an input that is not there, or none that holds a recording.
    """
    sources: dict[str, Source] = {}
    skipped: list[Skipped] = []
    for address in recipe.inputs:
        found = find_sources(address, columns=recipe.columns)
        skipped += found.skipped
        for source in found.sources:
            id_ = source.id if source.id not in sources else f"{source.id[:52]}-{json_hash(source.address)[:7]}"
            sources[id_] = replace(source, id=id_)
    if not sources:
        reasons = "".join(f"\n  {entry.address}: {entry.reason}" for entry in skipped[:10])
        raise UserError(f"{', '.join(recipe.inputs)}: no recordings there.{reasons}")
    return list(sources.values())[:limit], tuple(skipped)


class _Build:
    """One run."""

    def __init__(
        self,
        recipe: BuildRecipe,
        config: Mapping[str, Any],
        out: Path,
        options: Options,
        ledger: Ledger,
        sources: Sequence[Source],
        skipped: tuple[Skipped, ...],
    ) -> None:
        self.recipe = recipe
        self.config = config
        self.out = out
        self.options = options
        self.ledger = ledger
        self.sources = sources
        self.skipped = skipped
        self.edits = read_edits(out, recipe.output.split_by)
        self.recipe_file = out / WORK_FOLDER / RECIPE_FILE

    def run(self) -> Outcome:
        self._check_missing()
        remove_parts(self.out)
        write_atomically(self.recipe_file, dump_recipe(self.config))
        before = self.ledger.fact("state")
        self.ledger.note("state", EXAMINING)
        batches = self._batches()
        examined, measured = self._examine(batches)
        clips = self._compare([clip for entry in examined for clip in entry.clips])
        items, clips = self._items(examined, clips)
        wanted = {split: in_order([self._wanted(item, batches) for item in items if item.split == split]) for split in SPLITS}
        size = self.recipe.output
        packer = Packer(self.out, Layout(round(size.shard_mb * 2**20), size.shard_clips, size.min_shards), self._make)
        missing = sum(len(packer.missing(split, found)) for split, found in wanted.items())
        if not any(clip.rejection is None for clip in clips):
            self.ledger.replace_clips(clips)
            raise UserError(f"not one clip is left of {len(self.sources)} recordings; nothing was written.\n{funnel_text(self.recipe, clips)}")
        if self.options.dry_run:
            packed = {clip.key: clip for clip in self.ledger.clips()}
            self.ledger.replace_clips(
                replace(clip, shard=packed[clip.key].shard) if clip.made and clip.key in packed and packed[clip.key].made == clip.made else clip
                for clip in clips
            )
            self.ledger.note("state", EXAMINED if missing or before != FINISHED else FINISHED)
            return Outcome(tuple(clips), self.skipped, missing=missing, measured=measured)
        early = {made for entry in examined for made in entry.made}
        fresh = [clip for split, found in wanted.items() for clip in (*packer.missing(split, found), *(clip for clip in found if clip.made in early))]
        lost = tuple(clip.key for clip in fresh if clip.key in self.edits.touched)
        self.ledger.note("state", PACKING)
        self._forget_layout(packer)
        clips = self._pack(packer, wanted, clips)
        splits = self._write_dataset(clips)
        write_records(self.out, clips)
        self._finish(clips, examined, packer)
        return Outcome(tuple(clips), self.skipped, splits, missing, measured, len(fresh), lost)

    def _check_missing(self) -> None:
        """A folder that is not mounted must not empty a dataset."""
        if self.options.limit is not None or self.options.drop_missing:
            return
        here = {source.id for source in self.sources}
        gone = sorted({clip.source for clip in self.ledger.clips() if clip.shard and clip.source not in here})
        if gone:
            some = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
            raise UserError(
                f"{len(gone)} recordings of {self.out} are no longer in {', '.join(self.recipe.inputs)}: {some}; bring them back,"
                " or take their clips out with --drop-missing"
            )

    # --- recordings ---------------------------------------------------------------------------------------------------------------------------------

    def _batches(self) -> dict[str, int]:
        """Recordings that come after a finished build form the next batch."""
        known = self.ledger.batches()
        finished = self.ledger.fact("finished_batch")
        new = 0 if finished is None else int(finished) + 1
        return {source.id: known.get(source.id, new) for source in self.sources}

    def _examine(self, batches: Mapping[str, int]) -> tuple[list[Examined], int]:
        hashes = self.ledger.hashes()
        spent = {record.source.id: record.seconds for record in self.ledger.sources()}
        stamps = {source.id: stamp_of(source) for source in self.sources}
        tasks = [
            Task(
                source,
                hashes.get((source.address, stamps[source.id])) if stamps[source.id] else None,
                self.ledger.findings(source.id),
                frozenset(clip.made for clip in self.ledger.clips(source.id) if clip.shard),
            )
            for source in self.sources
        ]
        arguments = (self.recipe_file, self.out, self.options.score_only, self._room_for_frames(), self.options.plugins, self.options.trusted)
        results = work(
            examine.run, tasks, self.options.jobs, examine.start, arguments, timeout=TIMEOUT_SECONDS, keep_going=True
        )
        examined, measured = [], 0
        for result, task in zip(progress(results, len(tasks), "examine", "recordings"), tasks):
            entry = _failed(task.source, result) if isinstance(result, Failed) else result
            facts = {"frames": entry.frames, "folder": entry.folder, **entry.facts}
            stamp = stamps[task.source.id]
            seconds = max(entry.seconds, spent.get(task.source.id, 0.0))  # a look at what is known already takes none
            self.ledger.add_source(task.source, stamp, entry.sha256, batches[task.source.id], facts, seconds, entry.findings)
            measured += bool(entry.findings)
            examined.append(entry)
            self.ledger.note("examined", f"{len(examined)} of {len(tasks)}")
        if self.options.limit is None:
            self.ledger.keep_sources(source.id for source in self.sources)
        return examined, measured

    def _room_for_frames(self) -> int:
        """Bytes of decoded frames that each process may hold."""
        if self.options.dry_run:
            return 0
        return min(KEEP_BYTES, psutil.virtual_memory().available // (4 * max(self.options.jobs, 1)))

    # --- clips --------------------------------------------------------------------------------------------------------------------------------------

    def _compare(self, clips: Sequence[ClipRecord]) -> list[ClipRecord]:
        """Let steps reject clips because of others, in the order of the recipe."""
        found = {clip.key: clip for clip in clips}
        for step in self.recipe.chain:
            scores = {key: clip.scores[step.name] for key, clip in found.items() if clip.rejection is None and step.name in clip.scores}
            for key, rejection in step.compare(scores).items():
                if not self.options.score_only:
                    found[key] = replace(found[key], rejection=rejection)
        return [replace(clip, rejection=clip.rejection or self.edits.reject(clip)) for clip in found.values()]

    def _items(self, examined: Sequence[Examined], clips: Sequence[ClipRecord]) -> tuple[list[Item], list[ClipRecord]]:
        """Kept clips with their splits, and all clips with what was decided."""
        sources = {entry.source.id: entry for entry in examined}
        failures, maker = self.ledger.failures(), Maker(self.recipe, self.out)
        records, items = [], []
        for clip in clips:
            if clip.rejection is None and clip.plan is not None:
                entry = sources[clip.source]
                width, height = entry.facts["width"], entry.facts["height"]
                item = Item(clip, entry.source, uri_of(entry.source, self.recipe.inputs), entry.sha256, entry.folder, width, height, "")
                made = maker.hash(item)
                clip = replace(clip, made=made)
                if made in failures:
                    clip = replace(clip, made="", rejection=Rejection(MAKING, failures[made]))
                else:
                    items.append(replace(item, record=clip))
            records.append(clip)
        unit = {item.record.key: self._unit(item.identity, item.uri) for item in items}
        splits = self._assign(items, unit)
        items = [replace(item, split=splits[unit[item.record.key]]) for item in items]
        split_of = {item.record.key: item.split for item in items}
        return items, [replace(clip, split=split_of.get(clip.key, "")) for clip in records]

    def _assign(self, items: Sequence[Item], unit: Mapping[str, str]) -> dict[str, str]:
        """Person or recording -> split; `unit` says which of them a clip's key belongs to."""
        if not items:
            return {}
        together = [
            [unit[key] for key in keys if key in unit]
            for step in self.recipe.chain
            for keys in step.groups({item.record.key: item.record.scores[step.name] for item in items if step.name in item.record.scores})
        ]
        by_file: dict[str, list[str]] = {}
        for item in items:
            by_file.setdefault(item.sha256, []).append(unit[item.record.key])
        groups = join([pair for pair in (*together, *by_file.values()) if pair], sorted(set(unit.values())))
        output = self.recipe.output
        own = {unit[item.record.key]: item.source.split for item in items if item.source.split}
        wrong = [f"{name}: {split!r}" for name, split in own.items() if split not in SPLITS]
        if wrong:
            raise UserError(f"a recording's split is {' or '.join(map(repr, SPLITS))}, not {wrong[0]}")
        return assign_people(groups, output.val_fraction, output.val_identities, own, {**self.ledger.people(), **(self.edits.split_of or {})})

    def _unit(self, identity: str, uri: str) -> str:
        """What is in one split only: the person, or the recording."""
        return identity if self.recipe.output.split_by == "person" else uri

    def _wanted(self, item: Item, batches: Mapping[str, int]) -> Wanted:
        return Wanted(item, item.record.made, batches[item.source.id])

    # --- shards -------------------------------------------------------------------------------------------------------------------------------------

    def _make(self, items: Sequence[Item]) -> Iterator[Made]:
        arguments = (self.recipe_file, self.out, self.options.plugins, self.options.trusted)
        results = work(making.run, items, self.options.jobs, making.start, arguments, timeout=TIMEOUT_SECONDS, keep_going=True)
        for item, result in zip(items, results):
            yield Made(item.record.key, None, reason=result.reason) if isinstance(result, Failed) else result

    def _forget_layout(self, packer: Packer) -> None:
        """Shards of another layout are all packed anew."""
        layout = json_hash(vars(packer.layout))
        if self.ledger.fact("layout") not in (None, layout):
            for split in SPLITS:
                if (self.out / split).is_dir():
                    packer.put_aside(self.out / split)
        self.ledger.note("layout", layout)

    def _pack(self, packer: Packer, wanted: Mapping[str, Sequence[Wanted]], clips: Sequence[ClipRecord]) -> list[ClipRecord]:
        missing = [clip for split, found in wanted.items() for clip in packer.missing(split, found)]
        seconds = sum(clip.item.plan.span.frames for clip in missing) / 25
        width, height = self.recipe.output.pixels or (1280, 720)
        aside = sum(path.stat().st_size for path in (self.out / WORK_FOLDER / PREVIOUS_FOLDER).glob("*/*.tar"))
        check_room(self.out, seconds * (width * height * 1.5 + 40_000) + aside, f"packing {len(missing)} clips")
        failed: dict[str, Rejection] = {}

        def note(clip: Wanted, reason: str) -> None:
            self.ledger.add_failure(clip.made, reason)
            failed[clip.key] = Rejection(MAKING, reason)

        total = sum(len(found) for found in wanted.values())
        everything = (clip for split, found in wanted.items() if found or (self.out / split).is_dir() for clip in packer.pack(split, found, note))
        for _ in progress(everything, total, "pack", "clips"):
            pass
        shard_of = {}
        for split in SPLITS:
            for path in sorted((self.out / split).glob("*.tar")):
                shard_of.update(dict.fromkeys(ShardReader(path).index.keys, f"{split}/{path.stem}"))
        return [
            replace(clip, rejection=failed[clip.key], split="", made="") if clip.key in failed else replace(clip, shard=shard_of.get(clip.key, ""))
            for clip in clips
        ]

    def _write_dataset(self, clips: Sequence[ClipRecord]) -> dict[str, dict[str, int]]:
        splits = {}
        for split in SPLITS:
            indexes = [ShardReader(path).index for path in sorted((self.out / split).glob("*.tar"))]
            if indexes:
                samples = [sample for index in indexes for sample in index.samples]
                splits[split] = {"shards": len(indexes), "samples": len(samples), "frames": sum(sample.frames for sample in samples)}
        old = read_dataset(self.out) if (self.out / DATASET_FILE).is_file() else DatasetInfo("")
        where = {clip.key: clip.shard for clip in clips if clip.shard}
        exclude = [f"{where[key]}/{key}" for key in (entry.rpartition("/")[2] for entry in old.exclude) if key in where]
        columns, split_by = self._whole_columns(old), self.recipe.output.split_by
        write_dataset(self.out, DatasetInfo(self.recipe.name, splits=splits, columns=columns, exclude=tuple(exclude), split_by=split_by))
        return splits

    def _whole_columns(self, info: DatasetInfo) -> tuple[str, ...]:
        """Columns that have a shard for every shard; the others are listed again when `encode` has finished them."""
        shards = [f"{split}/{path.stem}" for split in SPLITS for path in (self.out / split).glob("*.tar")]
        folder = self.out / COLUMNS_FOLDER
        return tuple(name for name in info.columns if all((folder / name / f"{shard}.json").is_file() for shard in shards))

    def _finish(self, clips: Sequence[ClipRecord], examined: Sequence[Examined], packer: Packer) -> None:
        self.ledger.replace_clips(clips)
        if self.options.limit is None:
            uris = {source.id: uri_of(source, self.recipe.inputs) for source in self.sources}
            self.ledger.assign_people({self._unit(clip_identity(clip, self.sources), uris[clip.source]): clip.split for clip in clips if clip.split})
            self.ledger.note("finished_batch", str(max(self.ledger.batches().values(), default=0)))
        write_atomically(self.out / RECIPE_FILE, dump_recipe(self.config))
        remove_stale(self.out, [entry.folder for entry in examined if entry.folder])
        packer.finish()
        self.ledger.note("state", FINISHED)
        shutil.rmtree(self.out / WORK_FOLDER / "remote", ignore_errors=True)


def clip_identity(clip: ClipRecord, sources: Iterable[Source]) -> str:
    """Who a clip shows."""
    if clip.plan is not None and clip.plan.identity:
        return clip.plan.identity
    return next(source.identity for source in sources if source.id == clip.source)


def _failed(source: Source, failure: Failed) -> Examined:
    rejection = Rejection(READING, failure.reason, "readable", failure.code, "is", "readable")
    return Examined(source, "", "", 0, {}, (ClipRecord(source.id, source.id, None, rejection=rejection),), (), 0.0)


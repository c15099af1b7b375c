"""Conformance checks that authors of components call in their tests: the laws of each base class. Legend: flowact/types.py.

Each `check_*` takes an object, tries the laws on small random inputs, and raises an AssertionError that names the law which does not hold.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from flowact import registry
from flowact.autoencoders.base import Autoencoder
from flowact.characters.base import Character
from flowact.checkpoints import read_json
from flowact.conditioning.base import AudioEncoder, ConditioningEncoder, TextEncoder
from flowact.errors import UserError
from flowact.lora import merge
from flowact.memory.base import MemoryBank
from flowact.memory.corruptors import MemoryCorruptor
from flowact.models.adapters import Adapter
from flowact.models.base import Denoiser
from flowact.models.formats import CLASS_NAME, WeightFormat
from flowact.models.rules import Constant
from flowact.models.translation import Translation, export_state, import_state, translate
from flowact.models.weights import build_outline, build_partly, read_folder
from flowact.planning.base import Planner
from flowact.schedulers.base import NoiseScheduler
from flowact.signatures import arguments_of
from flowact.types import (
    FRAMES_PER_SECOND,
    FULL_VISIBILITY,
    SAMPLES_PER_FRAME,
    STATES,
    Chunk,
    ConditionTokens,
    MemoryFeatures,
    MemoryView,
    Segment,
    TensorRecord,
    Visibility,
    WindowLayout,
)
from flowact.writers.base import VideoWriter

__all__ = [
    "check_adapter",
    "check_autoencoder",
    "check_character",
    "check_conditioning_encoder",
    "check_constructor",
    "check_corruptor",
    "check_denoiser",
    "check_format",
    "check_memory_bank",
    "check_noise_scheduler",
    "check_planner",
    "check_writer",
]


def _broken(subject: object, law: str, detail: str = "") -> NoReturn:
    raise AssertionError(f"{type(subject).__name__} breaks the law '{law}'{f': {detail}' if detail else ''}")


def _ensure(holds: object, subject: object, law: str, detail: str = "") -> None:
    if not bool(holds):
        _broken(subject, law, detail)


def _refuses(call: Callable[[], object], subject: object, law: str) -> None:
    """A ValueError is raised, nothing else."""
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        _broken(subject, law, f"raised {type(error).__name__} instead of ValueError")
    _broken(subject, law, "raised nothing")


def _same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance))


def _tensors(record: object) -> list[Tensor]:
    """Every tensor in a record, in field order."""
    if isinstance(record, Tensor):
        return [record]
    if isinstance(record, (tuple, list)):
        return [tensor for item in record for tensor in _tensors(item)]
    if is_dataclass(record) and not isinstance(record, type):
        return [tensor for field in fields(record) for tensor in _tensors(getattr(record, field.name))]
    return []


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- any component


def check_constructor(cls: type) -> None:
    """The constructor is the config: every argument has a type and a line in the docstring, and the class has a first line."""
    docstring = (cls.__doc__ or "").strip()
    if not docstring:
        raise AssertionError(f"{cls.__name__} breaks the law 'a component has a docstring'")
    for argument in arguments_of(cls):
        if not argument.type:
            raise AssertionError(f"{cls.__name__} breaks the law 'every argument is typed': {argument.name}")
        if not argument.doc:
            raise AssertionError(f"{cls.__name__} breaks the law 'every argument is described under Args:': {argument.name}")


# --- memory


def _chunk(num_frames: int, seed: int, batch: int = 2) -> Chunk:
    generator = _generator(seed)
    latents = torch.randn(batch, num_frames, 3, 4, 4, generator=generator)
    return Chunk(latents, torch.randn(batch, num_frames, 4, 5, generator=generator), torch.randn(batch, 6, 7, generator=generator))


def _stream(bank: MemoryBank, chunks: Sequence[Chunk], reference: Chunk) -> MemoryView:
    state = bank.reset(reference)
    for chunk in chunks:
        state = bank.write(state, chunk)
    return bank.read(state)


def check_memory_bank(bank: MemoryBank, *, chunk_frames: int = 3, keeps_first: int = 0) -> None:
    """The laws of `MemoryBank`.

    Args:
        bank: the bank, constructed for chunks of `chunk_frames`.
        chunk_frames: latent frames of the chunks that are written.
        keeps_first: chunks of the stream's beginning that the bank keeps for ever (attention sinks), to which forgetting does not apply.
    """
    reference = _chunk(1, seed=0)
    num_chunks = bank.history_chunks + keeps_first + 2
    chunks = [_chunk(chunk_frames, seed=1 + i) for i in range(num_chunks)]
    state = bank.reset(reference)
    _ensure(isinstance(state, TensorRecord), bank, "the state is a TensorRecord, so that it moves between devices", type(state).__name__)
    first_segments = bank.read(state).segments
    for written, chunk in enumerate(chunks):
        _check_view(bank, bank.read(state), reference, f"after {written} chunks")
        _ensure(bank.read(state).segments == first_segments, bank, "segments never depend on how much was written", f"after {written} chunks")
        before = [tensor.clone() for tensor in _tensors((state, chunk))]
        following = bank.write(state, chunk)
        unchanged = all(_same(a, b) for a, b in zip(before, _tensors((state, chunk)), strict=True))
        _ensure(unchanged, bank, "write changes neither the state nor the chunk it is given", f"chunk {written}")
        again = bank.read(bank.write(state, chunk))
        equal = all(_same(a, b) for a, b in zip(_tensors(bank.read(following)), _tensors(again), strict=True))
        _ensure(equal, bank, "the same writes give the same memory", f"chunk {written}")
        state = following
    _check_view(bank, bank.read(state), reference, f"after {num_chunks} chunks")

    for position in range(keeps_first, num_chunks - bank.history_chunks + keeps_first):
        other = [*chunks[:position], _chunk(chunk_frames, seed=1000 + position), *chunks[position + 1 :]]
        views = _stream(bank, chunks, reference), _stream(bank, other, reference)
        forgotten = all(_same(a, b) for a, b in zip(_tensors(views[0]), _tensors(views[1]), strict=True))
        behind = num_chunks - 1 - position
        _ensure(forgotten, bank, "nothing older than history_chunks is seen", f"a chunk {behind} chunks back changes the memory")

    rows = [_row(_stream(bank, chunks, reference), 0), _stream(bank, [_row(chunk, 0) for chunk in chunks], _row(reference, 0))]
    alone = all(_same(a, b) for a, b in zip(_tensors(rows[0]), _tensors(rows[1]), strict=True))
    _ensure(alone, bank, "streams of a batch do not see each other")
    moved = bank.read(state.to(torch.float64))
    _ensure(moved.latents_BFCHW.dtype == torch.float64, bank, "a state that was moved reads as moved", str(moved.latents_BFCHW.dtype))


def _row(record: Any, index: int) -> Any:
    """One sample of a batch, with B = 1."""
    tensors = {f.name: getattr(record, f.name)[index : index + 1] for f in fields(record) if isinstance(getattr(record, f.name), Tensor)}
    return type(record)(**{**{f.name: getattr(record, f.name) for f in fields(record)}, **tensors})


def _check_view(bank: MemoryBank, view: MemoryView, reference: Chunk, when: str) -> None:
    batch, _, channels, height, width = reference.latents_BFCHW.shape
    frames, segments = bank.num_frames, bank.num_segments
    sizes = {
        "latents": (tuple(view.latents_BFCHW.shape), (batch, frames, channels, height, width)),
        "audio": (tuple(view.audio_BFAD.shape), (batch, frames, *reference.audio_BFAD.shape[2:])),
        "text": (tuple(view.text_BSLD.shape), (batch, segments, *reference.text_BLD.shape[1:])),
        "segments": (len(view.segments), segments),
        "frames of the segments": (sum(segment.num_frames for segment in view.segments), frames),
    }
    for name, (got, want) in sizes.items():
        _ensure(got == want, bank, "read returns num_frames frames in num_segments segments", f"{name}: {got}, expected {want}, {when}")
    history = [segment for segment in view.segments if segment.kind != "reference"]  # a reference may be anchored anywhere
    ends = [segment.position + segment.num_frames for segment in history]
    starts = [*(segment.position for segment in history[1:]), 0]
    in_order = all(end <= start for end, start in zip(ends, starts, strict=bool(history)))
    _ensure(in_order, bank, "history stands oldest first, apart from each other and before the stream (0)", f"{view.segments} {when}")
    _ensure(len(view.identities) in (0, segments), bank, "identities are one per segment, or none", f"{view.identities} {when}")
    _ensure(all(segment.is_memory for segment in view.segments), bank, "memory holds no stream segment", when)
    WindowLayout((*view.segments, Segment("stream", 1, 0)))
    first = 0
    for segment in view.segments:
        if segment.kind == "reference":
            kept = view.latents_BFCHW[:, first : first + segment.num_frames]
            expected = reference.latents_BFCHW.to(kept).expand_as(kept)
            _ensure(_same(kept, expected), bank, "a reference segment holds the reference for ever", when)
        first += segment.num_frames


def check_corruptor(corruptor: MemoryCorruptor, *, chunk_frames: int = 3, num_chunks: int = 3) -> None:
    """The laws of `MemoryCorruptor`."""
    history = [_chunk(chunk_frames, seed=i) for i in range(num_chunks)]
    before = [tensor.clone() for tensor in _tensors(history)]

    def regenerate(chunks: Sequence[Chunk], sigma_B: Tensor) -> list[Chunk]:
        _ensure(sigma_B.shape == (2,), corruptor, "regenerate is given one noise level per sample", str(tuple(sigma_B.shape)))
        _ensure(((sigma_B >= 0) & (sigma_B <= 1)).all(), corruptor, "noise levels lie in [0, 1]")
        return [Chunk(chunk.latents_BFCHW + 1, chunk.audio_BFAD, chunk.text_BLD) for chunk in chunks]

    made = corruptor.corrupt(history, regenerate, _generator(0))
    again = corruptor.corrupt(history, regenerate, _generator(0))
    _ensure(len(made) == num_chunks, corruptor, "as many chunks come out as go in", str(len(made)))
    for clean, changed in zip(history, made, strict=True):
        _ensure(changed.latents_BFCHW.shape == clean.latents_BFCHW.shape, corruptor, "shapes are kept")
        conditions = _same(changed.audio_BFAD, clean.audio_BFAD) and _same(changed.text_BLD, clean.text_BLD)
        _ensure(conditions, corruptor, "conditions are kept")
        _ensure(torch.isfinite(changed.latents_BFCHW).all(), corruptor, "latents are finite")
        _ensure(not changed.latents_BFCHW.requires_grad, corruptor, "no gradient flows into the result")
    _ensure(all(_same(a, b) for a, b in zip(before, _tensors(history), strict=True)), corruptor, "the history it is given stays as it is")
    _ensure(all(_same(a, b) for a, b in zip(_tensors(made), _tensors(again), strict=True)), corruptor, "the generator alone decides")
    if corruptor.needs_model:
        _refuses(lambda: corruptor.corrupt(history, None, _generator(0)), corruptor, "without a model it says so")


# --- conditioning


def check_conditioning_encoder(encoder: ConditioningEncoder, *, seconds: float = 2.0, tolerance: float = 1e-4) -> None:
    """The laws of `TextEncoder` and `AudioEncoder`.

    Args:
        encoder: an encoder of either family.
        seconds: of random sound that an audio encoder is tried on.
        tolerance: of comparisons, relative and absolute.
    """
    if isinstance(encoder, TextEncoder):
        _check_text_encoder(encoder, tolerance)
    elif isinstance(encoder, AudioEncoder):
        _check_audio_encoder(encoder, round(seconds * FRAMES_PER_SECOND), tolerance)
    else:
        _broken(encoder, "a conditioning encoder is a TextEncoder or an AudioEncoder")


def _check_text_encoder(encoder: TextEncoder, tolerance: float) -> None:
    captions = ["a person speaks", "the person listens and nods", "", "word " * 400]
    text = encoder.encode(captions)
    want = (len(captions), encoder.num_tokens, encoder.width)
    _ensure(tuple(text.shape) == want, encoder, "features are [N, num_tokens, width]", f"{tuple(text.shape)}, expected {want}")
    _ensure(text.dtype == torch.float32 and not text.requires_grad, encoder, "features are float32 without gradient", str(text.dtype))
    _ensure(torch.isfinite(text).all(), encoder, "features are finite")
    _ensure(not text[2].any(), encoder, "an empty caption gives zeros")
    _ensure(text[0].any() and not _same(text[0], text[1], tolerance), encoder, "captions with other words have other features")
    for i, caption in enumerate(captions):
        _ensure(
            _same(encoder.encode([caption])[0], text[i], tolerance),
            encoder,
            "a caption's features do not depend on its neighbours",
            repr(caption[:40]),
        )


def _check_audio_encoder(encoder: AudioEncoder, num_frames: int, tolerance: float) -> None:
    samples = 0.1 * torch.randn(num_frames * SAMPLES_PER_FRAME, generator=_generator(0))
    audio = encoder.encode(samples)
    want = (num_frames, encoder.width)
    _ensure(tuple(audio.shape) == want, encoder, "features are [samples // 640, width]", f"{tuple(audio.shape)}, expected {want}")
    _ensure(audio.dtype == torch.float32 and not audio.requires_grad, encoder, "features are float32 without gradient", str(audio.dtype))
    for name, sound in (("noise", samples), ("silence", torch.zeros_like(samples)), ("full scale", torch.ones_like(samples))):
        _ensure(torch.isfinite(encoder.encode(sound)).all(), encoder, "features are finite", name)
    _ensure(_same(encoder.encode(samples), audio), encoder, "the same sound has the same features")
    ragged = encoder.encode(samples[: 3 * SAMPLES_PER_FRAME + 100])
    _ensure(ragged.shape[0] == 3, encoder, "features are [samples // 640, width]", f"{ragged.shape[0]} for 3 frames and 100 samples")
    _refuses(lambda: encoder.encode(samples[None]), encoder, "sound that is not one-dimensional is refused")
    _refuses(lambda: encoder.encode(samples.clone().fill_(float("nan"))), encoder, "sound that is not finite is refused")

    middle = num_frames // 2
    other = samples.clone()
    other[middle * SAMPLES_PER_FRAME : (middle + 1) * SAMPLES_PER_FRAME] *= -0.5
    changed = encoder.encode(other)
    early, late = max(middle - encoder.lookahead_frames, 0), middle + 1 + encoder.context_frames
    _ensure(not _same(changed, audio), encoder, "features depend on the sound")
    untouched = _same(changed[:early], audio[:early], tolerance)
    _ensure(untouched, encoder, "a feature sees no more of the future than lookahead_frames", f"{encoder.lookahead_frames} frames are stated")
    untouched = _same(changed[late:], audio[late:], tolerance)
    _ensure(untouched, encoder, "a feature sees no more of the past than context_frames", f"{encoder.context_frames} frames are stated")


# --- noise levels


def check_noise_scheduler(scheduler: NoiseScheduler) -> None:
    """The laws of `NoiseScheduler`."""
    for batch, num_chunks in ((1, 1), (64, 3), (3, 5)):
        sigma = scheduler.sample(batch, num_chunks, _generator(1))
        _ensure(
            tuple(sigma.shape) == (batch, num_chunks), scheduler, "levels are [batch, num_chunks]", f"{tuple(sigma.shape)} for {(batch, num_chunks)}"
        )
        _ensure(sigma.is_floating_point() and torch.isfinite(sigma).all(), scheduler, "levels are finite numbers", str(sigma.dtype))
        inside = ((sigma >= 0) & (sigma <= 1)).all()
        _ensure(inside, scheduler, "levels lie in [0, 1]", f"{float(sigma.min())} to {float(sigma.max())}")
    before = torch.get_rng_state()
    draws = [scheduler.sample(64, 3, _generator(seed)) for seed in (1, 1)]
    _ensure(_same(draws[0], draws[1]), scheduler, "the generator alone decides")
    _ensure(torch.equal(before, torch.get_rng_state()), scheduler, "given a generator, the global one is left alone")


# --- autoencoders


@torch.no_grad()
def check_autoencoder(autoencoder: Autoencoder, *, num_latents: int = 4, tolerance: float = 1e-4) -> None:
    """The laws of `Autoencoder`: the rule T = stride * n + 1, causality, streaming decode equals batch decode.

    Args:
        autoencoder: put into evaluation mode.
        num_latents: latent frames of the clip it is tried on; at least 3.
        tolerance: of comparisons, relative and absolute.
    """
    autoencoder.eval()
    stride = autoencoder.temporal_stride
    size = 2 * autoencoder.spatial_stride
    num_frames = (num_latents - 1) * stride + 1
    frames = 2 * torch.rand(2, 3, num_frames, size, size, generator=_generator(0)) - 1
    _ensure(autoencoder.num_latents(num_frames) == num_latents, autoencoder, "T = stride n + 1", f"num_latents({num_frames})")
    _ensure(autoencoder.num_frames(num_latents) == num_frames, autoencoder, "T = stride n + 1", f"num_frames({num_latents})")
    if stride > 1:
        _refuses(lambda: autoencoder.num_latents(num_frames + 1), autoencoder, "a clip that breaks T = stride n + 1 is refused")
    latents = autoencoder.encode(frames)
    want = (2, num_latents, autoencoder.latent_channels, 2, 2)
    _ensure(
        tuple(latents.shape) == want, autoencoder, "latents are [B, n + 1, C, H / stride, W / stride]", f"{tuple(latents.shape)}, expected {want}"
    )
    _ensure(torch.isfinite(latents).all(), autoencoder, "latents are finite")
    for shorter in range(1, num_latents):
        part = autoencoder.encode(frames[:, :, : (shorter - 1) * stride + 1])
        _ensure(
            _same(part, latents[:, :shorter], tolerance), autoencoder, "a latent frame depends on no later frame", f"clip of {shorter} latent frames"
        )
    still = autoencoder.encode_still(frames[:, :, 0], 2)
    _ensure(still.shape[1] == 3, autoencoder, "a picture standing still has one image latent and n motion latents", str(tuple(still.shape)))

    decoded = autoencoder.decode(latents)
    _ensure(
        decoded.shape == frames.shape,
        autoencoder,
        "decoding gives back stride (F - 1) + 1 frames",
        f"{tuple(decoded.shape)}, expected {tuple(frames.shape)}",
    )
    _ensure(torch.isfinite(decoded).all(), autoencoder, "frames are finite")
    for lengths in ([1] * num_latents, [num_latents], [1, num_latents - 1], [2, num_latents - 2]):
        pieces, state, start = [], None, 0
        for length in lengths:
            piece, state = autoencoder.decode_stream(latents[:, start : start + length], state)
            pieces.append(piece)
            start += length
        _ensure(
            _same(torch.cat(pieces, dim=2), decoded, tolerance),
            autoencoder,
            "streaming decode equals batch decode",
            f"pieces of {lengths} latent frames",
        )
    _, state = autoencoder.decode_stream(latents[:, :1])
    once, _ = autoencoder.decode_stream(latents[:, 1:2], state)
    autoencoder.decode_stream(latents[:, 2:3], state)
    twice, _ = autoencoder.decode_stream(latents[:, 1:2], state)
    _ensure(_same(once, twice), autoencoder, "decode_stream changes no state it is given")


# --- denoisers


@torch.no_grad()
def check_denoiser(
    denoiser: Denoiser, *, height: int = 4, width: int = 4, audio_per_frame: int = 4, num_tokens: int = 3, tolerance: float = 1e-4
) -> None:
    """The laws of `Denoiser`. The network is left as it is; initialise it so that its output is not zero, or the laws hold trivially.

    Args:
        denoiser: put into evaluation mode.
        height: latent cells.
        width: latent cells.
        audio_per_frame: audio features of a latent frame.
        num_tokens: text tokens of a caption.
        tolerance: of comparisons, relative and absolute.
    """
    denoiser.eval()
    memory = (Segment("reference", 1, -6), Segment("long", 1, -3), Segment("short", 1, -1))
    layout = WindowLayout((*memory, Segment("stream", 2, 0), Segment("stream", 2, 2)), Visibility(stream="block_causal"))
    generator = _generator(0)
    latents = torch.randn(2, layout.num_frames, denoiser.latent_channels, height, width, generator=generator)
    sigma = torch.tensor([[0.0] * 3 + [0.3] * 2 + [0.8] * 2] * 2)
    text = torch.randn(2, len(layout.segments), num_tokens, denoiser.text_width, generator=generator)
    audio = torch.randn(2, layout.num_frames, audio_per_frame, denoiser.audio_width, generator=generator)
    tokens = ConditionTokens(text, audio)
    velocity = denoiser(latents, sigma, tokens, layout)
    want = (2, layout.num_stream_frames, *latents.shape[2:])
    _ensure(tuple(velocity.shape) == want, denoiser, "velocity is [B, stream frames, C, H, W]", f"{tuple(velocity.shape)}, expected {want}")
    _ensure(torch.isfinite(velocity).all(), denoiser, "velocity is finite")
    alone = denoiser(latents[:1], sigma[:1], ConditionTokens(text[:1], audio[:1]), layout)
    _ensure(_same(alone, velocity[:1], tolerance), denoiser, "samples of a batch do not see each other")
    later = latents.clone()
    later[:, 5:] += 1
    _ensure(
        _same(denoiser(later, sigma, tokens, layout)[:, :2], velocity[:, :2], tolerance), denoiser, "block causal: a chunk does not see later chunks"
    )
    _refuses(lambda: denoiser(latents[:, 1:], sigma, tokens, layout), denoiser, "a window that does not fit its layout is refused")
    if denoiser.reuses_memory:
        _check_memory_reuse(denoiser, latents, sigma, tokens, memory, tolerance)


def _check_memory_reuse(
    denoiser: Denoiser, latents: Tensor, sigma: Tensor, tokens: ConditionTokens, memory: tuple[Segment, ...], tolerance: float
) -> None:
    count = len(memory)
    frames = sum(segment.num_frames for segment in memory)
    before, stream = tokens.part(slice(count), slice(frames)), tokens.part(slice(count, None), slice(frames, None))
    for visibility in (Visibility(), Visibility(memory="isolated")):
        layout = WindowLayout((*memory, Segment("stream", 2, 0), Segment("stream", 2, 2)), visibility)
        whole = denoiser(latents, sigma, tokens, layout)
        kept = denoiser.encode_memory(latents[:, :frames], before, layout.memory)
        reused = denoiser(latents[:, frames:], sigma[:, frames:], stream, layout, kept)
        _ensure(_same(reused, whole, tolerance), denoiser, "kept features of memory change nothing", f"{visibility}")
    entries = [
        denoiser.encode_memory(latents[:, i : i + 1], before.part(slice(i, i + 1), slice(i, i + 1)), WindowLayout((segment,), layout.visibility))
        for i, segment in enumerate(memory)
    ]
    joined = denoiser(latents[:, frames:], sigma[:, frames:], stream, layout, MemoryFeatures.joined(entries))
    _ensure(_same(joined, whole, tolerance), denoiser, "isolated entries may be encoded one by one")
    _refuses(
        lambda: denoiser(latents[:, frames:], sigma[:, frames:], stream, WindowLayout(layout.segments, FULL_VISIBILITY), kept),
        denoiser,
        "kept memory is refused under full visibility",
    )
    _refuses(lambda: denoiser.encode_memory(latents, tokens, layout), denoiser, "memory alone is encoded, without a stream")


# --- weight formats


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
    _ensure(format.recognises(config), format, "it recognises its own config.json", str(config[CLASS_NAME]))
    _ensure(not format.recognises({**config, CLASS_NAME: "AnotherModel"}), format, "it recognises no other class")
    _refuses(lambda: format.complete({**config, "an_unknown_key": 1}), format, "a key of config.json that it does not know is refused")

    complete = json.loads(json.dumps(format.complete(config)))
    spec = format.denoiser_spec(config, **settings)
    exported = json.loads(json.dumps(format.exported_config(json.loads(json.dumps(spec)))))
    before, after = set(_items(complete)), {item for item in _items(exported) if not item[0].startswith("_")}
    changed = ", ".join(f"{key}: {complete.get(key)!r} became {exported.get(key)!r}" for key in sorted({key for key, _ in before ^ after}))
    _ensure(not changed, format, "config.json that is imported and exported says the same", changed)

    def build() -> Denoiser:
        return registry.instantiate(spec, "denoisers")

    known, added = format.divide(build_outline(build))
    _check_additions(format, build_partly(build, added.__contains__))
    made = [name for name in added if any(template.match(name) for rule in format.rules(complete) for template in rule.ours)]
    _ensure(not made, format, "no rule makes a tensor of an addition", ", ".join(made))
    theirs = _check_rules(format, complete, known)
    if folder is not None:
        try:
            translate(format.rules(complete), read_folder(folder), "ours", known)
        except UserError as error:
            _broken(format, "the rules know every tensor that the library writes", str(error))
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
        _ensure(tensors, format, "every addition is there", name)
    silent = [addition.name for addition in format.additions if addition.is_silent(fresh)]
    _ensure(len(silent) == len(format.additions), format, "a new addition has no effect: it has gates and they are zero", f"only {silent} have none")
    held = [name for tensors in format.by_addition(fresh).values() for name in tensors]
    _ensure(len(held) == len(set(held)), format, "a tensor belongs to one addition")


def _check_rules(format: WeightFormat, complete: Mapping[str, Any], known: Mapping[str, Tensor]) -> Translation:
    try:
        return translate(format.rules(complete), known, "theirs")
    except ValueError as error:
        _broken(format, "one rule for each tensor of ours that is no addition", str(error))


def _random_state(outline: Mapping[str, Tensor], number_type: torch.dtype) -> dict[str, Tensor]:
    state = {}
    for seed, (name, tensor) in enumerate(outline.items()):
        values = torch.randn(tensor.shape, generator=_generator(seed))
        state[name] = values.to(number_type) if tensor.is_floating_point() else (100 * values).to(tensor.dtype)
    return state


def _ensure_equal(format: WeightFormat, before: Mapping[str, Tensor], after: Mapping[str, Tensor], law: str) -> None:
    _ensure(before.keys() == after.keys(), format, law, f"tensors on one side only: {sorted(before.keys() ^ after.keys())}")
    for name in before:
        _ensure(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]), format, law, name)


# --- adapters


def check_adapter(adapter: Adapter, network: nn.Module, run: Callable[[nn.Module], Tensor], *, tolerance: float = 1e-5) -> None:
    """The laws of `Adapter`.

    Args:
        adapter: the adapter.
        network: a plain network that it fits; it is changed.
        run: the output of a network on fixed inputs, with gradients and without randomness in evaluation mode.
        tolerance: of comparisons.
    """
    plain, base = copy.deepcopy(network.eval()), {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():  # as kernels may depend on whether gradients are asked for
        before = run(network)
        adapter.attach(network)
        after = run(network)
    _ensure(_same(before, after), adapter, "a network gives when training starts what it gave without the adapter")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    _ensure(trained, adapter, "something is trained")
    _ensure(adapter.keeps_base or not frozen, adapter, "without a base everything is trained")
    generator = _generator(0)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    names, live = adapter.stored_names(network), network.state_dict()
    _ensure(len(set(names.values())) == len(names), adapter, "no two tensors have one name in a checkpoint")
    state = {stored: live[name] for name, stored in names.items()} | adapter.constants(network)
    plain.load_state_dict(merge(base, state) if adapter.keeps_base else state)
    _ensure(
        _same(run(plain), run(network), tolerance), adapter, "a plain network with the weights of a checkpoint gives what the trained network gives"
    )
    run(network).square().sum().backward()
    _ensure(all(p.grad is not None for p in trained), adapter, "what is trained has an effect")
    _ensure(all(p.grad is None for p in frozen), adapter, "what is frozen gets no gradient")


# --- planners


def _speech(seconds: float, seed: int) -> np.ndarray:
    """Syllables: noise that swells four times a second, float32 at 16 kHz, a whole number of frames."""
    count = round(seconds * FRAMES_PER_SECOND) * SAMPLES_PER_FRAME
    time = np.arange(count) / (FRAMES_PER_SECOND * SAMPLES_PER_FRAME)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.15 * noise * (0.15 + np.sin(np.pi * 4 * time) ** 2)).astype(np.float32)


def check_planner(planner: Planner) -> None:
    """The laws of `Planner`."""
    silence = np.zeros(FRAMES_PER_SECOND * SAMPLES_PER_FRAME * 3, np.float32)
    soundtracks = {
        "silence": silence,
        "speech": _speech(3, 0),
        "speech with pauses": np.concatenate([silence, _speech(3, 1), silence, _speech(2, 2)]),
    }
    for name, samples in soundtracks.items():
        prompts = list(planner.plan(samples))
        seconds = samples.size / (FRAMES_PER_SECOND * SAMPLES_PER_FRAME)
        _ensure(prompts and prompts[0].start_seconds == 0, planner, "the first prompt starts at 0", name)
        starts = [prompt.start_seconds for prompt in prompts]
        _ensure(all(a < b for a, b in pairwise(starts)), planner, "prompts are in time order", f"{name}: {starts}")
        _ensure(starts[-1] < seconds, planner, "no prompt starts after the sound has ended", f"{name}: {starts[-1]} of {seconds} s")
        for prompt in prompts:
            _ensure(prompt.state in STATES, planner, f"a state is one of {', '.join(STATES)}", f"{name}: {prompt.state}")
            _ensure(prompt.text.strip(), planner, "a prompt has words", f"{name} at {prompt.start_seconds} s")
        _ensure(list(planner.plan(samples.copy())) == prompts, planner, "the same soundtrack has the same plan", name)
    _ensure(all(prompt.state != "speaking" for prompt in planner.plan(silence)), planner, "nobody speaks in silence")
    _ensure(any(prompt.state == "speaking" for prompt in planner.plan(soundtracks["speech"])), planner, "speech is spoken")


# --- characters


def check_character(character: Character, *, seconds_per_state: float = 1.0) -> None:
    """The laws of `Character`: what is rendered can be read back.

    Args:
        character: renders and reads.
        seconds_per_state: of each of the four states that it performs.
    """
    frames_per_state = round(seconds_per_state * FRAMES_PER_SECOND)
    states = np.repeat(np.arange(len(STATES), dtype=np.uint8), frames_per_state)
    samples = np.zeros(states.size * SAMPLES_PER_FRAME, np.float32)
    samples[: frames_per_state * SAMPLES_PER_FRAME] = _speech(seconds_per_state, 0)  # STATES starts with speaking
    identities = [character.sample_identity(np.random.default_rng(seed)) for seed in range(4)]
    identity = identities[0]
    _ensure(character.sample_identity(np.random.default_rng(0)) == identity, character, "the generator alone decides an identity")
    _ensure(json.loads(json.dumps(identity)) == identity, character, "an identity is plain numbers that JSON keeps exactly")
    _ensure(identities[1] != identity, character, "people differ")

    truth = character.perform(samples, states, np.random.default_rng(1))
    want = (states.size, len(character.channels))
    _ensure(
        truth.shape == want and truth.dtype == np.float32,
        character,
        "truth is float32 [T, channels]",
        f"{truth.dtype} {truth.shape}, expected {want}",
    )
    _ensure(np.isfinite(truth).all(), character, "truth is finite")
    _ensure(
        np.array_equal(character.perform(samples, states, np.random.default_rng(1)), truth), character, "the generator alone decides a performance"
    )
    frames = character.render(identity, truth)
    size = (states.size, character.size, character.size, 3)
    _ensure(frames.shape == size and frames.dtype == np.uint8, character, "frames are uint8 [T, size, size, 3]", f"{frames.dtype} {frames.shape}")
    _ensure(np.array_equal(character.render(identity, truth), frames), character, "rendering is deterministic")

    mouth = character.mouth_area(truth)
    _ensure(mouth.shape == (states.size,) and (mouth >= 0).all(), character, "mouth area is one number >= 0 a frame")
    speaking = states == STATES.index("speaking")
    _ensure(mouth[speaking].mean() > mouth[~speaking].mean(), character, "the mouth is open wider while the person speaks")
    found = character.read(frames, identity)
    _ensure(
        set(found.channels) <= set(character.channels),
        character,
        "what is read back is named as the truth is",
        str(set(found.channels) - set(character.channels)),
    )
    legible = np.isfinite(found.mouth_area)
    _ensure(legible.mean() > 0.9, character, "the mouth can be read from what is rendered", f"in {legible.mean():.0%} of frames")
    correlation = float(np.corrcoef(found.mouth_area[legible], mouth[legible])[0, 1])
    _ensure(correlation > 0.9, character, "the mouth that is read follows the true mouth", f"correlation {correlation:.2f}")
    distances = [character.identity_distance(frames, other) for other in identities]
    _ensure(distances[0] == min(distances), character, "a person is nearest to their own identity", f"{distances}")
    for state in STATES:
        for variant in range(3):
            caption = character.caption(state, variant)
            _ensure(0 < len(caption.split()) <= 8, character, "a caption has 1 to 8 words", f"{state}: {caption!r}")


# --- writers


def check_writer(writer: VideoWriter) -> None:
    """The laws of `VideoWriter`. Writes 5 frames and closes it; reading the file back is the author's to check."""
    frames = np.random.default_rng(0).integers(0, 256, (5, writer.height, writer.width, 3), dtype=np.uint8)
    samples = np.zeros(5 * writer.samples_per_frame, np.float32) if writer.samples_per_frame else None
    _refuses(lambda: writer.write(frames[:, :-1]), writer, "a frame of another size is refused")
    _refuses(lambda: writer.write(frames.astype(np.float32)), writer, "frames that are not uint8 are refused")
    if samples is not None:
        _refuses(lambda: writer.write(frames, samples[:-1]), writer, "sound that does not last as long as the frames is refused")
    _ensure(writer.num_frames == 0, writer, "what is refused is not counted", str(writer.num_frames))
    writer.write(frames[:2], None if samples is None else samples[: 2 * writer.samples_per_frame])
    writer.write(frames[2:])
    _ensure(writer.num_frames == 5, writer, "every frame is counted", str(writer.num_frames))
    writer.close()
    writer.close()
    _refuses(lambda: writer.write(frames), writer, "a closed writer writes no more")

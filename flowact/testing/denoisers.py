"""Laws of denoisers. Legend: flowact/types.py.

`check_denoiser` is for every denoiser. The others are its laws one by one, for layouts that a test draws, and what training and streaming ask of a
`WindowDenoiser`. Give them networks away from the zeros that they start with, or the laws hold trivially.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowact.models.base import Denoiser
from flowact.models.windowed import Window, WindowDenoiser
from flowact.testing.laws import ensure, refuses, same, seeded
from flowact.types import FULL_VISIBILITY, ConditionTokens, MemoryFeatures, Segment, Visibility, WindowLayout

MEMORY = (Segment("reference", 1, -9), Segment("long", 1, -4), Segment("short", 1, -1))


@dataclass(frozen=True)
class RandomWindow:
    """What a denoiser takes.

    Attributes:
        latents_BFCHW: of the whole window.
        sigma_BF: one level per chunk of the stream; 0 for memory.
        conditions: of the whole window.
        layout: the geometry.
    """

    latents_BFCHW: Tensor
    sigma_BF: Tensor
    conditions: ConditionTokens
    layout: WindowLayout

    def through(self, denoiser: Denoiser) -> Tensor:
        """The velocity."""
        return denoiser(self.latents_BFCHW, self.sigma_BF, self.conditions, self.layout)

    def with_latents(self, latents_BFCHW: Tensor) -> RandomWindow:
        """The same with other latents."""
        return replace(self, latents_BFCHW=latents_BFCHW)

    def at(self, segments: tuple[Segment, ...]) -> RandomWindow:
        """The same contents at other positions."""
        return replace(self, layout=replace(self.layout, segments=segments))

    def samples(self, order: Tensor) -> RandomWindow:
        """Some samples of the batch."""
        tokens = replace(self.conditions, text_BSLD=self.conditions.text_BSLD[order], audio_BFAD=self.conditions.audio_BFAD[order])
        return replace(self, latents_BFCHW=self.latents_BFCHW[order], sigma_BF=self.sigma_BF[order], conditions=tokens)

    def first(self, num_segments: int) -> RandomWindow:
        """The window that ends after some segments."""
        layout = replace(self.layout, segments=self.layout.segments[:num_segments])
        frames = slice(layout.num_frames)
        return RandomWindow(self.latents_BFCHW[:, frames], self.sigma_BF[:, frames], self.conditions.part(slice(num_segments), frames), layout)

    def with_another_stream(self) -> RandomWindow:
        """The same memory with other latents, levels, captions and sound in the stream, and guidance scales asked for."""
        frames, segments = self.layout.num_memory_frames, self.layout.num_memory_segments
        latents, sigma = self.latents_BFCHW.clone(), self.sigma_BF.clone()
        text, audio = self.conditions.text_BSLD.clone(), self.conditions.audio_BFAD.clone()
        latents[:, frames:] += 1.0
        sigma[:, frames:] = 1 - sigma[:, frames:]
        text[:, segments:] = 0.5 - 2 * text[:, segments:]
        audio[:, frames:] += 0.5
        return RandomWindow(latents, sigma, ConditionTokens(text, audio, torch.tensor([[2.0, 3.0]] * len(text))), self.layout)


def stream_layout(
    chunks: tuple[int, ...] = (2, 2), memory: tuple[Segment, ...] = MEMORY, visibility: Visibility = Visibility()
) -> WindowLayout:
    """Memory, and chunks of the stream from position 0 on."""
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    return WindowLayout((*memory, *(Segment("stream", n, start) for n, start in zip(chunks, starts, strict=True))), visibility)


def random_window(
    denoiser: Denoiser,
    layout: WindowLayout,
    *,
    size: tuple[int, int] = (4, 4),
    audio_per_latent: int = 4,
    num_tokens: int = 3,
    padding: float = 0.0,
    batch: int = 2,
    seed: int = 0,
) -> RandomWindow:
    """Random contents of a layout.

    Args:
        denoiser: whose channels and widths they have.
        layout: the geometry.
        size: latent cells.
        audio_per_latent: audio features of a latent frame.
        num_tokens: rows of a caption.
        padding: share of the rows of captions that are zero; the last caption of the first sample is all zeros then.
        batch: samples.
        seed: decides the contents.
    """
    generator = seeded(seed)
    latents = torch.randn(batch, layout.num_frames, denoiser.latent_channels, *size, generator=generator)
    lengths = torch.tensor([segment.num_frames for segment in layout.segments if not segment.is_memory])
    levels = torch.rand(batch, len(lengths), generator=generator).repeat_interleave(lengths, dim=1)
    sigma = torch.cat([torch.zeros(batch, layout.num_memory_frames), levels], dim=1)
    text = torch.randn(batch, len(layout.segments), num_tokens, denoiser.text_width, generator=generator)
    if padding:
        kept = torch.rand(text.shape[:3], generator=generator) >= padding
        kept[0, -1] = False
        text = text * kept[..., None]
    audio = torch.randn(batch, layout.num_frames, audio_per_latent, denoiser.audio_width, generator=generator)
    return RandomWindow(latents, sigma, ConditionTokens(text, audio), layout)


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

    def window_of(visibility: Visibility) -> RandomWindow:
        layout = stream_layout(visibility=visibility)
        return random_window(denoiser, layout, size=(height, width), audio_per_latent=audio_per_frame, num_tokens=num_tokens)

    window = window_of(Visibility(stream="block_causal"))
    velocity = window.through(denoiser)
    want = (2, window.layout.num_stream_frames, *window.latents_BFCHW.shape[2:])
    ensure(tuple(velocity.shape) == want, denoiser, "velocity is [B, stream frames, C, H, W]", f"{tuple(velocity.shape)}, expected {want}")
    ensure(torch.isfinite(velocity).all(), denoiser, "velocity is finite")
    check_batch(denoiser, window, tolerance)
    check_prefixes(denoiser, window, tolerance)
    refuses(
        lambda: window.with_latents(window.latents_BFCHW[:, 1:]).through(denoiser), denoiser, "a window that does not fit its layout is refused"
    )
    if denoiser.reuses_memory:
        for visibility in (Visibility(), Visibility(memory="isolated")):
            check_kept_memory(denoiser, window_of(visibility), tolerance)


@torch.no_grad()
def check_batch(denoiser: Denoiser, window: RandomWindow, tolerance: float = 1e-4) -> None:
    """Samples of a batch do not see each other: they may be permuted, and be alone."""
    velocity = window.through(denoiser)
    for order in (torch.arange(len(velocity)).flip(0), torch.tensor([0])):
        chosen = window.samples(order).through(denoiser)
        ensure(same(chosen, velocity[order], tolerance), denoiser, "samples of a batch do not see each other", f"{order}")


@torch.no_grad()
def check_prefixes(denoiser: Denoiser, window: RandomWindow, tolerance: float = 1e-4) -> None:
    """In a block-causal stream a chunk's velocity is that of the window that ends with it."""
    if window.layout.visibility.stream != "block_causal":
        raise ValueError(f"only block-causal streams have the law of prefixes, got {window.layout.visibility}")
    velocity, count = window.through(denoiser), len(window.layout.segments)
    for kept in range(window.layout.num_memory_segments + 1, count):
        alone = window.first(kept).through(denoiser)
        prefix = velocity[:, : alone.shape[1]]
        ensure(same(alone, prefix, tolerance), denoiser, "block causal: a chunk does not see later chunks", f"{kept} of {count}")


@torch.no_grad()
def check_positions(denoiser: Denoiser, window: RandomWindow, tolerance: float = 1e-4) -> None:
    """Only differences of positions count, and they do."""
    velocity, segments = window.through(denoiser), window.layout.segments
    for shift in (-7, 100):
        moved = window.at(tuple(replace(segment, position=segment.position + shift) for segment in segments))
        ensure(same(moved.through(denoiser), velocity, tolerance), denoiser, "only differences of positions count", f"shift {shift}")
    stretched = window.at(tuple(replace(segment, position=3 * segment.position) for segment in segments))
    ensure(not same(stretched.through(denoiser), velocity, 10 * tolerance), denoiser, "differences of positions count")


@torch.no_grad()
def check_kept_memory(denoiser: Denoiser, window: RandomWindow, tolerance: float = 1e-4) -> None:
    """Kept features of memory change nothing; of isolated entries also if they were encoded one by one and elsewhere."""
    layout, visibility = window.layout, window.layout.visibility
    frames, count = layout.num_memory_frames, layout.num_memory_segments
    before, after = window.conditions.part(slice(count), slice(frames)), window.conditions.part(slice(count, None), slice(frames, None))
    latents, whole = window.latents_BFCHW, window.through(denoiser)

    def in_front_of(features: MemoryFeatures, layout: WindowLayout = layout) -> Tensor:
        return denoiser(latents[:, frames:], window.sigma_BF[:, frames:], after, layout, features)

    kept = denoiser.encode_memory(latents[:, :frames], before, layout.memory)
    ensure(same(in_front_of(kept), whole, tolerance), denoiser, "kept features of memory change nothing", f"{visibility}")
    if visibility.memory == "isolated":
        entries, first = [], 0
        for i, segment in enumerate(layout.memory.segments):
            own = slice(first, first + segment.num_frames)
            alone = WindowLayout((replace(segment, position=5),), visibility)
            entries.append(denoiser.encode_memory(latents[:, own], before.part(slice(i, i + 1), own), alone))
            first = own.stop
        ensure(same(in_front_of(MemoryFeatures.joined(entries)), whole, tolerance), denoiser, "isolated entries may be encoded one by one")
        if kept.lengths:
            again = in_front_of(MemoryFeatures.joined(kept.split()))
            ensure(same(again, whole, tolerance), denoiser, "isolated entries may be encoded together and taken apart")
    if any(value.numel() for value in kept.values):  # none where the reference is all of memory and lies beside the latents
        louder = replace(kept, values=tuple(2 * value for value in kept.values))
        ensure(not same(in_front_of(louder), whole, 10 * tolerance), denoiser, "kept features of memory are seen")
    refuses(
        lambda: in_front_of(kept, replace(layout, visibility=FULL_VISIBILITY)), denoiser, "kept memory is refused under full visibility"
    )
    refuses(lambda: denoiser.encode_memory(latents, window.conditions, layout), denoiser, "memory alone is encoded, without a stream")


@torch.no_grad()
def check_memory_never_sees_the_stream(denoiser: WindowDenoiser, window: RandomWindow) -> None:
    """Whatever is in the stream: every layer's keys and values of memory, and memory's tokens after the last block, are the same to the last bit."""
    frames = window.layout.num_memory_frames
    memory = window.conditions.part(slice(window.layout.num_memory_segments), slice(frames))
    length = denoiser.encode_memory(window.latents_BFCHW[:, :frames], memory, window.layout.memory).keys[0].shape[1]

    def of_memory(contents: RandomWindow) -> list[Tensor]:
        laid = denoiser.lay_beside(Window(contents.latents_BFCHW, contents.sigma_BF, contents.conditions, contents.layout))
        visual_BFLD, kept, _ = denoiser.transform(laid, denoiser.frame_vector(laid), keep=True)
        return [*(part[:, :length] for pair in kept for part in pair), visual_BFLD[:, : visual_BFLD.shape[1] - window.layout.num_stream_frames]]

    before, after = of_memory(window), of_memory(window.with_another_stream())
    changed = [i // 2 for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)]
    ensure(not changed, denoiser, "memory never sees the stream", f"it does in layers {changed}")
    stream = window.through(denoiser), window.with_another_stream().through(denoiser)
    ensure(not same(*stream, 1e-3), denoiser, "the stream sees itself")


def check_checkpointing(build: Callable[[str], Denoiser], window: RandomWindow, tolerance: float = 1e-4) -> None:
    """Activation checkpointing changes neither velocity nor gradients.

    Args:
        build: the same network for each of "none", "selective" and "full".
        window: what it is tried on.
        tolerance: of comparisons.
    """

    def step(choice: str) -> dict[str, Tensor]:
        denoiser = build(choice).train()
        velocity = window.through(denoiser)
        velocity.square().sum().backward()
        return {"velocity": velocity, **{name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None}}

    exact = step("none")
    ensure(len(exact) > 1, build("none"), "training reaches the weights")
    for choice in ("selective", "full"):
        again = step(choice)
        different = [name for name in exact if name not in again or not same(exact[name], again[name], tolerance)]
        ensure(not different and len(exact) == len(again), build(choice), f"checkpointing '{choice}' changes nothing", ", ".join(different[:3]))


@torch.no_grad()
def check_compilation(build: Callable[[], WindowDenoiser], windows: list[RandomWindow], tolerance: float = 1e-4) -> None:
    """Blocks compile whole, and once for windows of one layout whose contents, captions and levels change.

    Args:
        build: the same network each time.
        windows: two or more of one layout.
        tolerance: of comparisons.
    """
    torch._dynamo.reset()
    plain, compiled = build().eval(), build().eval()
    compiled.compile_blocks(backend="aot_eager")
    try:
        for i, window in enumerate(windows):
            with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
                velocity = window.through(compiled)
            ensure(same(velocity, window.through(plain), tolerance), plain, "compiled blocks give what plain ones give", f"window {i}")
    finally:
        torch._dynamo.reset()


@torch.no_grad()
def check_number_types(build: Callable[[], Denoiser], window: RandomWindow, tolerance: float = 0.05) -> None:
    """In bfloat16, and under autocast, the velocity is float32 and near that of float32, with and without gradients.

    Args:
        build: the same float32 network each time.
        window: what it is tried on.
        tolerance: of the relative error in the Euclidean norm.
    """
    exact = window.through(build().eval())
    half = replace(window, latents_BFCHW=window.latents_BFCHW.bfloat16(), conditions=window.conditions.to(torch.bfloat16))
    for training in (False, True):
        with torch.set_grad_enabled(training):
            found = {"bfloat16": half.through(build().eval().bfloat16())}
            with torch.autocast("cpu", torch.bfloat16):
                found["autocast"] = window.through(build().eval())
        for name, velocity in found.items():
            ensure(velocity.dtype == torch.float32, build(), "the velocity is float32", f"{velocity.dtype} in {name}")
            ensure((velocity - exact).norm() / exact.norm() < tolerance, build(), "bfloat16 stays near float32", name)

"""What the backbone costs beside what it computes: training steps, kept memory, saved activations, compilation.

    OMP_NUM_THREADS=1 python benchmarks/backbone.py [training] [reuse] [activations] [compile]

One thread, float32, width 256 (512 for reuse), the paper's window (reference 1, long 3, short 1, stream of three chunks of three latents).

- training: forward and backward of the blocks over three times the forward's matrix products and attention alone.
- reuse: an evaluation in front of kept memory over the same with memory computed again, and steps of a stream whose entries are isolated.
- activations: bytes that one block saves for the backward pass, per token, in units of its width times 4 bytes; each storage is counted once.
- compile: graph breaks and recompilations of the blocks over 200 chunks while memory fills up and prompts change, and the speed that compiling gives.

CPU time of the process, the least of several runs, A and B in turn. One JSON line per part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from measuring import alive_after, cpu_seconds, floor_of, report
from torch import Tensor, nn

from flowact.memory import StructuredMemory
from flowact.models.attention import TokenCounts
from flowact.models.blocks import BlockShape, Checkpointing, DoubleBlock, Geometry, SingleBlock, run_blocks
from flowact.models.mmdit import MMDiT
from flowact.models.rope import split_axes
from flowact.sampling.reuse import KeptFeatures
from flowact.sampling.window import WindowEngine, WindowState, predict_velocity
from flowact.schedulers.staircase import Staircase
from flowact.types import Chunk, Segment, Visibility, WindowLayout

WIDTH, HEADS, ROWS, COLUMNS = 256, 4, 8, 8
TEXT, AUDIO, CHANNELS, FEATURES = 8, 4, 16, 64
MEMORY = (Segment("reference", 1, -13), *(Segment("long", 1, -10 + 3 * i) for i in range(3)), Segment("short", 1, -1))
LAYOUT = WindowLayout((*MEMORY, *(Segment("stream", 3, 3 * k) for k in range(3))))
SHAPE = BlockShape(WIDTH, HEADS)
CHOICES: tuple[Checkpointing, ...] = ("none", "selective", "full")


def blocks() -> list[nn.Module]:
    torch.manual_seed(0)
    made = [DoubleBlock(SHAPE, ("text", "audio", "visual")), SingleBlock(SHAPE)]
    for parameter in nn.ModuleList(made).parameters():
        nn.init.normal_(parameter, std=0.05)
    return made


def inputs(layout: WindowLayout = LAYOUT) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Geometry]:
    counts = TokenCounts(TEXT, AUDIO, ROWS * COLUMNS)
    geometry = Geometry.of(layout, counts, (ROWS, COLUMNS), split_axes(SHAPE.head_width), 256.0, torch.device("cpu"))
    sizes = ((len(layout.segments), TEXT), (layout.num_frames, AUDIO), (layout.num_frames, ROWS * COLUMNS))
    streams = tuple(torch.randn(1, groups, count, WIDTH, requires_grad=True) for groups, count in sizes)
    vectors = geometry.vectors(torch.randn(1, layout.num_frames, WIDTH), 3)
    return streams, tuple(vector.detach().requires_grad_() for vector in vectors), geometry


def training() -> dict[str, float]:
    network, (streams, vectors, geometry) = blocks(), inputs()

    def step() -> None:
        done, _ = run_blocks(network, streams, vectors, geometry)
        sum(part.sum() for part in done).backward()

    def forward() -> None:
        with torch.no_grad():
            run_blocks(network, streams, vectors, geometry)

    floor = floor_of(forward)
    whole, heavy = cpu_seconds(step, floor)
    once, again = cpu_seconds(forward, floor)
    return {"forward / floor": round(once / again, 3), "training step / (3 floors)": round(whole / (3 * heavy), 3)}


def activations() -> dict[str, float]:
    found = {}
    for kind, network in zip(("double", "single"), blocks(), strict=True):
        for window, layout in (("one group", WindowLayout(LAYOUT.segments[len(MEMORY) :])), ("memory and stream", LAYOUT)):
            streams, vectors, geometry = inputs(layout)
            given = [*network.parameters(), *streams, *vectors, *geometry.rotation, *(part for pair in geometry.stream_rotations for part in pair)]
            for choice in CHOICES:

                def forward(network: nn.Module = network, choice: Checkpointing = choice) -> object:
                    return run_blocks([network], streams, vectors, geometry, checkpointing=choice)  # noqa: B023

                units = alive_after(forward, given) / (geometry.plan.num_tokens * WIDTH * 4)
                found[f"{kind} block, {window}, {choice}"] = round(units, 2)
    return found


def model(width: int = WIDTH, **options: Any) -> MMDiT:
    torch.manual_seed(0)
    made = MMDiT(CHANNELS, FEATURES, FEATURES, width=width, num_heads=width // 64, num_double_blocks=2, num_single_blocks=4, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.03)
    return made.eval().requires_grad_(False)


def chunk(seed: int, frames: int = 3) -> Chunk:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, frames, CHANNELS, ROWS, COLUMNS, generator=generator)
    audio, text = torch.randn(1, frames, AUDIO, FEATURES, generator=generator), torch.randn(1, TEXT, FEATURES, generator=generator)
    return Chunk(latents, audio, text)


def begun(engine: WindowEngine) -> WindowState:
    return engine.start(chunk(0, 1), [chunk(1), chunk(2)], torch.Generator().manual_seed(0))


def evaluations(denoiser: MMDiT, visibility: Visibility) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """One evaluation of the stream with kept memory, and one with memory computed again; equal to 1e-5."""
    bank = StructuredMemory()
    memory = bank.read(begun(WindowEngine(denoiser, bank, Staircase(), visibility=visibility)).memory)
    stream, levels = [chunk(3), chunk(4), chunk(5)], Staircase().stairs(0.0)[None]
    features = KeptFeatures.of(denoiser, memory, visibility, False, KeptFeatures()).joined()

    def with_kept() -> Tensor:
        return predict_velocity(denoiser, memory, stream, levels, visibility=visibility, features=features)

    def anew() -> Tensor:
        return predict_velocity(denoiser, memory, stream, levels, visibility=visibility)

    torch.testing.assert_close(with_kept(), anew(), atol=1e-5, rtol=1e-5)
    return with_kept, anew


def reuse() -> dict[str, float]:
    denoiser, bank = model(width=512), StructuredMemory()  # wide enough for linear maps to be most of the work, as in large models
    found = {}
    for name, visibility in (("full", Visibility()), ("isolated", Visibility(memory="isolated"))):
        with_kept, anew = evaluations(denoiser, visibility)
        for what, pair in (("", (with_kept, anew)), (", heavy operations alone", (floor_of(with_kept), floor_of(anew)))):
            first, second = cpu_seconds(*pair, rounds=8)
            found[f"evaluation with kept memory / with memory computed again, {name}{what}"] = round(first / second, 3)
    visibility = Visibility(memory="isolated")
    engines = [WindowEngine(denoiser, bank, Staircase(), visibility=visibility, reuse_memory=choice) for choice in (True, False)]

    def steps(engine: WindowEngine) -> Callable[[], None]:
        state, _ = engine.step(begun(engine), chunk(3))

        def step() -> None:
            nonlocal state
            state, _ = engine.step(state, chunk(4))

        return step

    first, second = cpu_seconds(*(steps(engine) for engine in engines), rounds=8)
    found["step of the stream, isolated entries encoded once / every time"] = round(first / second, 3)
    return found


def compilation() -> dict[str, float]:
    eager, compiled = model(), model(compile_blocks=True)
    engines = [WindowEngine(denoiser, StructuredMemory(), Staircase(), visibility=Visibility(memory="isolated")) for denoiser in (compiled, eager)]
    states = [begun(engine) for engine in engines]
    for step in range(3):  # memory's entries one by one, then the stream in front of them: two shapes, compiled once each
        states = [engine.step(state, chunk(step))[0] for engine, state in zip(engines, states, strict=True)]
    state = states[0]
    before = dict(torch._dynamo.utils.counters["stats"])
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(3, 203):  # every chunk has another prompt and another sound
            state, done = engines[0].step(state, chunk(step))
    assert torch.isfinite(done.latents_BFCHW).all()
    graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0) - before.get("unique_graphs", 0)
    first, second = cpu_seconds(lambda: engines[0].step(states[0], chunk(5)), lambda: engines[1].step(states[1], chunk(5)))
    breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
    return {"graph breaks": breaks, "graphs compiled during 200 chunks": graphs, "compiled / eager": round(first / second, 3)}


PARTS = {"training": training, "reuse": reuse, "activations": activations, "compile": compilation}


def main() -> None:
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        report(f"backbone: {part}", PARTS[part](), "float32, eager unless said")


if __name__ == "__main__":
    main()

"""A plan as tables in a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flowact.budget.records import DeviceMemory, Plan
from flowact.budget.units import bytes_text, flops_text, rate_text, seconds_text

#: columns that are never cut short, however narrow the terminal is
_LEAST_WIDTH = 120


def show(plan: Plan) -> None:
    """Print a plan."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, _LEAST_WIDTH)
    latent = "x".join(map(str, plan.geometry.latent))
    picture = f"pictures of {plan.geometry.picture[0]}x{plan.geometry.picture[1]}, " if plan.geometry.picture else ""
    console.print(f"{plan.recipe}: {plan.stage} of {plan.denoiser}, {picture}latent frames of {latent}")
    for sentence in plan.assumed:
        console.print(f"  assumed: {sentence}", markup=False)
    for table in (_roles(plan), _tokens(plan), _evaluations(plan), _activations(plan), _memory(plan)):
        if table is not None:
            console.print()
            console.print(table)
    console.print()
    for line in (*_training(plan), "", *_stream(plan)):
        console.print(line, markup=False)
    for warning in plan.warnings:
        console.print(f"\nwarning: {warning}", markup=False, style="yellow")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _add(table: Table, rows: Iterable[Iterable[Any]]) -> Table:
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _roles(plan: Plan) -> Table:
    rows = ((role.name, f"{role.parameters:,}", f"{role.trained:,}" if role.trained else "frozen") for role in plan.roles)
    return _add(_table("parameters", "network", "all", "trained"), rows)


def _tokens(plan: Plan) -> Table | None:
    if plan.tokens is None:
        return None
    table = _table("tokens of the training window", "segment", "latent frames", "visual", "sound", "text")
    _add(table, ((s.kind, s.latent_frames, f"{s.visual:,}", f"{s.audio:,}", f"{s.text:,}") for s in plan.tokens.segments))
    total = plan.tokens.memory + plan.tokens.stream
    share = plan.tokens.attended_pairs / total**2
    table.caption = f"{total:,} in all, {plan.tokens.memory:,} of memory; {share:.0%} of all pairs attend"
    table.caption_justify = "left"
    return table


def _evaluations(plan: Plan) -> Table:
    rows = ((e.over, flops_text(e.flops), flops_text(e.linear_flops), flops_text(e.attention_flops)) for e in plan.evaluations)
    return _add(_table("operations of a forward pass, one sample", "over", "all", "products", "attention"), rows)


def _activations(plan: Plan) -> Table:
    training = plan.training
    own = training.checkpointing or "none"
    rows = ((f"{name}{' (recipe)' if name == own else ''}", bytes_text(saved)) for name, saved in training.saved_bytes_per_sample.items())
    return _add(_table("kept for the backward pass, one sample", "checkpointing", "kept"), rows)


def _memory(plan: Plan) -> Table:
    names = ("weights", "gradients", "optimizer", "average", "frozen", "buffers")
    table = _table(f"memory of each of {plan.strategy.processes} devices, {plan.precision}", "ZeRO", *names, "activations", "peak", "fits")

    def row(memory: DeviceMemory, name: str) -> list[str]:
        fits = {True: "yes", False: "no", None: ""}[memory.fits]
        parts = (*(getattr(memory.states, part) for part in names), memory.working_bytes, memory.peak_bytes)
        return [name, *map(bytes_text, parts), fits]

    if plan.strategy.zero is None:
        table.add_row(*row(plan.memory, "none (recipe)"))
    for memory in plan.memory_by_zero:
        stage = memory.states.zero
        table.add_row(*row(memory, f"{stage}{' (chosen)' if stage == plan.strategy.zero else ''}"))
    samples = f"{plan.training.batch_size} sample{'s' if plan.training.batch_size > 1 else ''} a device"
    table.caption = f"{samples}; activations with what checkpointing computes again and copies of weights; the peak is an upper bound"
    table.caption_justify = "left"
    return table


def _training(plan: Plan) -> Iterable[str]:
    training = plan.training
    yield f"a training step on {plan.strategy.processes} x {plan.device.name} evaluates"
    for e in training.evaluations:
        yield f"  {e.per_step:5.2f} x {e.role}, {e.over} of {e.latent_frames} latent frames, {'with' if e.gradient else 'no'} gradient"
    model, computed = flops_text(training.model_flops_per_sample), flops_text(training.flops_per_sample)
    yield f"  {model} a sample (3 x products + 3.5 x attention), {computed} computed, {flops_text(training.flops_per_step)} in a step on all devices"
    predicted = f"{seconds_text(training.seconds_per_step)} a step, {rate_text(training.samples_per_second)} samples a second"
    yield f"  predicted at {plan.utilisation:.0%} of the peak (published work reaches 30 to 60 %), without communication: {predicted}"


def _stream(plan: Plan) -> Iterable[str]:
    stream = plan.stream
    kept = "kept memory" if stream.reuses_memory else "memory computed with the stream"
    yield f"the stream on 1 x {plan.device.name}, {stream.evaluations_per_chunk} evaluations a chunk, {kept}"
    decoding = "" if stream.decode_flops_per_chunk is None else f" and {flops_text(stream.decode_flops_per_chunk)} to decode it"
    other = f" ({flops_text(stream.flops_per_chunk_without_reuse)} without keeping memory)" if stream.reuses_memory else ""
    yield f"  {flops_text(stream.flops_per_chunk)} a chunk{other}{decoding}; {bytes_text(stream.memory_bytes)} of memory"
    first = f"first frame (TTFF) {seconds_text(stream.first_frame_seconds)} after its sound"
    yield f"  predicted at {plan.utilisation:.0%} of the peak: {rate_text(stream.frames_per_second)} frames a second, {first}"
    waits = f"{stream.audio_lookahead_seconds:.2f} s of sound ahead, a new prompt is seen after {stream.prompt_to_motion_seconds:.2f} s"
    yield f"  by its geometry: {waits}"

"""What a recipe will cost: parameters, tokens, operations, memory and time of its training and of the stream, before anything is built on a device.

Networks run on torch's meta device (`costs`), the stage's own step and the window engine say how often (`recording`), ZeRO's rules say what each
device holds (`states`). Times are predictions: products at an assumed share of a device's peak, memory traffic, or starting operations, whichever
takes longest. What devices say to each other takes no time here. Legend: flowact/types.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from flowact.autoencoders import Autoencoder
from flowact.budget.accelerator import Accelerator, Meter
from flowact.budget.advice import advise
from flowact.budget.costs import EvaluationCost, Precision, Sizes, TrainingCost, evaluation_cost, saved_bytes, training_cost
from flowact.budget.facts import Facts, Wishes, gather
from flowact.budget.recording import Evaluation, Recorder, record_stream, record_training
from flowact.budget.records import DeviceMemory, EvaluationPlan, Geometry, Plan, SegmentTokens, StepEvaluations, StreamPlan, Tokens, TrainingPlan
from flowact.budget.source import Source
from flowact.budget.states import RoleSize, Strategy, states
from flowact.devices import Device, Work
from flowact.errors import UserError
from flowact.machine import computes_bfloat16
from flowact.models.attention import AttentionPlan
from flowact.models.base import Denoiser
from flowact.recipe import Recipe, check_recipe
from flowact.sampling.latency import LatencyBudget
from flowact.sampling.pipeline import trained_staircase, trained_visibility
from flowact.sampling.window import Guidance, WindowEngine
from flowact.stages.base import DenoiserStage
from flowact.stages.frozen import Frozen
from flowact.stages.moving_target import MovingTarget
from flowact.types import FRAMES_PER_SECOND, WindowLayout

#: share of a device's peak; published trainings and streams of video transformers on Hopper reach 30 to 60 %
UTILISATION = 0.4
#: bytes of memory traffic of an AdamW step for each trained number: weight, gradient and both moments are read, weight and moments written
_OPTIMIZER_TRAFFIC = 28


def make_plan(
    recipe: Recipe,
    device: Device,
    *,
    wishes: Wishes | None = None,
    processes: int | None = None,
    zero: int | None = None,
    utilisation: float = UTILISATION,
    micro_steps: int | None = None,
    guidance: float = 1.0,
) -> Plan:
    """The plan of a recipe.

    Args:
        recipe: of a stage that trains a denoiser.
        device: that it is to run on.
        wishes: about data that are not there.
        processes: devices; None takes the trainer's.
        zero: ZeRO stage; None takes the strategy's.
        utilisation: share of the device's peak that is reached, in (0, 1].
        micro_steps: M of the stream; None takes the stage's.
        guidance: classifier-free guidance scale of the stream; 1 is none.

    Raises:
        UserError: a mistake in the recipe, a stage without denoiser, or sizes that are neither in the data nor in `wishes`, or do not fit.
    """
    check_recipe(recipe)
    source = Source(recipe)
    denoiser = source.outline()
    facts = gather(source.data, denoiser, wishes or Wishes())
    stage, recorder = source.recording_stage(denoiser)
    evaluations = record_training(stage, recorder, facts.sizes.audio[0], (source.data.history_frames, source.data.window_frames))
    base = _count(denoiser)
    source.adapt(denoiser)

    precision = Precision.of(source.trainer.get("precision"))
    strategy, strategy_assumed = source.strategy(processes, zero)
    roles = _roles(stage, denoiser, base, source.keeps_average)
    try:
        measured = _Measured(source, denoiser, facts, precision, source.batch_size, device.is_cpu)
        training, working = _training(measured, evaluations, strategy, device, utilisation)
        stream, kept = _stream(measured, stage, recorder, device, utilisation, micro_steps, guidance)
    except ValueError as error:
        raise UserError(f"{recipe.path}: {error}") from error
    window = next(evaluation.layout for evaluation in evaluations if evaluation.gradient)
    memory = _memory(roles, precision, strategy, working, device)
    stages = range(0 if precision.name != "bf16-true" else 1, 4)
    by_zero = tuple(_memory(roles, precision, replace(strategy, zero=stage), working, device) for stage in stages)
    assumed = [*facts.assumed, *strategy_assumed]
    if facts.autoencoder is None:
        assumed.append("the autoencoder is unknown, so decoding is in no figure of the stream (--autoencoder)")
    shown = roles if facts.autoencoder is None else (*roles, RoleSize("autoencoder", _count(facts.autoencoder), 0))
    plan = Plan(
        recipe=str(recipe.path),
        stage=type(stage).__name__,
        denoiser=type(denoiser).__name__,
        device=device,
        utilisation=utilisation,
        precision=precision.name,
        strategy=strategy,
        assumed=tuple(assumed),
        geometry=_geometry(stage, facts),
        roles=shown,
        tokens=_tokens(window, measured.evaluation(window).plan),
        evaluations=tuple(_evaluations(measured, window, kept)),
        training=training,
        memory=memory,
        memory_by_zero=by_zero,
        stream=stream,
        warnings=(),
    )
    return replace(plan, warnings=tuple(advise(plan)))


def _count(network: nn.Module, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad or not trained)


def _roles(stage: DenoiserStage, denoiser: Denoiser, base: int, averaged: bool) -> tuple[RoleSize, ...]:
    trained = [name for name, module in stage.named_children() if isinstance(module, Recorder)]
    frozen = {name: value for name, value in vars(stage).items() if isinstance(value, Frozen)}
    total, own = _count(denoiser), _count(denoiser, trained=True)
    is_averaged = {name: averaged and getattr(stage, name) is stage.trained_module() for name in trained}
    roles = (RoleSize(name, total, own, is_averaged[name]) for name in trained)
    return (*roles, *(_frozen(name, holder, base, total, own) for name, holder in frozen.items()))


def _frozen(name: str, holder: Frozen, base: int, total: int, trained: int) -> RoleSize:
    """A teacher is a copy of the base; a target is one of the trained network, adapter included, with averages of what trains there."""
    return RoleSize(name, total, 0, followed=trained) if isinstance(holder, MovingTarget) else RoleSize(name, base, 0)


class _Measured:
    """Costs of a denoiser's evaluations; what was measured once is not measured again."""

    def __init__(self, source: Source, denoiser: Denoiser, facts: Facts, precision: Precision, batch: int, on_cpu: bool) -> None:
        self.source, self.denoiser, self.facts, self.precision, self.batch, self.on_cpu = source, denoiser, facts, precision, batch, on_cpu
        streams_bfloat16 = not on_cpu or computes_bfloat16("cpu")
        self.stream_precision = Precision("bf16-mixed" if streams_bfloat16 else "32-true")
        self._evaluations: dict[tuple[WindowLayout, bool], EvaluationCost] = {}
        self._trainings: dict[WindowLayout, TrainingCost] = {}

    @property
    def sizes(self) -> Sizes:
        return self.facts.sizes

    def evaluation(self, layout: WindowLayout, kept: bool = False) -> EvaluationCost:
        """A forward pass of one sample, as a stream makes it."""
        if (layout, kept) not in self._evaluations:
            self._evaluations[layout, kept] = evaluation_cost(
                self.denoiser, self.sizes, layout, self.stream_precision, kept=kept, on_cpu=self.on_cpu
            )
        return self._evaluations[layout, kept]

    def training(self, layout: WindowLayout) -> TrainingCost:
        """A forward and backward pass of a batch."""
        if layout not in self._trainings:
            self._trainings[layout] = training_cost(self.denoiser, self.sizes, layout, self.precision, self.batch, self.on_cpu)
        return self._trainings[layout]

    def saved(self, layout: WindowLayout, choice: str) -> int:
        """Bytes that a forward pass of a batch keeps under another choice of checkpointing."""
        network = self.source.outline(checkpointing=choice)
        self.source.adapt(network)
        return saved_bytes(network, self.sizes, layout, self.precision, self.batch, self.on_cpu)


def _geometry(stage: DenoiserStage, facts: Facts) -> Geometry:
    _, height, width = facts.sizes.latent
    stride = facts.spatial_stride
    video_frames = stage.chunk_frames * facts.temporal_stride
    picture = None if stride is None else (height * stride, width * stride)
    return Geometry(picture, facts.sizes.latent, stage.chunk_frames, stage.num_chunks, video_frames, video_frames / FRAMES_PER_SECOND)


def _tokens(window: WindowLayout, plan: AttentionPlan | None) -> Tokens | None:
    if plan is None:
        return None
    text, audio, visual = (sum(sizes) for sizes in plan.sizes)
    layout = plan.layout  # a reference that lies beside the other frames has no tokens
    frames, segments = layout.num_frames, len(layout.segments)
    visual, audio, text = visual // frames, audio // frames, text // segments
    found = tuple(SegmentTokens(s.kind, s.num_frames, s.num_frames * visual, s.num_frames * audio, text) for s in layout.segments)
    totals = [s.visual + s.audio + s.text for s in found]
    memory = sum(totals[: layout.num_memory_segments])
    pairs = sum((end - start) * sum(last - first for first, last in keys) for start, end, keys in plan.rectangles)
    return Tokens(found, memory, sum(totals) - memory, pairs)


def _over(evaluation: Evaluation) -> str:
    if evaluation.encodes_memory:
        return "memory alone"
    return "stream before kept memory" if evaluation.kept else "whole window"


def _evaluations(measured: _Measured, window: WindowLayout, stream_window: WindowLayout) -> Iterator[EvaluationPlan]:
    """The training window, and the stream's window in the ways in which it can be computed."""
    wanted = [("whole training window", window, False)]
    if stream_window != window:
        wanted.append(("whole window of the stream", stream_window, False))
    if measured.denoiser.reuses_memory and stream_window.visibility.causal and stream_window.num_memory_frames:
        wanted += [("stream before kept memory", stream_window, True), ("memory alone", stream_window.memory, False)]
    for over, layout, kept in wanted:
        flops = measured.evaluation(layout, kept).flops
        yield EvaluationPlan(over, flops.total, flops.linear, flops.attention)


def _training(
    measured: _Measured, evaluations: Mapping[Evaluation, float], strategy: Strategy, device: Device, utilisation: float
) -> tuple[TrainingPlan, int]:
    """A training step, and the memory that it works in."""
    batch, source = measured.batch, measured.source
    weights = _count(measured.denoiser) * measured.precision.weights.itemsize
    model, work, working = 0.0, Work(), 0
    for evaluation, rate in evaluations.items():
        cost = measured.evaluation(evaluation.layout, evaluation.kept)
        if evaluation.gradient:
            training = measured.training(evaluation.layout)
            model += rate * cost.flops.training
            work += Work(training.flops.total, 3 * weights, training.operations) * rate
            working = max(working, training.peak_bytes)
        else:
            model += rate * cost.flops.total
            work += Work(cost.flops.total * batch, weights, cost.operations) * rate
            working = max(working, cost.peak_bytes * batch)
    window = next(evaluation.layout for evaluation in evaluations if evaluation.gradient)
    choice = source.choice
    saved = {choice or "none": measured.training(window).saved_bytes // batch}
    saved |= {other: measured.saved(window, other) // batch for other in source.choices if other != choice}
    updated = _count(measured.denoiser, trained=True) / (strategy.processes if strategy.zero else 1)
    whole = work * source.accumulated + Work(num_bytes=_OPTIMIZER_TRAFFIC * updated)
    seconds = device.seconds(whole, measured.precision.products, utilisation)
    counted: dict[tuple[str, str, int, bool], float] = {}
    for evaluation, rate in evaluations.items():
        name = (evaluation.role, _over(evaluation), evaluation.layout.num_frames, evaluation.gradient)
        counted[name] = counted.get(name, 0.0) + rate
    steps = tuple(StepEvaluations(*name, per_step=rate) for name, rate in counted.items())
    ordered = {name: saved[name] for name in (source.choices or saved)}
    samples = batch * source.accumulated * strategy.processes / seconds
    plan = TrainingPlan(
        evaluations=steps,
        batch_size=batch,
        accumulated=source.accumulated,
        checkpointing=choice,
        model_flops_per_sample=model,
        flops_per_sample=work.flops / batch,
        flops_per_step=whole.flops * strategy.processes,
        saved_bytes_per_sample=ordered,
        seconds_per_step=seconds,
        samples_per_second=samples,
    )
    return plan, working


def _memory(roles: tuple[RoleSize, ...], precision: Precision, strategy: Strategy, working: int, device: Device) -> DeviceMemory:
    found = states(roles, precision, strategy)
    peak = found.total + working
    return DeviceMemory(found, working, peak, None if device.memory_bytes is None else peak <= device.usable_bytes)


def _stream(
    measured: _Measured, stage: DenoiserStage, recorder: Recorder, device: Device, utilisation: float, micro_steps: int | None, guidance: float
) -> tuple[StreamPlan, WindowLayout]:
    """The stream, and the layout of its window."""
    arguments, facts = measured.source.arguments, measured.facts
    staircase = trained_staircase(stage.lineage(), arguments, micro_steps)
    engine = WindowEngine(recorder, stage.memory, staircase, Guidance(guidance), visibility=trained_visibility(arguments))
    audio = facts.sizes.audio[0]
    evaluations = record_stream(engine, stage.chunk_frames, audio)
    anew = record_stream(replace(engine, reuse_memory=False), stage.chunk_frames, audio)
    window = next(evaluation.layout for evaluation in anew)

    weights = 4 * _count(measured.denoiser)  # checkpoints hold float32
    flops, seconds, features, working = 0.0, 0.0, 0, 0
    for evaluation, rate in evaluations.items():
        cost = measured.evaluation(evaluation.layout, evaluation.kept)
        if evaluation.kept:
            features = measured.evaluation(window.memory).result_bytes * engine.guidance.evaluations
        flops += rate * cost.flops.total
        work = Work(cost.flops.total, weights + features, cost.operations)
        seconds += rate * device.seconds(work, measured.stream_precision.products, utilisation)
        working = max(working, cost.peak_bytes)
    decode, decode_seconds = None, 0.0
    memory = weights + features + working
    if facts.autoencoder is not None:
        decode, decode_peak = _decoding(facts.autoencoder, facts.sizes, stage.chunk_frames, measured.stream_precision)
        decode_weights = 4 * _count(facts.autoencoder)
        decode_seconds = device.seconds(Work(decode, decode_weights), measured.stream_precision.products, utilisation)
        memory = weights + features + decode_weights + max(working, decode_peak)
    frames = stage.chunk_frames * facts.temporal_stride
    budget = LatencyBudget(staircase.num_chunks, stage.chunk_frames, facts.temporal_stride)
    plan = StreamPlan(
        evaluations_per_chunk=engine.evaluations_per_chunk,
        reuses_memory=engine.reuse_pays,
        flops_per_chunk=flops,
        flops_per_chunk_without_reuse=sum(rate * measured.evaluation(evaluation.layout).flops.total for evaluation, rate in anew.items()),
        decode_flops_per_chunk=decode,
        memory_bytes=memory,
        seconds_per_chunk=seconds + decode_seconds,
        frames_per_second=frames / (seconds + decode_seconds),
        first_frame_seconds=staircase.num_chunks * seconds + decode_seconds,
        audio_lookahead_seconds=budget.audio_lookahead_seconds,
        prompt_to_motion_seconds=budget.prompt_to_motion_seconds,
    )
    return plan, window


def _decoding(autoencoder: Autoencoder, sizes: Sizes, chunk_frames: int, precision: Precision) -> tuple[float, int]:
    """Operations of decoding a chunk in a stream that has run for a while, and the most bytes alive besides weights."""
    autoencoder = autoencoder.eval().requires_grad_(False)
    given = [*autoencoder.parameters(), *autoencoder.buffers()]
    flops = 0.0
    with torch.no_grad(), Accelerator(precision.autocast), Meter(given) as meter:
        _, state = autoencoder.decode_stream(torch.empty(1, 1, *sizes.latent, device="meta"))
        for _ in range(3):
            before = meter.flops.total
            _, state = autoencoder.decode_stream(torch.empty(1, chunk_frames, *sizes.latent, device="meta"), state)
            flops = meter.flops.total - before
    return flops, meter.peak

"""Where a plan is known to hurt, and what would help. Few, and only what the plan's own figures show."""

from __future__ import annotations

from collections.abc import Iterator

from flowact.budget.records import Plan
from flowact.budget.states import GATHERED_PARAMETERS
from flowact.budget.units import bytes_text
from flowact.types import FRAMES_PER_SECOND

#: recomputation below this share of a step is not worth a word
_WORTH_TELLING = 1.1


def advise(plan: Plan) -> Iterator[str]:
    """Sentences for people."""
    yield from _memory(plan)
    yield from _zero(plan)
    yield from _speed(plan)


def _memory(plan: Plan) -> Iterator[str]:
    memory, training, limit = plan.memory, plan.training, plan.device.usable_bytes
    if memory.fits is False:
        needed = f"training needs {bytes_text(memory.peak_bytes)} a device and does not fit in {bytes_text(limit)} of {plan.device.name}"
        helps = " or with ".join(_remedies(plan))
        yield f"{needed}; {f'it would with {helps}' if helps else 'use more processes, LoRA, fewer chunks or a smaller picture'}"
    elif memory.fits and training.flops_per_sample > _WORTH_TELLING * training.model_flops_per_sample:
        more = training.flops_per_sample / training.model_flops_per_sample - 1
        lighter = [choice for choice, saving in _savings(plan).items() if saving < 0 and memory.peak_bytes - saving <= limit]
        if lighter:
            yield f"checkpointing {training.checkpointing} computes {more:.0%} more than is needed; {' or '.join(lighter)} would fit too"
    if plan.stream.memory_bytes > limit:
        yield f"the stream needs {bytes_text(plan.stream.memory_bytes)} and does not fit in {bytes_text(limit)} of {plan.device.name}"


def _savings(plan: Plan) -> dict[str, int]:
    """Bytes that other choices of checkpointing would keep less than the recipe's."""
    training, saved = plan.training, plan.training.saved_bytes_per_sample
    own = saved[training.checkpointing or "none"]
    return {choice: (own - kept) * training.batch_size for choice, kept in saved.items() if choice != training.checkpointing}


def _remedies(plan: Plan) -> list[str]:
    """The smallest changes under which training fits: one of them, or else two together."""
    limit, memory = plan.device.usable_bytes, plan.memory
    savings = {choice: saving for choice, saving in _savings(plan).items() if saving > 0}
    stages = [row for row in plan.memory_by_zero if row.states.total < memory.states.total]
    found = [f"checkpointing {choice}" for choice, saving in savings.items() if memory.peak_bytes - saving <= limit]
    found += [f"ZeRO stage {row.states.zero}" for row in stages if row.peak_bytes <= limit][:1]
    if not found and plan.training.batch_size > 1 and memory.states.total + memory.working_bytes / plan.training.batch_size <= limit:
        found = ["batch_size 1 and more accumulate_grad_batches"]
    together = [(row.states.zero, choice) for row in stages for choice, saving in savings.items() if row.peak_bytes - saving <= limit]
    return found or [f"ZeRO stage {stage} and checkpointing {choice}" for stage, choice in together[:1]]


def _zero(plan: Plan) -> Iterator[str]:
    trains = sum(role.parameters for role in plan.roles if role.trained)
    frozen = plan.memory.states.frozen
    if plan.strategy.zero != 3 or plan.strategy.processes == 1:
        return
    if 2 * trains <= GATHERED_PARAMETERS:  # the backward pass comes soon enough
        yield (
            f"ZeRO stage 3 with {trains:,} parameters: DeepSpeed lets go of none between forward and backward pass, so it saves no memory for "
            "weights, and gathers them in each step; stage 2 is faster"
        )
    elif any(row.fits and row.states.zero == 2 for row in plan.memory_by_zero):
        yield "ZeRO stage 2 fits too, and does not gather the weights in each pass"
    if frozen and not plan.strategy.partition_frozen:
        yield f"frozen networks are whole on every device: {bytes_text(frozen)}; strategy.partition_frozen shares them out"


def _speed(plan: Plan) -> Iterator[str]:
    device = plan.device
    if plan.precision == "32-true" and device.fp32_flops < device.bf16_flops / 2 and not device.is_cpu:
        share = device.bf16_flops / device.fp32_flops
        yield f"trainer.precision 32-true computes at a {share:.0f}th of this device's bfloat16; bf16-mixed keeps weights in float32"
    if plan.precision != "32-true" and device.bf16_flops < device.fp32_flops:
        yield f"{device.name} computes bfloat16 at {device.bf16_flops / device.fp32_flops:.0%} of float32's speed; set trainer.precision=32-true"
    if plan.stream.frames_per_second < FRAMES_PER_SECOND:
        yield f"the stream is predicted to reach {plan.stream.frames_per_second:.3g} of the {FRAMES_PER_SECOND} frames a second that it shows"


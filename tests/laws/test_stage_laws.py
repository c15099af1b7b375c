"""What every stage regresses on: exact velocities, frame-aligned memory, no gradient where none belongs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import ConstantDenoiser, KnowingDenoiser, PerfectDenoiser, knowing_batch, learning_denoiser

from flowact.conditioning.dropout import ConditionDropout
from flowact.memory import GaussianMemory, GeneratedMemory, GroundTruthMemory, SlidingWindowMemory, StructuredMemory
from flowact.schedulers import IndependentLevels, LogitNormalLevel, StaircaseLevels
from flowact.stages import ChunkwiseDiffusionForcing, FlowMatchingPretraining, SelfForcing, StepDistillation

N, W = 2, 3
SIZES = {"chunk_frames": N, "num_chunks": W}
OFF = ConditionDropout(0.0, 0.0)


def structured():
    return StructuredMemory(long=3, short=1, chunk_frames=N)


def pretraining(denoiser, **options):
    return FlowMatchingPretraining(denoiser, **(SIZES | {"dropout": OFF} | options))


def diffusion_forcing(denoiser, **options):
    return ChunkwiseDiffusionForcing(denoiser, **(SIZES | {"memory": structured(), "dropout": OFF} | options))


def self_forcing(denoiser, intermediate=None, **options):
    stage = SelfForcing(denoiser, **(SIZES | {"memory": structured(), "dropout": OFF} | options))
    stage.intermediate.copy_from(intermediate or denoiser)
    return stage


def distillation(denoiser, teacher=None, **options):
    stage = StepDistillation(denoiser, **(SIZES | {"memory": structured()} | options))
    stage.intermediate.copy_from(teacher or denoiser)
    return stage


STAGES = [pretraining, diffusion_forcing, self_forcing, distillation]


def batch_for(stage, **options):
    return knowing_batch(stage.history_frames + stage.num_chunks * stage.chunk_frames, **options)


# --- targets


@pytest.mark.parametrize("make", STAGES)
@pytest.mark.parametrize("training", [True, False])
def test_a_perfect_denoiser_has_no_loss(make, training):
    torch.manual_seed(0)
    stage = make(PerfectDenoiser()).train(training)
    error_BF, sigma_BF, loss = stage.flow_matching(batch_for(stage))
    assert error_BF.shape == sigma_BF.shape == (2, N * W)
    assert float(loss.detach()) < 1e-8
    assert torch.equal(loss, error_BF.mean())


class Seeing(ConstantDenoiser):
    """Predicts nothing and keeps what it was shown."""

    def velocity(self, latents, sigma, known):
        self.shown = latents, sigma, known
        return torch.zeros_like(latents)


@pytest.mark.parametrize("make", [pretraining, diffusion_forcing, self_forcing])
def test_the_target_is_noise_minus_data_and_the_input_lies_between_them(make):
    """From the input (1 - s) x0 + s eps and the known x0 follows eps; the squared error of predicting zero is |eps - x0|^2."""
    torch.manual_seed(0)
    seeing = Seeing()
    stage = make(seeing, levels=IndependentLevels(), **({"corruptor": GroundTruthMemory()} if make is self_forcing else {}))
    error_BF, sigma_BF, _ = stage.flow_matching(batch_for(stage))
    noisy, sigma, clean = seeing.shown
    assert torch.equal(sigma[:, :, 0, 0, 0], sigma_BF)
    noise = (noisy - (1 - sigma) * clean) / sigma
    torch.testing.assert_close(error_BF, (noise - clean).square().mean(dim=(2, 3, 4)), atol=1e-3, rtol=1e-3)
    assert abs(float(noise.std()) - 1) < 0.2


@pytest.mark.parametrize("levels", [LogitNormalLevel(), IndependentLevels(), StaircaseLevels()])
def test_a_chunk_has_one_level(levels):
    stage = diffusion_forcing(PerfectDenoiser(), levels=levels)
    _, sigma_BF, _ = stage.flow_matching(batch_for(stage))
    by_chunk = sigma_BF.unflatten(1, (W, N))
    assert torch.equal(by_chunk, by_chunk[:, :, :1].expand_as(by_chunk))
    assert (by_chunk[:, 0, 0] == by_chunk[:, 1, 0]).all() == isinstance(levels, LogitNormalLevel)


def test_only_pretraining_lets_the_reference_see_the_stream():
    class Layouts(PerfectDenoiser):
        def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
            self.layout = layout
            return super().forward(latents_BFCHW, sigma_BF, conditions, layout)

    for make in STAGES:
        denoiser = Layouts()
        stage = make(denoiser)
        stage.flow_matching(batch_for(stage))
        assert denoiser.layout.visibility.causal == (make is not pretraining)
        assert denoiser.layout.num_memory_frames == stage.memory.num_frames


# --- chunks


def test_a_chunk_has_the_caption_of_its_middle_frame_and_its_own_sound():
    stage = diffusion_forcing(PerfectDenoiser(), chunk_frames=3, memory=StructuredMemory(long=0, chunk_frames=3))
    batch = batch_for(stage, captions=4)
    index = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 0, 1])
    batch = replace(batch, text_index_BF=torch.stack([index, index.flip(0)]))
    chunks = stage.chunks(batch, 0, 4)
    assert [int(chunk.text_BLD[0, 0, 0]) for chunk in chunks] == [int(index[f]) for f in (1, 4, 7, 10)]
    assert [int(chunk.text_BLD[1, 0, 0]) for chunk in chunks] == [int(index.flip(0)[f]) for f in (1, 4, 7, 10)]
    for k, chunk in enumerate(chunks):
        assert torch.equal(chunk.latents_BFCHW, batch.latents_BFCHW[:, 3 * k : 3 * k + 3])
        assert torch.equal(chunk.audio_BFAD, batch.audio_BFAD[:, 3 * k : 3 * k + 3])


@pytest.mark.parametrize("make", STAGES)
def test_history_and_stream_share_the_window_out(make):
    stage = make(PerfectDenoiser()).eval()
    batch = batch_for(stage)
    runs = [chunk.latents_BFCHW for chunk in (*stage.history(batch), *stage.stream(batch))]
    assert torch.equal(torch.cat(runs, dim=1), batch.latents_BFCHW)


@pytest.mark.parametrize("training", [True, False])
def test_some_training_steps_begin_as_a_stream_does(training):
    """The latest chunks are kept; what they do not reach holds the reference. Validation always has the whole history."""
    torch.manual_seed(0)
    stage = diffusion_forcing(PerfectDenoiser(), start=1.0).train(training)
    batch = batch_for(stage)
    lengths = set()
    for _ in range(30):
        history = stage.history(batch)
        lengths.add(len(history))
        for chunk, clean in zip(reversed(history), reversed(stage.chunks(batch, 0, 4)), strict=False):
            assert torch.equal(chunk.latents_BFCHW, clean.latents_BFCHW)
    assert lengths == ({0, 1, 2, 3} if training else {4})
    memory = stage.remember(batch, [])
    assert torch.equal(memory.latents_BFCHW, batch.reference_BFCHW.expand_as(memory.latents_BFCHW))


def test_training_memory_is_the_memory_of_a_stream():
    """`remember` writes history as the engine writes what leaves it, so both read the same."""
    stage = diffusion_forcing(PerfectDenoiser()).eval()
    batch = batch_for(stage)
    memory = stage.memory_of(batch)
    last = [N * k + N - 1 for k in range(4)]
    assert torch.equal(memory.latents_BFCHW, torch.cat([batch.reference_BFCHW, batch.latents_BFCHW[:, last]], dim=1))
    assert torch.equal(memory.audio_BFAD[:, 1:], batch.audio_BFAD[:, last])
    assert not memory.text_BSLD[:, 0].any()


# --- gradients


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (pretraining, {}),
        (diffusion_forcing, {}),
        *((make, {"corruptor": corruptor}) for make in (self_forcing, distillation) for corruptor in (GaussianMemory(), GeneratedMemory(1.0))),
    ],
)
def test_no_gradient_flows_into_memory(make, options):
    torch.manual_seed(0)
    stage = make(learning_denoiser(), **options).train()
    batch = batch_for(stage)
    latents, reference = batch.latents_BFCHW.requires_grad_(), batch.reference_BFCHW.requires_grad_()
    stage.flow_matching(batch)[2].backward()
    assert latents.grad is not None
    assert not latents.grad[:, : stage.history_frames].any()
    assert latents.grad[:, stage.history_frames :].any()
    assert reference.grad is None or not reference.grad.any()
    assert all(parameter.grad is not None for parameter in stage.denoiser.parameters())
    if hasattr(stage, "intermediate"):
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in stage.intermediate.network.parameters())


# --- generated memory


@pytest.mark.parametrize("memory", [structured(), SlidingWindowMemory(chunks=2, chunk_frames=N)])
def test_memory_generated_by_a_perfect_model_is_the_clean_memory(memory):
    torch.manual_seed(0)
    stage = self_forcing(PerfectDenoiser(), memory=memory, corruptor=GeneratedMemory(1.0), start=0.0).train()
    batch = batch_for(stage)
    generated, clean = stage.memory_of(batch), stage.remember(batch, stage.history(batch))
    torch.testing.assert_close(generated.latents_BFCHW, clean.latents_BFCHW, atol=1e-5, rtol=1e-4)
    assert torch.equal(generated.audio_BFAD, clean.audio_BFAD)
    assert torch.equal(generated.text_BSLD, clean.text_BSLD)


def test_generated_memory_of_an_imperfect_model_is_off_but_stays_aligned():
    """A model that errs by a constant: at level s one evaluation leaves an error of s times the constant, on the right frame."""

    class Erring(PerfectDenoiser):
        def velocity(self, latents, sigma, known):
            return super().velocity(latents, sigma, known) + 1.0

    stage = self_forcing(PerfectDenoiser(), Erring())
    batch = batch_for(stage)
    history = stage.chunks(batch, 0, 4)
    made = stage.regenerate(batch, history, torch.tensor([0.25, 0.75]))
    assert stage.intermediate.network.evaluations == 2, "four chunks, three at a time"
    for chunk, clean in zip(made, history, strict=True):
        error = chunk.latents_BFCHW - clean.latents_BFCHW
        expected = -torch.tensor([0.25, 0.75])[:, None, None, None, None].expand_as(error)
        torch.testing.assert_close(error, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(chunk.audio_BFAD, clean.audio_BFAD)


def test_later_history_is_generated_in_front_of_generated_memory():
    class Watching(PerfectDenoiser):
        def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
            self.memories = [*getattr(self, "memories", []), latents_BFCHW[:, : layout.num_memory_frames]]
            return super().forward(latents_BFCHW, sigma_BF, conditions, layout) + 0.5

    stage = self_forcing(PerfectDenoiser(), Watching())
    batch = batch_for(stage)
    made = stage.regenerate(batch, stage.chunks(batch, 0, 4), torch.full((2,), 0.5))
    first, second = stage.intermediate.network.memories
    assert torch.equal(first, batch.reference_BFCHW.expand_as(first))
    assert torch.equal(second[:, -3:], torch.cat([chunk.latents_BFCHW[:, -1:] for chunk in made[:3]], dim=1))


def test_validation_remembers_the_truth():
    stage = self_forcing(PerfectDenoiser(), learning_denoiser(), corruptor=GeneratedMemory(1.0)).eval()
    batch = batch_for(stage)
    assert torch.equal(stage.memory_of(batch).latents_BFCHW, stage.remember(batch, stage.chunks(batch, 0, 4)).latents_BFCHW)


# --- step distillation


@pytest.mark.parametrize("teacher_steps", [1, 4])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_where_the_flow_is_straight_one_step_is_as_good_as_many(teacher_steps, shift):
    torch.manual_seed(0)
    stage = distillation(PerfectDenoiser(), teacher_steps=teacher_steps, shift=shift).train()
    _, sigma_BF, loss = stage.flow_matching(batch_for(stage))
    assert float(loss.detach()) < 1e-8
    torch.testing.assert_close(sigma_BF[0, ::N], stage.staircase.stairs(0))
    assert stage.intermediate.network.evaluations == teacher_steps + 2, "the teacher's steps, and two to generate memory"


@pytest.mark.parametrize("teacher_steps", [1, 3])
def test_guidance_is_built_into_the_target(teacher_steps):
    """Without sound the teacher believes in an empty picture, so guidance w aims at w x0; a student that aims there has no loss."""

    class Exaggerating(KnowingDenoiser):
        def velocity(self, latents, sigma, known):
            return (latents - 3.0 * known) / sigma

    torch.manual_seed(0)
    stage = distillation(Exaggerating(), PerfectDenoiser(), teacher_steps=teacher_steps, guidance=3.0)
    assert float(stage.flow_matching(batch_for(stage))[2]) < 1e-7
    plain = distillation(PerfectDenoiser(), PerfectDenoiser(), teacher_steps=teacher_steps, guidance=3.0)
    assert float(plain.flow_matching(batch_for(plain))[2]) > 0.1


def test_a_curved_flow_gives_the_mean_velocity_over_the_stair():
    """dx/ds = 2 s has the solution x + s^2: Euler with M steps falls by a known amount, and the target is that amount over the stair."""

    class Curved(KnowingDenoiser):
        def velocity(self, latents, sigma, known):
            return (2 * sigma).expand_as(latents)

    stage = distillation(Seeing(), Curved(), teacher_steps=2)
    error_BF, _, _ = stage.flow_matching(batch_for(stage))
    top = stage.staircase.stairs(0)
    target = top + stage.staircase.stairs(1)  # the mean of 2 s at the stair's top and at its middle
    torch.testing.assert_close(error_BF[0].unflatten(0, (W, N))[:, 0], target.square(), atol=1e-4, rtol=1e-4)


def test_teacher_and_student_see_the_same_memory():
    seen = {}

    def watching(name):
        class Watching(PerfectDenoiser):
            def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
                seen.setdefault(name, []).append(latents_BFCHW[:, : layout.num_memory_frames])
                return super().forward(latents_BFCHW, sigma_BF, conditions, layout)

        return Watching()

    stage = distillation(watching("student"), watching("teacher"), teacher_steps=2, corruptor=GaussianMemory(0.5)).train()
    stage.flow_matching(batch_for(stage))
    assert len(seen["teacher"]) == 2
    assert all(torch.equal(memory, seen["student"][0]) for memory in seen["teacher"])

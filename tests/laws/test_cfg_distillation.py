"""What guidance distillation promises: the named convention, a start without effect, and a student that equals the guided teacher."""

from __future__ import annotations

import pytest
import torch
from oracle import AUDIO_WIDTH, CHANNELS, TEXT_WIDTH, KnowingDenoiser, PerfectDenoiser, knowing_batch, learning_denoiser
from torch import nn

from flowact.errors import UserError
from flowact.memory import GeneratedMemory, GroundTruthMemory, NoMemory, StructuredMemory
from flowact.models.mmdit import MMDiT
from flowact.sampling import Guidance, WindowEngine, predict_velocity
from flowact.sampling.pipeline import asked_guidance
from flowact.schedulers import IndependentLevels
from flowact.schedulers.staircase import Staircase
from flowact.stages import CFGDistillation

N, W = 2, 2


class LinearTeacher(KnowingDenoiser):
    """v = a x + b text + c sound + d text sound: the last term tells the order in which conditions are added."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.7, -0.4, 0.9, 0.3]))

    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        stream = layout.num_memory_frames
        x = latents_BFCHW[:, stream:]
        text = conditions.text_BSLD[:, layout.num_memory_segments :].mean((1, 2, 3)).reshape(-1, 1, 1, 1, 1)
        sound = conditions.audio_BFAD[:, stream:].reshape(x.shape)
        return self.mixed(x, text, sound, conditions.guidance_BG)

    def mixed(self, x, text, sound, scales_BG):
        a, b, c, d = self.weights
        return a * x + b * text + c * sound + d * text * sound


class LinearStudent(LinearTeacher):
    """Starts as the teacher; how the scales enter is to be learnt."""

    takes_guidance = True

    def __init__(self):
        super().__init__()
        self.by_scale = nn.Parameter(torch.zeros(3))

    def mixed(self, x, text, sound, scales_BG):
        a, b, c, d = self.weights
        w_text, w_audio = (scales_BG - 1).reshape(-1, 2, 1, 1, 1, 1).unbind(1)
        b, c, d = b + self.by_scale[0] * w_text, c + self.by_scale[1] * w_audio, d + self.by_scale[2] * w_audio
        return a * x + b * text + c * sound + d * text * sound


def stage_of(student, teacher, **options):
    memory = StructuredMemory(long=1, short=1, chunk_frames=N)
    sizes = {"memory": memory, "chunk_frames": N, "num_chunks": W, "corruptor": GroundTruthMemory(), "levels": IndependentLevels()}
    stage = CFGDistillation(student, **(sizes | options))
    stage.intermediate.copy_from(teacher)
    return stage


def batch_for(stage, **options):
    return knowing_batch(stage.history_frames + N * W, **({"captions": 4} | options))


def window(stage, seed=0):
    """Memory, a noisy stream and its levels."""
    batch = batch_for(stage, seed=seed)
    return stage.remember(batch, stage.history(batch)), stage.stream(batch), torch.full((2, W), 0.5)


def test_the_target_adds_text_and_then_audio_given_text_each_times_its_scale():
    """Scale 0 leaves a condition out, 1 is no guidance, and equal scales are `Guidance`."""
    stage = stage_of(LinearStudent(), LinearTeacher())
    memory, stream, sigma = window(stage)
    x = sound = torch.cat([chunk.latents_BFCHW for chunk in stream], dim=1)
    text = torch.stack([chunk.text_BLD for chunk in stream], dim=1).mean((1, 2, 3)).reshape(-1, 1, 1, 1, 1)
    assert bool(text.any())
    a, b, c, d = stage.intermediate.network.weights
    scales = torch.tensor([[2.0, 3.0], [0.5, 4.0]])
    w_text, w_audio = scales.reshape(2, 2, 1, 1, 1, 1).unbind(1)
    expected = a * x + w_text * b * text + w_audio * (c * sound + d * text * sound)
    torch.testing.assert_close(stage.guided_velocity(memory, stream, sigma, scales), expected)
    for both in (0.0, 1.0, 2.5):
        guided = predict_velocity(stage.intermediate.network, memory, stream, sigma, guidance=Guidance(both))
        torch.testing.assert_close(stage.guided_velocity(memory, stream, sigma, torch.full((2, 2), both)), guided)


def test_a_student_trained_to_convergence_equals_the_guided_teacher():
    torch.manual_seed(0)
    stage = stage_of(LinearStudent(), LinearTeacher(), text=(0.0, 3.0), audio=(1.0, 4.0)).train()
    optimizer = torch.optim.Adam(stage.denoiser.parameters(), lr=0.03)
    for step in range(400):
        optimizer.zero_grad()
        loss = stage.flow_matching(batch_for(stage, seed=step % 20))[2]
        loss.backward()
        optimizer.step()
        if step == 0:
            assert float(loss.detach()) > 0.1
    memory, stream, sigma = window(stage, seed=99)
    with torch.no_grad():
        for scale in (1.0, 2.0, 3.0):
            scales = torch.full((2, 2), scale)
            student = predict_velocity(stage.denoiser, memory, stream, sigma, scales_BG=scales)
            teacher = predict_velocity(stage.intermediate.network, memory, stream, sigma, guidance=Guidance(scale))
            torch.testing.assert_close(student, teacher, atol=1e-2, rtol=1e-2)
        scales = torch.tensor([[0.0, 4.0], [3.0, 1.0]])
        student = predict_velocity(stage.denoiser, memory, stream, sigma, scales_BG=scales)
        torch.testing.assert_close(student, stage.guided_velocity(memory, stream, sigma, scales), atol=1e-2, rtol=1e-2)


def test_a_perfect_student_has_no_loss():
    student = LinearStudent()
    student.by_scale.data = student.weights.detach()[1:].clone()
    stage = stage_of(student, LinearTeacher()).train()
    assert float(stage.flow_matching(batch_for(stage))[2].detach()) < 1e-10


def test_scales_start_without_effect_and_the_student_as_the_teachers_conditional_model():
    torch.manual_seed(0)
    shape = {"width": 16, "num_heads": 2, "num_double_blocks": 1, "num_single_blocks": 1, "initial_gate": 0.5}
    student = MMDiT(CHANNELS, TEXT_WIDTH, AUDIO_WIDTH, **shape, guidance_embedding=True)
    nn.init.normal_(student.out.weight, std=0.5)
    stage = stage_of(student, student)
    memory, stream, sigma = window(stage)
    teacher = predict_velocity(stage.intermediate.network, memory, stream, sigma)
    assert bool(teacher.any())
    for scales in ([[1.0, 1.0], [3.0, 2.0]], [[4.0, 1.0], [1.0, 4.0]]):
        torch.testing.assert_close(predict_velocity(student, memory, stream, sigma, scales_BG=torch.tensor(scales)), teacher)
    stage = stage_of(student, student, text=(1.0, 1.0), audio=(1.0, 1.0)).train()
    assert float(stage.flow_matching(batch_for(stage))[2].detach()) < 1e-10


def test_no_gradient_flows_into_teacher_or_memory():
    torch.manual_seed(0)
    stage = stage_of(learning_denoiser(guidance_embedding=True), learning_denoiser(), corruptor=GeneratedMemory(1.0)).train()
    batch = batch_for(stage)
    latents = batch.latents_BFCHW.requires_grad_()
    stage.flow_matching(batch)[2].backward()
    assert not latents.grad[:, : stage.history_frames].any()
    assert latents.grad[:, stage.history_frames :].any()
    assert all(parameter.grad is not None for parameter in stage.denoiser.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in stage.intermediate.network.parameters())


def test_scales_are_uniform_in_their_ranges():
    torch.manual_seed(0)
    stage = stage_of(LinearStudent(), LinearTeacher(), text=(1.0, 5.0), audio=(0.0, 2.0))
    scales = stage.draw_scales(4000)
    assert float(scales[:, 0].min()) >= 1.0
    assert float(scales[:, 0].max()) <= 5.0
    torch.testing.assert_close(scales.mean(0), torch.tensor([3.0, 1.0]), atol=0.1, rtol=0.0)
    assert abs(float(torch.corrcoef(scales.T)[0, 1])) < 0.1
    torch.testing.assert_close(scales.std(0), torch.tensor([4.0, 2.0]) / 12**0.5, atol=0.05, rtol=0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": (1.5, 5.0)}, r"text from 1.5 to 5.0 leave 1 out.*set the range to \[1.0, 5.0\]"),
        ({"audio": (0.0, 0.5)}, r"audio from 0.0 to 0.5 leave 1 out.*\[0.0, 1.0\]"),
        ({"text": (3.0, 1.0)}, "not above the largest"),
        ({"audio": (-1.0, 2.0)}, "0 or more"),
        ({"audio": (1.0, float("nan"))}, "not above the largest"),
    ],
)
def test_impossible_ranges_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        stage_of(LinearStudent(), LinearTeacher(), **options)


def test_a_denoiser_without_scales_is_refused():
    with pytest.raises(ValueError, match=r"MMDiT as it is set takes no guidance scales; set denoiser\.guidance_embedding to true"):
        CFGDistillation(learning_denoiser())
    stage = stage_of(LinearStudent(), LinearTeacher())
    with pytest.raises(ValueError, match="PerfectDenoiser takes no guidance scales"):
        predict_velocity(PerfectDenoiser(), *window(stage), scales_BG=torch.ones(2, 2))


# --- in a stream


@pytest.mark.parametrize("reuse", [True, False])
def test_a_stream_with_scales_as_inputs_is_the_guided_stream_at_half_the_evaluations(reuse):
    student = LinearStudent()
    student.by_scale.data = student.weights.detach()[1:].clone()
    stage = stage_of(student, LinearTeacher(), memory=NoMemory())
    batch = knowing_batch(3 * N)
    first, second, third = (stage.chunks(batch, 0, 3)[k] for k in range(3))
    streams = []
    for denoiser, options in ((student, {"scales": (2.0, 2.0)}), (LinearTeacher(), {"guidance": Guidance(2.0)})):
        engine = WindowEngine(denoiser, NoMemory(), Staircase(2, 2), reuse_memory=reuse, **options)
        state = engine.start(first, [first], torch.Generator().manual_seed(0))
        with torch.no_grad():
            state, done = engine.step(state, second)
            _, last = engine.step(state, third)
        streams.append((done.latents_BFCHW, last.latents_BFCHW))
        assert engine.evaluations_per_chunk == (4 if denoiser is student else 8)
    torch.testing.assert_close(*streams)


def test_a_pipeline_asks_for_what_the_checkpoint_was_trained_for():
    lineage = {"guidance_ranges": {"text": [1.0, 4.0], "audio": [0.5, 2.0]}}
    assert asked_guidance(1.0, lineage) == (1.0, (1.0, 1.0))
    assert asked_guidance((3.0, 1.5), lineage) == (1.0, (3.0, 1.5))
    assert asked_guidance(3.0, {}) == (3.0, None)
    with pytest.raises(UserError, match=r"guidance 3 for audio: the model was distilled for scales from 0\.5 to 2"):
        asked_guidance(3.0, lineage)
    with pytest.raises(UserError, match="give one number"):
        asked_guidance((3.0, 1.5), {})

"""Each check accepts what the house ships and rejects a component that breaks one law, naming that law."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowact import registry, testing
from flowact.autoencoders.causal import CausalVideoAutoencoder
from flowact.characters.puppet import Puppet
from flowact.conditioning import HashedText, LogMel
from flowact.memory import ErrorBufferMemory, GaussianMemory, GeneratedMemory, GroundTruthMemory, NoMemory, SlidingWindowMemory, StructuredMemory
from flowact.models.mmdit import MMDiT
from flowact.planning.base import TimedPrompt
from flowact.planning.speech_activity import SpeechActivityPlanner
from flowact.schedulers.flow import LogitNormalLevel
from flowact.schedulers.forcing import IndependentLevels, MixedLevels, StaircaseLevels
from flowact.types import Visibility
from flowact.writers.frames import FrameFolderWriter


def broken(check, subject, law, **options):
    with pytest.raises(AssertionError, match=law):
        check(subject, **options)


# --- memory


@pytest.mark.parametrize(
    "bank", [StructuredMemory(), StructuredMemory(long=0), SlidingWindowMemory(chunks=2), NoMemory()], ids=lambda b: type(b).__name__
)
def test_shipped_banks_pass(bank):
    testing.check_memory_bank(bank)


class Growing(SlidingWindowMemory):
    def write(self, state, chunk):
        return replace(state, entries=(*state.entries, chunk))


class InPlace(SlidingWindowMemory):
    def write(self, state, chunk):
        state.reference.latents_BFCHW.add_(1)
        return super().write(state, chunk)


class Elephant(SlidingWindowMemory):
    history_chunks = 1


class Random(SlidingWindowMemory):
    def read(self, state):
        view = super().read(state)
        return replace(view, latents_BFCHW=view.latents_BFCHW + torch.rand(()) * (torch.arange(view.latents_BFCHW.shape[1]) > 0)[:, None, None, None])


class Mixing(SlidingWindowMemory):
    def write(self, state, chunk):
        return super().write(state, replace(chunk, audio_BFAD=chunk.audio_BFAD - chunk.audio_BFAD.mean(0)))


class FromTheFuture(SlidingWindowMemory):
    def read(self, state):
        view = super().read(state)
        return replace(view, segments=tuple(replace(segment, position=segment.position + 1) for segment in view.segments))


class FaceChanging(SlidingWindowMemory):
    def write(self, state, chunk):
        return replace(super().write(state, chunk), reference=replace(state.reference, latents_BFCHW=state.reference.latents_BFCHW + 1))


@pytest.mark.parametrize(
    ("bank", "law"),
    [
        (Growing(), "num_frames frames in num_segments"),
        (InPlace(), "write changes neither"),
        (Elephant(chunks=2), "nothing older than history_chunks is seen"),
        (Random(), "the same writes give the same memory"),
        (Mixing(), "do not see each other"),
        (FromTheFuture(), "before the stream"),
        (FaceChanging(), "holds the reference for ever"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_bank_that_breaks_a_law_is_told_which(bank, law):
    broken(testing.check_memory_bank, bank, law)


@pytest.mark.parametrize("corruptor", [GroundTruthMemory(), GaussianMemory(), GeneratedMemory()], ids=lambda c: type(c).__name__)
def test_shipped_corruptors_pass(corruptor):
    testing.check_corruptor(corruptor)


class Eager(GeneratedMemory):
    def make(self, history, offer, generator=None):
        return super().make(history, replace(offer, checkpoint=offer.checkpoint or (lambda chunks, sigma: list(chunks))), generator)


class Losing(GroundTruthMemory):
    def make(self, history, offer, generator=None):
        return self.changed(list(history)[1:], False)

    def corrupt(self, history, offer=None, generator=None):
        return self.make(history, offer, generator)


class Deaf(Losing):
    def make(self, history, offer, generator=None):
        return self.changed([replace(chunk, audio_BFAD=torch.zeros_like(chunk.audio_BFAD)) for chunk in history], False)


class Skipping(GeneratedMemory):
    def make(self, history, offer, generator=None):
        if float(torch.rand((), generator=generator)) < 0.5:
            return self.changed(history, False)
        return super().make(history, offer, generator)


class Forgetful(ErrorBufferMemory):
    def restore(self, state):
        self.errors = None


@pytest.mark.parametrize(
    ("corruptor", "law"),
    [
        (Eager(), "without a model it says so"),
        (Losing(), "as many chunks"),
        (Deaf(), "conditions are kept"),
        (Skipping(), "does not decide how often a model is evaluated"),
        (Forgetful(1.0), "a restored state goes on exactly"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_corruptor_that_breaks_a_law_is_told_which(corruptor, law):
    broken(testing.check_corruptor, corruptor, law)


# --- conditioning


@pytest.mark.parametrize("encoder", [HashedText(), LogMel()], ids=lambda e: type(e).__name__)
def test_shipped_encoders_pass(encoder):
    testing.check_conditioning_encoder(encoder)


class Louder(LogMel):
    def encode(self, samples):
        return super().encode(samples) + samples.abs().mean()


class Clairvoyant(LogMel):
    def encode(self, samples):
        return super().encode(samples).roll(-2, 0)


class Careless(LogMel):
    def encode(self, samples):
        return super().encode(torch.nan_to_num(samples))


class Chatty(HashedText):
    def encode(self, captions):
        return super().encode([caption or "nothing" for caption in captions])


class Gossip(HashedText):
    def encode(self, captions):
        text = super().encode(captions)
        return text * (1 + text.any(-1).any(-1).sum() * text.any(-1, keepdim=True))


@pytest.mark.parametrize(
    ("encoder", "law"),
    [
        (Louder(), "no more of the (future|past)"),
        (Clairvoyant(), "no more of the future"),
        (Careless(), "not finite is refused"),
        (Chatty(), "an empty caption gives zeros"),
        (Gossip(), "do not depend on its neighbours"),
        (object(), "a TextEncoder or an AudioEncoder"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_encoder_that_breaks_a_law_is_told_which(encoder, law):
    broken(testing.check_conditioning_encoder, encoder, law)


# --- noise levels


@pytest.mark.parametrize("scheduler", [LogitNormalLevel(), IndependentLevels(), StaircaseLevels(), MixedLevels()], ids=lambda s: type(s).__name__)
def test_shipped_schedulers_pass(scheduler):
    testing.check_noise_scheduler(scheduler)


class TooNoisy(IndependentLevels):
    def sample(self, batch, num_chunks, generator=None):
        return 1.1 * super().sample(batch, num_chunks, generator)


class Global(IndependentLevels):
    def sample(self, batch, num_chunks, generator=None):
        return super().sample(batch, num_chunks, None)


class PerFrame(IndependentLevels):
    def sample(self, batch, num_chunks, generator=None):
        return super().sample(batch, 3 * num_chunks, generator)


@pytest.mark.parametrize(
    ("scheduler", "law"), [(TooNoisy(), r"lie in \[0, 1\]"), (Global(), "the generator alone"), (PerFrame(), r"\[batch, num_chunks\]")]
)
def test_a_scheduler_that_breaks_a_law_is_told_which(scheduler, law):
    broken(testing.check_noise_scheduler, scheduler, law)


# --- autoencoders


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    """Weights away from their zeros, so that a law cannot hold because a branch is off."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


def tiny(cls=CausalVideoAutoencoder):
    return disturbed(cls(latent_channels=4, width=16))


def test_shipped_autoencoder_passes():
    testing.check_autoencoder(tiny())


class Forgetful(CausalVideoAutoencoder):
    def decode_stream(self, latents_BFCHW, state=None):
        frames, after = super().decode_stream(latents_BFCHW, state)
        return frames, after._replace(previous_BFDHW=torch.zeros_like(after.previous_BFDHW))


class Centred(CausalVideoAutoencoder):
    def encode(self, frames_BCTHW):
        latents = super().encode(frames_BCTHW)
        return latents - latents.mean(1, keepdim=True)


class Tolerant(CausalVideoAutoencoder):
    def num_latents(self, num_frames):
        return -(-(num_frames - 1) // self.temporal_stride) + 1


@pytest.mark.parametrize(("cls", "law"), [(Forgetful, "streaming decode equals batch decode"), (Centred, "no later frame"), (Tolerant, "is refused")])
def test_an_autoencoder_that_breaks_a_law_is_told_which(cls, law):
    broken(testing.check_autoencoder, tiny(cls), law)


# --- denoisers


def denoiser(cls=MMDiT):
    return disturbed(cls(latent_channels=4, text_width=6, audio_width=5, width=32, num_heads=2, num_double_blocks=1, num_single_blocks=1))


def test_shipped_denoiser_passes():
    testing.check_denoiser(denoiser())


class SeesAll(MMDiT):
    reuses_memory = False

    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        return super().forward(latents_BFCHW, sigma_BF, conditions, replace(layout, visibility=Visibility()))


class WholeWindow(MMDiT):
    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        return torch.cat([latents_BFCHW[:, : layout.num_memory_frames], super().forward(latents_BFCHW, sigma_BF, conditions, layout)], dim=1)


class BatchNormed(MMDiT):
    def forward(self, latents_BFCHW, sigma_BF, conditions, layout):
        velocity = super().forward(latents_BFCHW, sigma_BF, conditions, layout)
        return velocity - velocity.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("cls", "law"), [(SeesAll, "does not see later chunks"), (WholeWindow, "stream frames"), (BatchNormed, "do not see each other")]
)
def test_a_denoiser_that_breaks_a_law_is_told_which(cls, law):
    broken(testing.check_denoiser, denoiser(cls), law)


# --- planners, characters, writers


def test_shipped_planner_passes():
    testing.check_planner(SpeechActivityPlanner())


class Talkative(SpeechActivityPlanner.__mro__[1]):
    prompts = (TimedPrompt(0.0, "speaking", "the person speaks"),)

    def plan(self, samples):
        return self.prompts


class Late(Talkative):
    prompts = (TimedPrompt(0.5, "idle", "the person waits"),)


class Singing(Talkative):
    prompts = (TimedPrompt(0.0, "singing", "the person sings"),)


class Backwards(Talkative):
    prompts = (TimedPrompt(0.0, "idle", "a"), TimedPrompt(2.0, "idle", "b"), TimedPrompt(1.0, "idle", "c"))


@pytest.mark.parametrize(
    ("planner", "law"),
    [(Talkative(), "nobody speaks in silence"), (Late(), "starts at 0"), (Singing(), "a state is one of"), (Backwards(), "in time order")],
)
def test_a_planner_that_breaks_a_law_is_told_which(planner, law):
    broken(testing.check_planner, planner, law)


def test_shipped_character_passes():
    testing.check_character(Puppet(size=64))


class Doppelganger(Puppet):
    def identity_distance(self, frames, identity):
        return -super().identity_distance(frames, identity)


class Mumbling(Puppet):
    def mouth_area(self, truth_TP):
        return np.random.default_rng(0).random(truth_TP.shape[0]) + np.linspace(1, 0, truth_TP.shape[0])


@pytest.mark.parametrize(("cls", "law"), [(Doppelganger, "nearest to their own identity"), (Mumbling, "follows the true mouth")])
def test_a_character_that_breaks_a_law_is_told_which(cls, law):
    broken(testing.check_character, cls(size=64), law)


def test_shipped_writer_passes(tmp_path):
    testing.check_writer(FrameFolderWriter(tmp_path / "frames", width=16, height=16, fps=25))


class Immortal(FrameFolderWriter):
    def close(self):
        """Nothing is finished."""


def test_a_writer_that_breaks_a_law_is_told_which(tmp_path: Path):
    broken(testing.check_writer, Immortal(tmp_path / "frames", width=16, height=16, fps=25), "a closed writer writes no more")


# --- constructors


class Untyped:
    """Has words.

    Args:
        a: a number.
    """

    def __init__(self, a=1) -> None: ...


class Undescribed:
    """Has words."""

    def __init__(self, a: int = 1) -> None: ...


class Wordless:
    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("cls", "law"), [(Untyped, "every argument is typed': a"), (Undescribed, "described under Args:': a"), (Wordless, "has a docstring")]
)
def test_a_constructor_that_breaks_a_law_is_told_which(cls, law):
    broken(testing.check_constructor, cls, law)


@pytest.mark.parametrize("component", [c for c in registry.components() if c.distribution == "flowact"], ids=lambda c: c.name)
def test_every_component_of_the_house_is_typed_and_described(component):
    testing.check_constructor(registry.load(component.name, component.kind))

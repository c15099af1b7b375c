"""Memory never sees the stream, so what is kept of it changes nothing but the number of frames that are computed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from laws.oracle import PerfectDenoiser, clean_chunks, knowing_chunk, learning_denoiser

from flowact.memory import NoMemory, SlidingWindowMemory, StructuredMemory
from flowact.sampling.window import Guidance, WindowEngine
from flowact.schedulers.staircase import Staircase
from flowact.types import Visibility

ISOLATED = Visibility(memory="isolated")


def stream(engine, num_steps=7):
    """Latents of the chunks that leave."""
    clean = clean_chunks(num_steps + 2)
    state = engine.start(knowing_chunk(clean[0][:, :1]), [knowing_chunk(x, x) for x in clean[:2]], torch.Generator().manual_seed(0))
    left = []
    with torch.no_grad():
        for x in clean[2:]:
            state, done = engine.step(state, knowing_chunk(x))
            left.append(done.latents_BFCHW)
    return torch.stack(left)


@contextmanager
def counted(denoiser):
    """Frames that go through the network as memory alone, and evaluations of the stream."""
    counts = {"memory frames": 0, "evaluations": 0}
    encode = denoiser.encode_memory

    def watch(latents_BFCHW, conditions, layout):
        counts["memory frames"] += latents_BFCHW.shape[1]
        return encode(latents_BFCHW, conditions, layout)

    denoiser.encode_memory = watch
    handle = denoiser.register_forward_hook(lambda *_: counts.__setitem__("evaluations", counts["evaluations"] + 1))
    yield counts
    handle.remove()
    del denoiser.encode_memory


@pytest.mark.parametrize("bank", [StructuredMemory(), StructuredMemory(short=2, positions="contiguous"), SlidingWindowMemory(chunks=2), NoMemory()])
@pytest.mark.parametrize("visibility", [Visibility(), ISOLATED, Visibility(stream="block_causal", memory="isolated")])
@pytest.mark.parametrize(("micro_steps", "guidance"), [(1, 1.0), (3, 1.0), (2, 2.0)])
def test_a_stream_with_kept_memory_equals_one_without(bank, visibility, micro_steps, guidance):
    denoiser = learning_denoiser(reference="channels" if micro_steps == 2 else "segment").eval()
    engines = [
        WindowEngine(denoiser, bank, Staircase(micro_steps=micro_steps), Guidance(guidance), visibility=visibility, reuse_memory=reuse)
        for reuse in (False, True)
    ]
    torch.testing.assert_close(stream(engines[1]), stream(engines[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("visibility", "micro_steps", "expected"),
    [
        (Visibility(), 1, 0),  # memory changes with every step and is used once: it is computed with the stream
        (Visibility(), 4, 7 * 5),  # once per change of memory
        # the five entries of the start; then per step the new short entry, and the old one again where it becomes the newest of the long queue,
        # which the first time is the still picture that is known there already
        (ISOLATED, 1, 5 + 1 + 5 * 2),
        (ISOLATED, 4, 5 + 1 + 5 * 2),
    ],
)
def test_memory_is_computed_once_per_change_and_an_isolated_entry_once_in_its_life(visibility, micro_steps, expected):
    denoiser = learning_denoiser().eval()
    engine = WindowEngine(denoiser, StructuredMemory(), Staircase(micro_steps=micro_steps), visibility=visibility)
    with counted(denoiser) as counts:
        stream(engine)
    assert counts == {"memory frames": expected, "evaluations": 7 * micro_steps}


def test_guidance_keeps_both_memories():
    denoiser = learning_denoiser().eval()
    engine = WindowEngine(denoiser, StructuredMemory(), Staircase(micro_steps=2), Guidance(2.0), visibility=ISOLATED)
    with counted(denoiser) as counts:
        stream(engine)
    assert counts == {"memory frames": 2 * (5 + 1 + 5 * 2), "evaluations": 7 * 2 * 2}


def test_entries_of_unknown_identity_are_computed_again():
    class Nameless(StructuredMemory):
        def read(self, state):
            view = super().read(state)
            return type(view)(view.latents_BFCHW, view.audio_BFAD, view.text_BSLD, view.segments)

    denoiser = learning_denoiser().eval()
    engine = WindowEngine(denoiser, Nameless(), Staircase(), visibility=ISOLATED)
    with counted(denoiser) as counts:
        stream(engine)
    assert counts["memory frames"] == 7 * 5


def test_a_denoiser_that_keeps_nothing_streams_all_the_same():
    engine = WindowEngine(PerfectDenoiser(), StructuredMemory(), Staircase(micro_steps=4))
    assert not engine.reuse_pays
    assert torch.isfinite(stream(engine)).all()
    with pytest.raises(NotImplementedError, match="PerfectDenoiser computes memory anew"):
        engine.denoiser.encode_memory(torch.zeros(1, 1, 2, 2, 2), None, None)


@pytest.mark.parametrize(("visibility", "micro_steps"), [(Visibility(), 2), (ISOLATED, 1)])
def test_compiled_blocks_see_a_handful_of_shapes_in_a_stream_of_two_hundred_chunks(visibility, micro_steps):
    """While memory fills up, and sound and prompt change with every chunk: no graph break, and after the start no compilation."""
    torch._dynamo.reset()
    denoiser = learning_denoiser().eval()
    denoiser.compile_blocks(backend="aot_eager")
    engine = WindowEngine(denoiser, StructuredMemory(), Staircase(micro_steps=micro_steps), visibility=visibility)
    clean = clean_chunks(203)
    state = engine.start(knowing_chunk(clean[0][:, :1]), [knowing_chunk(x, x) for x in clean[:2]], torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step, x in enumerate(clean[2:]):
            with torch.compiler.set_stance("fail_on_recompile" if step > 2 else "default"):
                state, done = engine.step(state, knowing_chunk(x, seed=step))
    assert torch.isfinite(done.latents_BFCHW).all()
    torch._dynamo.reset()

"""A network's own stream inside training: from the truth on, and with one graded evaluation for each chunk. Legend: flowact/types.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowact.sampling.window import WindowEngine, WindowState, gaussian, split_frames
from flowact.types import Chunk


def stream_from_truth(engine: WindowEngine, memory: Any, chunks: Sequence[Chunk], steps: int) -> tuple[WindowState, list[Chunk]]:
    """A stream that begins among true chunks and goes on by itself.

    The first W - 1 chunks stand on their stairs as noised truth, those after them enter as noise with their conditions.

    Args:
        engine: of the network that streams.
        memory: the bank's state before the first chunk.
        chunks: in order of time, at least W - 1 + steps of them.
        steps: how far the stream goes.

    Returns:
        where it then stands, and the chunks that have left it.
    """
    standing = engine.staircase.num_chunks - 1
    stairs = engine.staircase.stairs(0.0).tolist()
    stream = [chunk.noised(sigma, gaussian(chunk.latents_BFCHW)) for chunk, sigma in zip(chunks[:standing], stairs, strict=False)]
    state, done = WindowState(memory, tuple(stream)), []
    for chunk in chunks[standing : standing + steps]:
        state, left = engine.step(state, as_noise(chunk))
        done.append(left)
    return state, done


def as_noise(chunk: Chunk) -> Chunk:
    """A chunk's conditions with noise for latents, ready to enter a stream."""
    return replace(chunk, latents_BFCHW=gaussian(chunk.latents_BFCHW))


def graded_rollout(engine: WindowEngine, state: WindowState, entering: Sequence[Chunk], exits: Sequence[int]) -> list[Chunk]:
    """Clean estimates of the chunks of consecutive windows, each with a gradient through exactly one evaluation of the denoiser.

    In each window of W chunks the stream descends without gradient to the window's exit, and is evaluated there with one. Then it goes on without:

    - W = 1: the estimate itself leaves and is written to memory, so no evaluation is spent below the exit (Self-Forcing, algorithm 1).
    - W > 1: the window streams on by the engine's own steps until all its chunks have left, and the next graded window begins. So graded
      windows are W steps apart and each chunk is graded once, on one of its stairs (Rolling Forcing, windows whose index leaves the same remainder).

    Memory, and what a chunk was before its graded evaluation, carry no gradient.

    Args:
        engine: of the student.
        state: W - 1 chunks on their stairs.
        entering: the chunks that enter, as noise: (len(exits) - 1) W + 1 of them.
        exits: micro-step of each window's graded evaluation, in 0 .. M - 1; the last is the stream's own way down to the end.

    Returns:
        len(exits) W chunks in order of time.

    Raises:
        ValueError: another number of entering chunks, or an exit that is not one of the M micro-steps.
    """
    num_chunks, micro_steps = engine.staircase.num_chunks, engine.staircase.micro_steps
    if len(entering) != (len(exits) - 1) * num_chunks + 1:
        raise ValueError(f"{len(exits)} windows of {num_chunks} chunks take {(len(exits) - 1) * num_chunks + 1} entering chunks, got {len(entering)}")
    if not all(0 <= exit_step < micro_steps for exit_step in exits):
        raise ValueError(f"a window is graded at one of its {micro_steps} micro-steps, 0 to {micro_steps - 1}, got {list(exits)}")
    samples: list[Chunk] = []
    coming = iter(entering)
    for number, exit_step in enumerate(exits):
        stream = [*state.stream, next(coming)]
        memory = engine.bank.read(state.memory)
        with torch.no_grad():
            for micro_step in range(exit_step):
                stream = engine.descend(stream, engine.velocity(memory, stream, micro_step), micro_step)
        velocity = engine.velocity(memory, stream, exit_step)
        samples += clean_estimate(stream, velocity, engine.staircase.stairs(exit_step))
        if number + 1 == len(exits):
            break
        with torch.no_grad():
            if num_chunks == 1:
                state, _ = engine.leave(state, [replace(samples[-1], latents_BFCHW=samples[-1].latents_BFCHW.detach())])
                continue
            stream = engine.descend(stream, velocity.detach(), exit_step)
            for micro_step in range(exit_step + 1, micro_steps):
                stream = engine.descend(stream, engine.velocity(memory, stream, micro_step), micro_step)
            state, _ = engine.leave(state, stream)
            for _ in range(num_chunks - 1):
                state, _ = engine.step(state, next(coming))
    return samples


def clean_estimate(stream: Sequence[Chunk], velocity: Tensor, sigma_K: Tensor) -> list[Chunk]:
    """x0 = x - sigma v of each chunk."""
    return [
        replace(chunk, latents_BFCHW=chunk.latents_BFCHW - sigma * run.latents_BFCHW, trail=None)
        for chunk, run, sigma in zip(stream, split_frames(velocity, stream), sigma_K.tolist(), strict=True)
    ]


def latents_of(chunks: Sequence[Chunk]) -> Tensor:
    """latents_BFCHW of consecutive chunks."""
    return torch.cat([chunk.latents_BFCHW for chunk in chunks], dim=1)

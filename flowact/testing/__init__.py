"""Conformance checks that authors of components call in their tests: the laws of each base class, family by family.

Each `check_*` takes an object, tries the laws on small random inputs, and raises an AssertionError that names the law which does not hold.
"""

from flowact.testing.adapters import check_adapter
from flowact.testing.autoencoders import check_autoencoder
from flowact.testing.characters import check_character
from flowact.testing.components import check_constructor
from flowact.testing.conditioning import check_conditioning_encoder
from flowact.testing.conversations import check_conversation
from flowact.testing.denoisers import (
    MEMORY,
    RandomWindow,
    check_batch,
    check_checkpointing,
    check_compilation,
    check_denoiser,
    check_kept_memory,
    check_memory_never_sees_the_stream,
    check_number_types,
    check_positions,
    check_prefixes,
    random_window,
    stream_layout,
)
from flowact.testing.formats import check_format
from flowact.testing.memory import check_corruptor, check_memory_bank
from flowact.testing.planners import check_planner
from flowact.testing.schedulers import check_noise_scheduler
from flowact.testing.solvers import check_solver
from flowact.testing.writers import check_writer

__all__ = [
    "MEMORY",
    "RandomWindow",
    "check_adapter",
    "check_autoencoder",
    "check_batch",
    "check_character",
    "check_checkpointing",
    "check_compilation",
    "check_conditioning_encoder",
    "check_constructor",
    "check_conversation",
    "check_corruptor",
    "check_denoiser",
    "check_format",
    "check_kept_memory",
    "check_memory_bank",
    "check_memory_never_sees_the_stream",
    "check_noise_scheduler",
    "check_number_types",
    "check_planner",
    "check_positions",
    "check_prefixes",
    "check_solver",
    "check_writer",
    "random_window",
    "stream_layout",
]

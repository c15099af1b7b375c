from __future__ import annotations

import pytest
import torch

from flowact.conditioning import ConditionDropout
from flowact.types import ConditionTokens


def conditions(num_samples: int) -> ConditionTokens:
    return ConditionTokens(torch.ones(num_samples, 2, 3, 4), torch.ones(num_samples, 5, 4, 6))


def test_rates_and_independence():
    text_B, audio_B = ConditionDropout(text=0.2, audio=0.5).masks(20_000, torch.Generator().manual_seed(0))
    assert text_B.float().mean() == pytest.approx(0.2, abs=0.015)
    assert audio_B.float().mean() == pytest.approx(0.5, abs=0.015)
    assert (text_B & audio_B).float().mean() == pytest.approx(0.1, abs=0.015)


def test_zero_and_one_are_exact():
    whole = conditions(64)
    kept = ConditionDropout(text=0.0, audio=0.0)(whole)
    assert torch.equal(kept.text_BSLD, whole.text_BSLD)
    assert torch.equal(kept.audio_BFAD, whole.audio_BFAD)
    dropped = ConditionDropout(text=1.0, audio=0.0)(whole)
    assert not dropped.text_BSLD.any()
    assert torch.equal(dropped.audio_BFAD, whole.audio_BFAD)


def test_whole_samples_are_dropped_and_the_generator_decides():
    dropout = ConditionDropout(text=0.5, audio=0.5)
    first, again, other = (dropout(conditions(32), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.text_BSLD, again.text_BSLD)
    assert torch.equal(first.audio_BFAD, again.audio_BFAD)
    assert not torch.equal(first.text_BSLD, other.text_BSLD)
    for tensor in (first.text_BSLD, first.audio_BFAD):
        per_sample = tensor.flatten(1)
        assert (per_sample == per_sample[:, :1]).all()
        assert 0 < per_sample[:, 0].sum() < 32


@pytest.mark.parametrize("arguments", [{"text": -0.1}, {"audio": 1.1}, {"text": float("nan")}])
def test_probabilities(arguments):
    with pytest.raises(ValueError, match="probability"):
        ConditionDropout(**arguments)

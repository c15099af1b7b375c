from __future__ import annotations

import pytest
from ramp_dataset import make_dataset

from flowact.data import ShardDataModule, Source, open_split
from flowact.data.filters import Condition, filter_split, flat
from flowact.errors import UserError

SCORES = [0.1, 0.5, 0.3, None, 0.9, 0.2]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Six clips of two people; one has no score."""
    root = tmp_path_factory.mktemp("scored")
    return make_dataset(root, {"train": [90] * 6, "val": [90] * 3}, people=["ana", "ben"], scores=SCORES)


def kept(root, *conditions: str) -> list[int]:
    split, _ = filter_split(open_split(root / "train"), [Condition.parse(text) for text in conditions])
    return [int(clip.key[-3:]) for clip in split.clips]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("scores.Sync.confidence >= 0.3", [1, 2, 4]),
        ("scores.Sync.confidence>0.3", [1, 4]),
        ("scores.Sync.confidence <= .3", [0, 2, 5]),
        ("scores.Sync.confidence < 1e-1", []),
        ("scores.Sync.confidence == 0.5", [1]),
        ("scores.Sync.confidence != 0.5", [0, 2, 4, 5]),
        ("scores.Sync.confidence == null", [3]),
        ("scores.Sync.confidence != null", [0, 1, 2, 4, 5]),
        ("identity == ben", [1, 3, 5]),
        ("identity != 'ben'", [0, 2, 4]),
        ("frames == 90", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_conditions(scored, condition, expected):
    if expected:
        assert kept(scored, condition) == expected
    else:
        with pytest.raises(UserError, match="none of the 6 clips"):
            kept(scored, condition)


def test_conditions_add_up_and_each_is_counted(scored):
    conditions = [Condition.parse("scores.Sync.confidence >= 0.3"), Condition.parse("identity == ana")]
    split, removed = filter_split(open_split(scored / "train"), conditions)
    assert [clip.key for clip in split.clips] == ["train-002", "train-004"]
    assert [str(each) for each in removed] == [
        "'scores.Sync.confidence >= 0.3' removes 3 (1 of them have no value there)",
        "'identity == ana' removes 3",
    ]


def test_nothing_is_evaluated():
    for text in ("__import__('os').system('true')", "frames", "frames >", "frames = 3", "3 < frames < 9", "a >= 1 and b <= 2", "a >= ana", "a > true",
                 "a == 'x"):  # fmt: skip
        with pytest.raises(UserError, match="where: "):
            Condition.parse(text)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("scores.Sync.confidense >= 0.3", "Did you mean scores.Sync.confidence"),
        ("scores.Sync >= 0.3", "It holds scores.Sync.confidence"),
        ("identity >= 3", "compares with a number, but train/000000/train-000 has text there: 'ana'"),
    ],
)
def test_names_and_kinds_are_checked(scored, condition, message):
    with pytest.raises(UserError, match=message):
        kept(scored, condition)


def test_lists_are_no_plain_values():
    assert flat({"a": {"b": 1, "c": [1]}, "d": None, "e": "x"}) == {"a.b": 1, "d": None, "e": "x"}


def module(root, train, **options) -> ShardDataModule:
    data = ShardDataModule(train, str(root / "val"), batch_size=2, window_frames=4, **options)
    data.setup("fit")
    return data


def keys(loader) -> set[str]:
    return {key.partition("@")[0] for batch in loader for key in batch.keys}


def test_a_run_trains_on_what_is_left_and_validates_on_all(scored, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        data = module(scored, str(scored / "train"), where=["scores.Sync.confidence >= 0.3"])
    assert keys(data.train_dataloader()) == {"train-001", "train-002", "train-004"}
    assert len(keys(data.val_dataloader())) == 3
    assert "3 of 6 clips fulfil all conditions; 'scores.Sync.confidence >= 0.3' removes 3 (1 of them have no value there)" in caplog.text


def test_sources_have_conditions_of_their_own(scored):
    strict = Source(str(scored / "train"), where=["scores.Sync.confidence >= 0.9"])
    data = module(scored, [strict], where=["identity == ana"])
    assert keys(data.train_dataloader()) == {"train-004"}
    with pytest.raises(UserError, match="is no condition"):
        Source("x/train", where=["confidence"])

"""Memory banks: what is kept, where it stands, and what a session that has just begun remembers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowact import registry
from flowact.errors import UserError
from flowact.memory import NoMemory, NoveltyMemory, PackedMemory, SlidingWindowMemory, StructuredMemory, reference_chunk
from flowact.testing import check_constructor, check_memory_bank
from flowact.types import Chunk, Segment, WindowLayout

N = 3
places = st.sampled_from(["offset", "contiguous", "future"])
kinds_of_entry = st.sampled_from(["latent", "chunk", "compressed"])
frames = st.sampled_from(["first", "middle", "last"])


def chunk(number, num_frames=N):
    """Latents of chunk k hold k + frame / 10, so that every frame can be recognised; text and sound hold k."""
    frames = number + torch.arange(num_frames) / 10
    return Chunk(
        frames[None, :, None, None, None].expand(1, -1, 2, 1, 1).clone(),
        torch.full((1, num_frames, 4, 2), float(number)),
        torch.full((1, 5, 3), float(number)),
    )


REFERENCE = chunk(-1, 1)


def after(bank, count):
    state = bank.reset(REFERENCE)
    for number in range(1, count + 1):
        state = bank.write(state, chunk(number))
    return bank.read(state)


def frames_of(view):
    return [round(float(value), 1) for value in view.latents_BFCHW[0, :, 0, 0, 0]]


def texts_of(view):
    return [round(float(value), 1) for value in view.text_BSLD[0, :, 0, 0]]


@pytest.mark.parametrize("component", [c for c in registry.components("memory") if c.distribution == "flowact"], ids=lambda c: c.name)
def test_every_registered_bank_keeps_the_laws(component):
    check_memory_bank(registry.load(component.name, "memory")())
    check_constructor(registry.load(component.name, "memory"))


@settings(max_examples=20, deadline=None)
@given(
    st.one_of(
        st.builds(StructuredMemory, long=st.integers(0, 4), short=st.integers(1, 3), positions=st.sampled_from(["elapsed", "contiguous"]),
                  reference_gap=st.integers(1, 5), reference_position=places, entry=kinds_of_entry, which=frames),
        st.builds(NoveltyMemory, long=st.integers(1, 2), among=st.integers(3, 4), choose=st.sampled_from(["coverage", "surprise"]),
                  short=st.integers(1, 3), entry=kinds_of_entry, which=frames),
        st.builds(PackedMemory, short=st.integers(1, 3), levels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
                  strides=st.tuples(st.integers(1, 2), st.integers(1, 2)), reference_gap=st.integers(1, 5)),
        st.builds(SlidingWindowMemory, chunks=st.integers(1, 3), reference_gap=st.integers(1, 5), reference_position=places),
        st.builds(NoMemory, reference_gap=st.integers(1, 5), reference_position=places),
    )
)  # fmt: skip
def test_any_size_of_bank_keeps_the_laws(bank):
    check_memory_bank(bank)


def test_the_queue_is_first_in_first_out_and_each_entry_is_the_last_frame_of_its_chunk():
    view = after(StructuredMemory(long=3, short=1), 6)
    assert [segment.kind for segment in view.segments] == ["reference", "long", "long", "long", "short"]
    assert frames_of(view) == [-1, 3.2, 4.2, 5.2, 6.2]
    assert texts_of(view) == [-1, 3, 4, 5, 6]
    assert [float(a) for a in view.audio_BFAD[0, :, 0, 0]] == [-1, 3, 4, 5, 6]


def test_short_memory_is_the_latest_frames_and_hands_only_its_last_to_the_queue():
    assert frames_of(after(StructuredMemory(long=2, short=2), 4)) == [-1, 2.2, 3.2, 4.1, 4.2]
    assert frames_of(after(StructuredMemory(long=0, short=3), 4)) == [-1, 4.0, 4.1, 4.2]
    assert frames_of(after(SlidingWindowMemory(chunks=2), 4)) == [-1, 3.0, 3.1, 3.2, 4.0, 4.1, 4.2]
    assert frames_of(after(NoMemory(), 4)) == [-1]


def test_what_nothing_has_reached_yet_holds_the_reference():
    bank = StructuredMemory(long=3, short=1)
    assert frames_of(after(bank, 0)) == [-1, -1, -1, -1, -1]
    assert frames_of(after(bank, 1)) == [-1, -1, -1, -1, 1.2]
    assert frames_of(after(bank, 3)) == [-1, -1, 1.2, 2.2, 3.2]
    assert frames_of(after(SlidingWindowMemory(chunks=1), 0)) == [-1] * 4
    assert texts_of(after(bank, 0)) == [-1] * 5


def test_elapsed_positions_are_the_true_distances():
    """Write chunks 1..6; chunk k's last frame stands at 3 (k - 6) - 1 before a stream that begins at 0."""
    view = after(StructuredMemory(long=3, short=1, positions="elapsed", reference_gap=3), 6)
    assert [segment.position for segment in view.segments] == [-13, -10, -7, -4, -1]
    view = after(StructuredMemory(long=2, short=2, positions="elapsed", reference_gap=4), 6)
    assert [segment.position for segment in view.segments] == [-11, -7, -4, -2]


@pytest.mark.parametrize("bank", [StructuredMemory, SlidingWindowMemory, NoMemory])
def test_a_reference_stands_at_a_constant_place_before_the_others_next_to_them_or_in_the_future(bank):
    for written in (0, 9):
        offset, contiguous, future = (
            after(bank(reference_gap=12, reference_position=place), written).segments for place in ("offset", "contiguous", "future")
        )
        oldest = min((segment.position for segment in offset if segment.kind != "reference"), default=0)
        assert offset[0].position == oldest - 12
        assert contiguous[0].position == oldest - 1
        assert future[0].position == 12
        assert offset[1:] == contiguous[1:] == future[1:]
    with pytest.raises(ValueError, match="overlaps"):
        WindowLayout((*after(bank(reference_gap=2, reference_position="future"), 0).segments, Segment("stream", 3, 0)))


def test_contiguous_positions_stand_next_to_each_other():
    view = after(StructuredMemory(long=3, short=2, positions="contiguous", reference_gap=1), 6)
    assert [segment.position for segment in view.segments] == [-6, -5, -4, -3, -2]
    view = after(SlidingWindowMemory(chunks=2, reference_gap=1), 6)
    assert [segment.position for segment in view.segments] == [-7, -6, -3]


@pytest.mark.parametrize("bank", [StructuredMemory(), SlidingWindowMemory(), NoMemory()], ids=lambda b: type(b).__name__)
def test_after_history_chunks_the_past_no_longer_matters_and_the_reference_never_changes(bank):
    fresh, old = bank.reset(REFERENCE), bank.reset(REFERENCE)
    for number in range(50, 90):
        old = bank.write(old, chunk(number))
    for number in range(bank.history_chunks):
        fresh, old = bank.write(fresh, chunk(number)), bank.write(old, chunk(number))
    assert frames_of(bank.read(fresh)) == frames_of(bank.read(old))
    assert torch.equal(bank.read(old).latents_BFCHW[:, :1], REFERENCE.latents_BFCHW)
    assert old.reference.latents_BFCHW.data_ptr() == REFERENCE.latents_BFCHW.data_ptr()


@pytest.mark.parametrize("short", [1, 3])
@pytest.mark.parametrize(("which", "shown", "positions"), [("first", 0, [-9, -6]), ("middle", 1, [-8, -5]), ("last", 2, [-7, -4])])
def test_any_frame_of_a_chunk_may_be_its_long_entry_and_stands_where_it_stood(short, which, shown, positions):
    read = after(StructuredMemory(long=2, short=short, which=which), 6)
    assert frames_of(read)[:3] == [-1, round(4 + shown / 10, 1), round(5 + shown / 10, 1)]
    assert texts_of(read) == [-1, 4, 5, 6]
    assert [segment.position for segment in read.segments[1:3]] == positions
    assert frames_of(after(StructuredMemory(long=2, short=short, which=which), 1))[:3] == [-1, -1, -1]


@pytest.mark.parametrize("short", [1, 3])
def test_whole_chunks_may_be_long_entries_with_their_own_sound(short):
    read = after(StructuredMemory(long=2, short=short, entry="chunk"), 6)
    assert frames_of(read)[:7] == [-1, 4.0, 4.1, 4.2, 5.0, 5.1, 5.2]
    assert texts_of(read) == [-1, 4, 5, 6]
    assert read.audio_BFAD[0, :7, 0, 0].tolist() == [-1, 4, 4, 4, 5, 5, 5]
    assert [(segment.num_frames, segment.position) for segment in read.segments[1:]] == [(3, -9), (3, -6), (short, -short)]
    contiguous = after(StructuredMemory(long=2, short=short, entry="chunk", positions="contiguous"), 6)
    assert [segment.position for segment in contiguous.segments[1:]] == [-6 - short, -3 - short, -short]


def test_an_entry_that_waits_is_not_seen():
    """The newest chunk is short memory alone, whatever a long entry is."""
    for options in ({"which": "first"}, {"entry": "chunk"}):
        read = after(StructuredMemory(long=3, **options), 2)
        assert [number for number in texts_of(read) if number > 0] == [1, 2]


def test_one_chunk_less_than_history_still_shows_the_past():
    bank = StructuredMemory(long=3)
    assert frames_of(after(bank, bank.history_chunks - 1)).count(-1) == 2


def test_the_reference_has_neutral_conditions():
    like = chunk(7)
    reference = reference_chunk(torch.ones(1, 1, 2, 1, 1), like)
    assert reference.num_frames == 1
    assert reference.audio_BFAD.shape == (1, 1, 4, 2)
    assert not reference.audio_BFAD.any()
    assert not reference.text_BLD.any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StructuredMemory(long=-1), "long=-1"),
        (lambda: StructuredMemory(short=0), "short=0"),
        (lambda: StructuredMemory(short=4, chunk_frames=3), r"short=4 .*chunk_frames=3"),
        (lambda: StructuredMemory(reference_gap=0), "reference_gap=0"),
        (lambda: StructuredMemory(entry="whole"), "'whole'; it is latent, chunk or compressed"),
        (lambda: StructuredMemory(which="best"), "'best'; it is first, middle or last"),
        (lambda: NoveltyMemory(long=3, among=3), "long=3, among=3"),
        (lambda: NoveltyMemory(long=0), "long=0"),
        (lambda: NoveltyMemory(choose="age"), "coverage or surprise"),
        (lambda: PackedMemory(levels=(2, 4), strides=(1,)), r"levels=\(2, 4\) and strides=\(1,\)"),
        (lambda: PackedMemory(levels=(), strides=()), "one stride for each"),
        (lambda: PackedMemory(levels=(0,), strides=(1,)), r"levels=\(0,\)"),
        (lambda: PackedMemory(short=4), r"short=4 .*chunk_frames=3"),
        (lambda: SlidingWindowMemory(chunks=0), "got 0 and 3"),
        (lambda: SlidingWindowMemory(reference_gap=0), "reference_gap=0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("bank", [PackedMemory(), StructuredMemory(entry="compressed")], ids=lambda b: type(b).__name__)
def test_pictures_smaller_than_a_mosaic_are_refused(bank):
    with pytest.raises(UserError, match="latents of 1 x 1 cells hold no mosaic"):
        bank.reset(REFERENCE)

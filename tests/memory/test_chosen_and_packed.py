"""Long history in few frames: pooled into mosaics, or chosen by novelty."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d

from flowact.memory import NoveltyMemory, PackedMemory, StructuredMemory
from flowact.memory.entries import compressed, mosaic
from flowact.memory.novelty import most_surprising, spread
from flowact.types import Chunk

N, HEIGHT, WIDTH = 3, 4, 8


def chunk(number, num_frames=N, batch=2):
    """Random latents; text and sound of chunk k hold k."""
    generator = torch.Generator().manual_seed(number + 100)
    latents = torch.randn(batch, num_frames, 2, HEIGHT, WIDTH, generator=generator)
    sound = number + torch.arange(num_frames)[None, :, None, None].expand(batch, -1, 4, 2) / 10
    return Chunk(latents, sound, torch.full((batch, 5, 3), float(number)))


def after(bank, numbers, make=chunk):
    state = bank.reset(make(-1, 1))
    for number in numbers:
        state = bank.write(state, make(number))
    return bank.read(state)


# --- mosaics


@pytest.mark.parametrize("side", [1, 2, 4])
def test_each_tile_of_a_mosaic_is_a_latent_pooled_by_area_row_by_row(side):
    latents = torch.randn(2, side**2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    (laid,) = mosaic(latents, side).unbind(1)
    assert laid.shape == latents[:, 0].shape
    height, width = 8 // side, 12 // side
    for i in range(side**2):
        row, column = divmod(i, side)
        tile = laid[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
        torch.testing.assert_close(tile, avg_pool2d(latents[:, i], side))


def test_sizes_that_do_not_divide_are_covered_all_the_same():
    constant = torch.arange(9.0)[None, :, None, None, None].expand(1, 9, 2, 7, 5)
    (laid,) = mosaic(constant, 3).unbind(1)
    assert laid.shape == (1, 2, 7, 5)
    assert [torch.unique(laid[0, 0] == i).any().item() for i in range(9)] == [True] * 9
    assert laid[0, 0].unique().tolist() == list(range(9))


def test_a_compressed_chunk_is_one_frame_of_all_its_latents_with_its_text_and_mean_sound():
    whole = chunk(5)
    entry = compressed(whole)
    assert entry.latents_BFCHW.shape == (2, 1, 2, HEIGHT, WIDTH)
    torch.testing.assert_close(entry.latents_BFCHW[:, 0, :, 2:, 4:], avg_pool2d(whole.latents_BFCHW[:, 2], 2))  # the newest stands last
    torch.testing.assert_close(entry.latents_BFCHW[:, 0, :, :2, :4], avg_pool2d(whole.latents_BFCHW[:, 0], 2))
    torch.testing.assert_close(entry.audio_BFAD, whole.audio_BFAD.mean(1, keepdim=True))
    assert entry.text_BLD is whole.text_BLD
    read = after(StructuredMemory(long=2, entry="compressed"), range(1, 6))
    torch.testing.assert_close(read.latents_BFCHW[:, 2:3], compressed(chunk(4)).latents_BFCHW)
    assert [(segment.num_frames, segment.position) for segment in read.segments[1:]] == [(1, -8), (1, -5), (1, -1)]


def test_packed_history_is_the_newest_as_it_is_and_means_over_ever_more_time_and_space():
    bank = PackedMemory(short=2, levels=(1, 2), strides=(1, 2))
    assert (bank.num_frames, bank.history_chunks) == (5, 4)  # 2 + 1 + 4 * 2 latents
    read = after(bank, range(1, 10))
    history = torch.cat([chunk(k).latents_BFCHW for k in range(1, 10)], dim=1)
    sound = torch.cat([chunk(k).audio_BFAD for k in range(1, 10)], dim=1)
    torch.testing.assert_close(read.latents_BFCHW[:, 3:], history[:, -2:])
    torch.testing.assert_close(read.latents_BFCHW[:, 2], history[:, -3])
    for i in range(4):
        row, column = divmod(i, 2)
        tile = read.latents_BFCHW[:, 1, :, row * 2 : row * 2 + 2, column * 4 : column * 4 + 4]
        pair = history[:, -11 + 2 * i : -9 + 2 * i].mean(1)
        torch.testing.assert_close(tile, avg_pool2d(pair, 2))
    torch.testing.assert_close(read.audio_BFAD[:, 1], sound[:, -11:-3].mean(1))
    assert read.text_BSLD[0, :, 0, 0].tolist() == [-1, 8, 9, 9]
    assert [(segment.kind, segment.position) for segment in read.segments] == [("reference", -7), ("long", -4), ("long", -3), ("short", -2)]


def test_packed_history_of_a_still_picture_keeps_its_size_however_long_it_is():
    bank = PackedMemory()
    assert (bank.num_frames, bank.spans, bank.history_chunks) == (4, (4, 32), 13)
    assert [segment.num_frames for segment in after(bank, range(1, 40)).segments] == [1, 1, 1, 1]


# --- choice


def pictures(values):
    """A maker of chunks of constant pictures: sample b of chunk k shows values[b][k - 1]; the reference shows 0."""

    def make(number, num_frames=N):
        shown = torch.tensor([0.0 if number < 0 else row[number - 1] for row in values])
        latents = shown[:, None, None, None, None].expand(-1, num_frames, 2, 2, 2).clone()
        return Chunk(latents, torch.full((len(values), num_frames, 4, 2), float(number)), torch.full((len(values), 5, 3), float(number)))

    return make


def kept(bank, values):
    """What each sample's long entries show, and which chunks they are by their text and by their sound."""
    read = after(bank, range(1, len(values[0]) + 1), pictures(values))
    long = slice(1, -1)
    assert torch.equal(read.text_BSLD[:, long, 0, 0], read.audio_BFAD[:, long, 0, 0])
    return read.latents_BFCHW[:, long, 0, 0, 0].tolist(), read.text_BSLD[:, long, 0, 0].int().tolist()


STILL = [1.0] * 10


def test_a_gesture_among_still_pictures_is_kept_until_it_leaves_the_candidates_each_sample_its_own():
    gesture = [1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    later = [1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 3.0, 1.0, 1.0, 1.0]
    shows, chunks = kept(NoveltyMemory(long=3, among=8), [gesture, later, STILL])
    assert shows[0].count(5.0) == 1
    assert set(shows[1]) == {9.0, 3.0, 1.0} or shows[1].count(9.0) == 1
    assert shows[2] == [1.0] * 3
    assert all(each == sorted(set(each)) for each in chunks)  # in order of age, none twice
    assert all(each[-1] == 9 for each in chunks)  # the newest candidate is always there
    short = NoveltyMemory(long=3, among=4)
    assert kept(short, [gesture, later, STILL])[0][0] == [1.0] * 3  # chunk 3 has left candidates 6 to 9


def test_surprise_keeps_the_greatest_changes():
    changes = [1.0, 1.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.5, 2.5, 2.5]
    shows, chunks = kept(NoveltyMemory(long=3, among=8, choose="surprise"), [changes, changes[::-1]])
    assert chunks[0] == [3, 6, 8]
    assert shows[0] == [4.0, 2.0, 2.5]
    assert chunks[1] == [4, 6, 9]


def test_a_spread_covers_the_points():
    """The farthest-point answer is at most twice as far from any point as the best one (Gonzalez 1985), and misses no cluster here."""
    points = torch.tensor([[0.0, 0.1, 5.0, 5.1, 9.0, 9.1, 9.2], [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]])[..., None]
    full = torch.zeros(2, 7, dtype=torch.bool)
    chosen = spread(points, full, 3)
    assert chosen[0].tolist() == [0, 2, 6] or chosen[0].tolist() == [0, 3, 6]
    assert len(set(chosen[1].tolist())) == 3  # equal points: any, but none twice
    assert spread(points, full, 7).tolist() == [list(range(7))] * 2
    empty = torch.arange(7) < 3
    assert spread(points, empty.expand(2, -1), 5).tolist()[0][1:] == [3, 4, 5, 6]  # an empty place last


def test_the_first_candidate_cannot_surprise():
    points = torch.tensor([[100.0, 0.0, 0.0, 1.0]])[..., None]
    full = torch.zeros(1, 4, dtype=torch.bool)
    assert most_surprising(points, full, 2).tolist() == [[1, 3]]
    assert most_surprising(points, full, 4).tolist() == [[0, 1, 2, 3]]
    assert most_surprising(points, torch.tensor([[True, True, False, False]]), 2).tolist() == [[2, 3]]


@pytest.mark.parametrize("choose", ["coverage", "surprise"])
@pytest.mark.parametrize("shown", [0, 1, 2, 4])
def test_while_there_is_room_for_all_the_choice_is_the_queue(choose, shown):
    values = [[float(k * k) for k in range(1, 5)], [0.0] * 4]
    queue = after(StructuredMemory(long=3), range(1, shown + 1), pictures(values))
    chosen = after(NoveltyMemory(long=3, among=6, choose=choose), range(1, shown + 1), pictures(values))
    assert torch.equal(chosen.text_BSLD, queue.text_BSLD)
    assert torch.equal(chosen.latents_BFCHW, queue.latents_BFCHW)
    assert chosen.segments == queue.segments

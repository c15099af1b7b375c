"""What every bank inherits: a guard against what is not finite, restarts, a swap of the reference, saving; and one program serves a session."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from laws.oracle import clean_chunks, knowing_chunk, learning_denoiser
from torch import Tensor

from flowact.errors import UserError
from flowact.memory import MemoryBank, NoMemory, NoveltyMemory, PackedMemory, SlidingWindowMemory, StructuredMemory
from flowact.memory.records import finite_samples, fresh_identity, select
from flowact.sampling.window import WindowEngine
from flowact.schedulers.staircase import Staircase
from flowact.testing import check_memory_bank
from flowact.testing.laws import tensors_of
from flowact.types import Chunk, MemoryView, Segment, TensorRecord, Visibility

NAN = float("nan")


def chunk(number, num_frames=3, batch=2, identity=None):
    generator = torch.Generator().manual_seed(number)
    latents = torch.randn(batch, num_frames, 2, 4, 4, generator=generator)
    return Chunk(latents, torch.randn(batch, num_frames, 4, 2, generator=generator), torch.randn(batch, 5, 3, generator=generator), identity)


def damaged(whole, sample=0, value=NAN):
    latents = whole.latents_BFCHW.clone()
    latents[sample, -1, 0, 0, 0] = value
    return replace(whole, latents_BFCHW=latents)


def states(bank, count, identity=True):
    """States after 0, 1, ... chunks, numbered as a stream numbers them."""
    made = [bank.reset(chunk(1000, 1, identity=-1 if identity else None))]
    for k in range(count):
        made.append(bank.write(made[-1], chunk(k, identity=k if identity else None)))
    return made


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


@dataclass(frozen=True)
class OwnState(TensorRecord):
    """The state of a plugin that was written before banks shared anything: no chunks, a counter of the whole batch."""

    first: Tensor
    audio: Tensor
    text: Tensor
    newest: Tensor
    count: Tensor


class OwnBank(MemoryBank[OwnState]):
    num_frames, num_segments, history_chunks = 2, 2, 1

    def reset(self, reference):
        return OwnState(reference.latents_BFCHW, reference.audio_BFAD, reference.text_BLD, reference.latents_BFCHW, torch.zeros((), dtype=torch.long))

    def write(self, state, chunk):
        return replace(state, newest=chunk.latents_BFCHW[:, -1:], count=state.count + 1)

    def read(self, state):
        latents = torch.cat([state.first, state.newest], dim=1)
        audio, text = state.audio.expand(-1, 2, -1, -1), state.text[:, None].expand(-1, 2, -1, -1)
        return MemoryView(latents, audio, text, (Segment("reference", 1, -4), Segment("short", 1, -1)))


BANKS = [StructuredMemory(), StructuredMemory(entry="chunk"), SlidingWindowMemory(2), NoMemory(), PackedMemory(), NoveltyMemory(long=2, among=4)]


def named(bank):
    return type(bank).__name__


# --- not finite


@pytest.mark.parametrize("bank", [*BANKS, OwnBank()], ids=named)
def test_whoever_writes_nothing_that_is_not_finite_enters(bank):
    before = states(bank, 6)[-1]
    for value in (NAN, float("inf"), -float("inf")):
        for bad in (damaged(chunk(6, identity=6), value=value), replace(chunk(6), text_BLD=torch.full((2, 5, 3), value))):
            after = bank.write(before, bad)
            assert all(tensor.isfinite().all() for tensor in tensors_of(after))
            assert equal(bank.read(after).latents_BFCHW[0], bank.read(before).latents_BFCHW[0])
    good, after = bank.write(before, chunk(6)), bank.write(before, damaged(chunk(6)))
    assert equal(bank.read(after).latents_BFCHW[1], bank.read(good).latents_BFCHW[1])


def test_a_bank_that_calls_its_parent_is_guarded_once_for_all():
    class Doubling(StructuredMemory):
        def write(self, state, chunk):
            return super().write(state, replace(chunk, latents_BFCHW=2 * chunk.latents_BFCHW))

    bank = Doubling()
    before = states(bank, 3)[-1]
    assert equal(bank.write(before, damaged(damaged(chunk(3)), sample=1)), before)
    assert torch.equal(bank.read(bank.write(before, chunk(3))).latents_BFCHW[:, -1], 2 * chunk(3).latents_BFCHW[:, -1])


def test_the_guard_leaves_a_finite_write_to_the_bank_and_gradients_as_they_are():
    bank = StructuredMemory()
    before = states(bank, 2)[-1]
    written = replace(chunk(2), latents_BFCHW=chunk(2).latents_BFCHW.requires_grad_())
    bank.read(bank.write(before, written)).latents_BFCHW.sum().backward()
    assert written.latents_BFCHW.grad[:, -1].eq(1).all()
    assert StructuredMemory.write.__doc__ == "See `MemoryBank.write`."


def test_mixed_entries_lose_their_numbers_and_the_reference_keeps_its_own():
    bank = StructuredMemory()
    made = states(bank, 6)[-1]
    assert bank.read(made).identities == (-1, 2, 3, 4, 5)
    mixed = bank.write(made, damaged(chunk(6, identity=6)))
    assert [entry.identity for entry in (mixed.reference, *mixed.entries)] == [-1, None, None, None, None]
    assert bank.read(mixed).identities == ()
    for k in range(7, 11):
        mixed = bank.write(mixed, chunk(k, identity=k))
    assert bank.read(mixed).identities == (-1, 7, 8, 9, 10)


# --- reference, restart


@pytest.mark.parametrize("bank", BANKS, ids=named)
def test_a_new_reference_is_seen_at_once_and_nothing_else_is_forgotten(bank):
    before = states(bank, 4)[-1]
    after = bank.with_reference(before, chunk(77, 1))
    assert torch.equal(bank.read(after).latents_BFCHW[:, 0], chunk(77, 1).latents_BFCHW[:, 0])
    assert torch.equal(bank.read(after).text_BSLD[:, 0], chunk(77, 1).text_BLD)
    assert torch.equal(bank.read(after).latents_BFCHW[:, 1:], bank.read(before).latents_BFCHW[:, 1:])
    assert after.reference.identity == -2
    assert bank.with_reference(after, chunk(78, 1)).reference.identity == -3
    halved = bank.with_reference(before, damaged(chunk(77, 1)))
    assert torch.equal(halved.reference.latents_BFCHW[0], before.reference.latents_BFCHW[0])
    assert torch.equal(halved.reference.latents_BFCHW[1], chunk(77, 1).latents_BFCHW[1])


def test_a_reference_of_another_size_is_refused():
    bank = StructuredMemory()
    with pytest.raises(UserError, match=r"latents is \(3, 1, 2, 4, 4\), the stream's is \(2, 1, 2, 4, 4\)"):
        bank.with_reference(bank.reset(chunk(0, 1)), chunk(1, 1, batch=3))
    with pytest.raises(UserError, match=r"OwnBank cannot swap the reference.*define with_reference"):
        OwnBank().with_reference(OwnBank().reset(chunk(0, 1)), chunk(1, 1))


@pytest.mark.parametrize("bank", BANKS, ids=named)
def test_some_samples_restart_and_the_others_go_on_to_the_bit(bank):
    going = states(bank, 5)[-1]
    restarted = bank.restart(going, torch.tensor([False, True]), chunk(88, 1))
    fresh = bank.reset(chunk(88, 1))
    for k in range(100, 104):
        for part, expected in ((0, going), (1, fresh)):
            read, want = bank.read(restarted), bank.read(expected)
            assert torch.equal(read.latents_BFCHW[part], want.latents_BFCHW[part])
            assert torch.equal(read.text_BSLD[part], want.text_BSLD[part])
        restarted, going, fresh = (bank.write(each, chunk(k, identity=k)) for each in (restarted, going, fresh))
    assert restarted.reference.identity == -2


def test_a_restart_keeps_the_own_reference_unless_told_and_never_takes_one_that_is_not_finite():
    bank = StructuredMemory()
    going, everyone = states(bank, 5)[-1], torch.tensor([True, True])
    assert torch.equal(bank.read(bank.restart(going, everyone)).latents_BFCHW, bank.read(bank.reset(going.reference)).latents_BFCHW)
    assert equal(bank.restart(going, ~everyone), going)
    held = bank.restart(going, everyone, damaged(chunk(3, 1)))
    assert torch.equal(bank.read(held).latents_BFCHW[0], bank.read(going).latents_BFCHW[0])
    with pytest.raises(UserError, match=r"boolean mask of shape \(2,\), got torch.int64"):
        bank.restart(going, torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"got torch.bool of shape \(3,\)"):
        bank.restart(going, torch.tensor([True] * 3))
    with pytest.raises(UserError, match="OwnBank needs a reference to restart with"):
        OwnBank().restart(OwnBank().reset(chunk(0, 1)), everyone)


@pytest.mark.parametrize("event", ["damage", "restart", "reference"])
@pytest.mark.parametrize("bank", [StructuredMemory(), SlidingWindowMemory(chunks=2)], ids=named)
def test_a_stream_with_kept_features_equals_one_without_whatever_happens_to_memory(bank, event):
    """Isolated entries are computed once in their life, by number; so numbers must tell what became of them."""
    denoiser, left = learning_denoiser().eval(), []
    for reuse in (False, True):
        engine = WindowEngine(denoiser, bank, Staircase(), visibility=Visibility(memory="isolated"), reuse_memory=reuse)
        clean = clean_chunks(15)
        state = engine.start(knowing_chunk(clean[0][:, :1], clean[0][:, :1]), [knowing_chunk(x, x) for x in clean[:2]])
        state = replace(state, stream=tuple(knowing_chunk(x, x) for x in clean[:2]))
        with torch.no_grad():
            for k, x in enumerate(clean[2:]):
                if k in (5, 6, 9):
                    new = knowing_chunk(clean[k][:, :1], clean[k][:, :1])
                    if event == "damage":
                        state, _ = engine.leave(state, [damaged(knowing_chunk(x, x), sample=k % 2), *state.stream])
                    elif event == "restart":
                        state = replace(state, memory=bank.restart(state.memory, torch.tensor([k == 6, k != 6]), new))
                    else:
                        state = replace(state, memory=bank.with_reference(state.memory, new))
                state, done = engine.step(state, knowing_chunk(x, seed=k))
                left.append(done.latents_BFCHW)
    torch.testing.assert_close(torch.stack(left[13:]), torch.stack(left[:13]), atol=1e-5, rtol=1e-4)


# --- short memory


def test_a_bank_that_cannot_replace_its_short_memory_says_so():
    with pytest.raises(UserError, match="NoMemory has no short memory"):
        NoMemory().with_short(NoMemory().reset(chunk(0, 1)), torch.zeros(2, 0, 2, 4, 4))
    with pytest.raises(UserError, match="OwnBank does not say how its short memory is replaced; define with_short"):
        OwnBank().with_short(OwnBank().reset(chunk(0, 1)), torch.zeros(2, 1, 2, 4, 4))


def test_a_refined_short_memory_is_handed_on_refined_where_the_long_entry_is_cut_from_it():
    bank = StructuredMemory(long=1)
    state = bank.with_short(states(bank, 3)[-1], torch.full((2, 1, 2, 4, 4), 5.0))
    assert bank.read(bank.write(state, chunk(9))).latents_BFCHW[:, 1].eq(5).all()


# --- saving


@pytest.mark.parametrize("bank", [*BANKS, OwnBank()], ids=named)
def test_a_saved_state_goes_on_exactly_through_a_file(bank, tmp_path):
    made = states(bank, 5)[-1]
    torch.save(bank.state_dict(made), tmp_path / "memory.pt")
    restored = bank.load_state_dict(bank.reset(chunk(5, 1)), torch.load(tmp_path / "memory.pt", weights_only=True))
    for _ in range(2):
        assert equal(restored, made)
        assert bank.read(restored).identities == bank.read(made).identities
        made, restored = bank.write(made, chunk(50, identity=50)), bank.write(restored, chunk(50, identity=50))


def test_a_saved_state_is_a_copy_and_of_one_bank():
    bank = StructuredMemory()
    made = states(bank, 3)[-1]
    saved = bank.state_dict(made)
    assert saved["entries.3.identity"] == 2
    saved["reference.latents_BFCHW"].zero_()
    assert made.reference.latents_BFCHW.any()
    with pytest.raises(UserError, match=r"not one of this bank: missing entries\.4\.audio_BFAD.*unexpected nothing"):
        StructuredMemory(long=4).load_state_dict(StructuredMemory(long=4).reset(chunk(0, 1)), saved)
    with pytest.raises(UserError, match=r"reference\.latents_BFCHW: \(2, 1, 2, 4, 4\), this stream has \(3, 1, 2, 4, 4\)"):
        bank.load_state_dict(bank.reset(chunk(0, 1, batch=3)), saved)


# --- records


def test_selecting_samples_takes_each_from_its_own_record():
    a, b = (states(StructuredMemory(), n)[-1] for n in (3, 5))
    chosen = torch.tensor([True, False])
    mixed = select(chosen, a, b)
    for x, y, z in zip(tensors_of(mixed), tensors_of(a), tensors_of(b), strict=True):
        assert torch.equal(x[0], y[0])
        assert torch.equal(x[1], z[1])
    assert select(chosen, a, a) is a
    assert select(chosen, torch.tensor(3), torch.tensor(5)) == 3  # of the whole batch
    with pytest.raises(ValueError, match="MemoryState of 3 parts where the other has Chunk of 5 parts"):
        select(chosen, a.reference, a)
    with pytest.raises(ValueError, match=r"\(2, 1\) became \(2, 3\)"):
        select(chosen, torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="batch first: 2 samples"):
        select(chosen, torch.zeros(3), torch.ones(3))


def test_numbers_for_changed_contents_are_below_all_others():
    assert fresh_identity(states(StructuredMemory(), 4)[-1]) == -2
    assert fresh_identity(states(StructuredMemory(), 4, identity=False)[-1]) == -1
    assert finite_samples(damaged(chunk(0))).tolist() == [False, True]
    with pytest.raises(ValueError, match="int without a tensor"):
        finite_samples(3)


# --- broken banks are found out


class Leaking(StructuredMemory):
    """Its guard was taken away."""


Leaking.write = StructuredMemory.__dict__["write"].__wrapped__


class WholeBatch(StructuredMemory):
    def restart(self, state, chosen_B, reference=None):
        return self.reset(reference)


class Stubborn(StructuredMemory):
    def with_reference(self, state, reference):
        return state


class Forgetful(SlidingWindowMemory):
    def with_reference(self, state, reference):
        return self.reset(reference)


class Careless(StructuredMemory):
    def with_short(self, state, latents_BFCHW):
        return replace(state, entries=tuple(replace(entry, latents_BFCHW=latents_BFCHW) for entry in state.entries))


class Amnesic(StructuredMemory):
    def state_dict(self, state):
        return super().state_dict(self.reset(state.reference))


@pytest.mark.parametrize(
    ("bank", "law"),
    [
        (Leaking(), "not finite leaves its sample of the memory as it was"),
        (WholeBatch(), "a sample that does not restart goes on"),
        (Stubborn(), "a reference segment holds the reference"),
        (Forgetful(), "a swapped reference changes nothing else"),
        (Careless(), "changes nothing but the short memory"),
        (Amnesic(), "a restored state goes on exactly"),
        (OwnBank(), "tensors of a state have the batch first"),
    ],
    ids=named,
)
def test_a_bank_that_breaks_one_law_is_told_which(bank, law):
    with pytest.raises(AssertionError, match=law):
        check_memory_bank(bank)


# --- compilation


@pytest.mark.parametrize("bank", [*BANKS, NoveltyMemory(choose="surprise"), OwnBank()], ids=named)
def test_no_value_is_read_back_from_a_device(bank):
    """Tensors without values write, read, restart and swap, so no branch depends on one; with numbers there is one look per chunk."""
    state = bank.reset(chunk(0, 1).to("meta"))
    for k in range(3):
        state = bank.write(state, chunk(k).to("meta"))
    if not isinstance(bank, OwnBank):
        state = bank.with_reference(bank.restart(state, torch.tensor([True, False], device="meta")), chunk(5, 1).to("meta"))
    assert bank.read(state).latents_BFCHW.shape == (2, bank.num_frames, 2, 4, 4)


def test_a_stream_with_numbers_looks_once_per_chunk():
    state = StructuredMemory().reset(chunk(0, 1, identity=-1).to("meta"))
    with pytest.raises(RuntimeError, match="meta tensor"):
        StructuredMemory().write(state, chunk(1, identity=0).to("meta"))


@pytest.mark.parametrize(("bank", "numbered"), [*((bank, False) for bank in BANKS), (StructuredMemory(), True)], ids=named)
def test_one_program_serves_a_session(bank, numbered):
    """20 writes and reads, some damaged: no graph break, nothing compiled after the first call (the second, where chunks have numbers)."""
    torch._dynamo.reset()

    def step(state, written):
        after = bank.write(state, written)
        return after, bank.read(after)

    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")
    state = expected = states(bank, 0, identity=numbered)[0]
    for k in range(20):
        written = chunk(k, identity=k if numbered else None)
        written = damaged(written, sample=k % 2) if k in (3, 11) else written
        with torch.compiler.set_stance("fail_on_recompile" if k > numbered else "default"):
            state, read = compiled(state, written)
        expected = bank.write(expected, written)
        want = bank.read(expected)
        assert read.segments == want.segments
        assert equal(read, want)
    torch._dynamo.reset()

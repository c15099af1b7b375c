"""Who may move, who waits, and who is cleaned up; on a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from fake_avatar import FakeModel

from flowact.errors import UserError
from flowact.serving.announcements import AudioCleared, Pong
from flowact.serving.encoding import Enlarger
from flowact.serving.limits import Limits, Refusal
from flowact.serving.manager import SessionManager
from flowact.serving.outbox import Outbox, RenderedChunk
from flowact.serving.provenance import JsonLinesLog, NoSessionLog, SessionLog
from flowact.serving.responders import NoResponder
from flowact.serving.session import AvatarSession
from flowact.serving.watermark import NoWatermark


class House:
    """A manager with a clock that stands still until it is moved."""

    def __init__(self, session_log: SessionLog | None = None, **limits: Any) -> None:
        self.now = 0.0
        self.model = FakeModel()
        self.limits = Limits(**{"created_per_second": 1000, **limits})
        self.manager = SessionManager(
            self.model, NoResponder(), self.limits, Enlarger(48, 64, 1), NoWatermark(), session_log or NoSessionLog(), lambda: self.now, 0.005
        )

    def create(self, address: str = "here") -> AvatarSession:
        return self.manager.create(None, address)

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0.005)
        pytest.fail("it did not happen in time")

    async def settle(self) -> None:
        """Time for several sweeps."""
        await asyncio.sleep(0.05)


def play(scene: Callable[[House], Awaitable[None]], **options: Any) -> House:
    house = House(**options)

    async def run() -> None:
        house.manager.start()
        try:
            await scene(house)
        finally:
            await house.manager.close()

    asyncio.run(run())
    assert all(session.closed for session in house.model.opened)
    return house


def test_sessions_beyond_the_limit_wait_in_order_and_move_up():
    async def scene(house: House) -> None:
        sessions = [house.create() for _ in range(5)]
        boxes = [session.attach("none") for session in sessions]
        assert [house.manager.position(session) for session in sessions] == [None, None, 1, 2, 3]
        await house.until(lambda: len(house.model.opened) == 2)
        await house.manager.end(sessions[3], "client")
        assert [house.manager.position(session) for session in sessions] == [None, None, 1, None, 2]
        await house.manager.end(sessions[0], "client")
        assert [session.status for session in sessions] == ["closed", "running", "running", "closed", "waiting"]
        assert house.manager.position(sessions[4]) == 1
        await house.settle()
        told = [item.position for item in drain(boxes[4]) if item.type == "avatar.queue.updated"]
        assert told == [2, 1]
        assert len(house.manager.running) == 2

    play(scene, max_sessions=2)


def drain(outbox: Outbox) -> list[Any]:
    found = [item for item in outbox._waiting if not isinstance(item, RenderedChunk)]
    outbox._waiting.clear()
    return found


def test_no_more_sessions_wait_than_fit_and_no_address_floods():
    async def scene(house: House) -> None:
        for _ in range(3):
            house.create()
        with pytest.raises(Refusal) as refused:
            house.create()
        assert refused.value.code == "queue_full"

    play(scene, max_waiting=2)

    async def flood(house: House) -> None:
        for _ in range(10):
            house.create("noisy")
        with pytest.raises(Refusal) as refused:
            house.create("noisy")
        assert refused.value.code == "too_many_sessions"
        assert house.create("quiet")
        house.now += 2.0
        assert house.create("noisy")

    play(flood, created_per_second=1.0, max_waiting=100)


def test_a_session_that_nobody_claims_is_closed_and_makes_room():
    async def scene(house: House) -> None:
        forgotten, claimed = house.create(), house.create()
        claimed.attach("none")
        house.now += 19.0
        await house.settle()
        assert forgotten.status == "running"
        house.now += 2.0
        await house.until(lambda: forgotten.status == "closed")
        assert forgotten.reason == "unclaimed"
        await house.until(lambda: claimed.status == "running")

    play(scene, unclaimed_seconds=20.0)


def test_a_client_that_left_may_come_back_in_time_and_not_later():
    async def scene(house: House) -> None:
        session = house.create()
        session.detach(session.attach("none"))
        house.now += 5.0
        await house.settle()
        box = session.attach("none")  # a reload
        house.now += 100.0
        await house.settle()
        assert session.status == "running"
        session.detach(box)
        house.now += 7.0
        await house.until(lambda: session.status == "closed")
        assert session.reason == "absent"
        with pytest.raises(Refusal, match="has gone") as refused:
            session.attach("none")
        assert refused.value.code == "session_closed"

    play(scene, absent_seconds=6.0)


def test_a_session_of_which_nobody_sends_anything_is_closed():
    async def scene(house: House) -> None:
        session = house.create()
        box = session.attach("none")
        house.now += 901.0
        await house.until(lambda: session.status == "closed")
        last = drain(box)[-1]
        assert (last.type, last.reason) == ("session.closed", "idle")
        assert box.closed

    play(scene, idle_seconds=900.0)


def test_a_viewer_that_takes_nothing_is_let_go():
    async def scene(house: House) -> None:
        session = house.create()
        slow, good = session.attach("frames"), session.attach("frames")
        await house.until(lambda: slow.full)
        assert slow.num_taken == 0
        await good.next()
        while session.num_clients == 2:
            house.now += 1.0
            while good._num_chunks:
                await good.next()
            await house.settle()
            assert house.now < 100
        assert slow.closed
        assert not good.closed
        assert session.status == "running"

    play(scene, outbox_chunks=2, send_seconds=5.0)


def test_ids_and_tickets_are_of_no_use_apart():
    async def scene(house: House) -> None:
        one, other = house.create(), house.create()
        assert house.manager.find(one.id, one.ticket) is one
        for name, ticket in ((one.id, other.ticket), (one.id, ""), ("sess_x", one.ticket), ("", ""), (one.id, "ü" * 24), ("x", "-" * 24)):
            with pytest.raises(Refusal, match="no such session"):
                house.manager.find(name, ticket)

    play(scene)


def test_a_stream_that_fails_ends_its_session_and_no_other():
    async def scene(house: House) -> None:
        house.model.fail_at = 2
        bad = house.create()
        await house.until(lambda: bad.live is not None)
        good = house.create()
        boxes = [bad.attach("none"), good.attach("none")]
        await house.until(lambda: bad.status == "closed")
        assert bad.reason == "failed"
        assert drain(boxes[0])[-1].reason == "failed"
        await house.until(lambda: good.num_chunks > 3)
        assert house.manager.totals["failed_sessions"] == 1

    play(scene, max_sessions=2)


def test_a_stream_that_cannot_be_opened_is_told():
    async def scene(house: House) -> None:
        def refuse(picture: Any) -> Any:
            raise UserError("no memory left")

        house.model.open = refuse  # type: ignore[method-assign]
        session = house.create()
        box = session.attach("none")
        await house.until(lambda: session.status == "closed")
        assert drain(box)[-1].reason == "failed"

    play(scene)


def test_nothing_moves_before_somebody_watches():
    async def scene(house: House) -> None:
        session = house.create()
        await house.until(lambda: session.live is not None)
        await house.settle()
        assert session.num_chunks == 0
        session.attach("none")
        await house.until(lambda: session.num_chunks > 0)

    play(scene)


def test_closing_tells_everyone_and_takes_no_more():
    async def scene(house: House) -> None:
        sessions = [house.create() for _ in range(3)]
        boxes = [session.attach("none") for session in sessions]
        await house.manager.close()
        assert [drain(box)[-1].reason for box in boxes] == ["shutdown"] * 3
        with pytest.raises(Refusal, match="stops"):
            house.create()

    play(scene)


def test_each_session_leaves_a_line_without_words_or_addresses(tmp_path):
    log = JsonLinesLog(tmp_path / "state" / "sessions.jsonl", watermark=True)

    async def scene(house: House) -> None:
        for reason in ("client", "idle"):
            session = house.create("203.0.113.7")
            session.attach("none")
            await house.until(lambda session=session: session.num_chunks > 1)
            session.note_prompt("a secret wish")
            await house.manager.end(session, reason)

    play(scene, session_log=log)
    text = log.path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["reason"] for line in lines] == ["client", "idle"]
    assert "secret" not in text
    assert "203.0.113.7" not in text
    for line in lines:
        assert line["model_sha256"] == "0" * 64
        assert line["started"] < line["ended"]
        assert line["visible_watermark"] is True
        assert len(line["prompts_sha256"]) == 2
        assert line["num_chunks"] > 1
    assert log.path.stat().st_mode & 0o077 == 0


def test_a_log_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--session-log"):
        JsonLinesLog(tmp_path / "file" / "sessions.jsonl", watermark=True)


def test_a_slow_reader_loses_old_pictures_and_no_events():
    async def scene() -> None:
        house = House()
        box = Outbox("frames", 3)
        fake = FakeModel().open(house.model.characters["red"].picture).session
        for k in range(10):
            chunk = fake.next_chunk()
            box.deliver(RenderedChunk(chunk, chunk.frames_THWC))
            box.tell(AudioCleared() if k % 2 else Pong())
        box.close()
        found = []
        while (item := await box.next()) is not None:
            found.append(item)
        assert [item.chunk.index for item in found if isinstance(item, RenderedChunk)] == [7, 8, 9]
        assert len(found) == 13
        assert box.num_dropped == 7

    asyncio.run(scene())


def test_a_reader_that_never_comes_holds_no_memory():
    async def scene() -> None:
        box = Outbox("none", 3)
        for _ in range(10_000):
            box.tell(AudioCleared())
        assert box.closed
        assert len(box._waiting) < 2_100

    asyncio.run(scene())


def test_sound_and_pictures_are_of_the_same_moments():
    """What viewers get of a chunk is what left the stream, enlarged: same count, same samples."""

    async def scene(house: House) -> None:
        session = house.create()
        box = session.attach("frames")
        for k in range(3):
            item = await box.next()
            while not isinstance(item, RenderedChunk):
                item = await box.next()
            assert item.chunk.index == k
            assert item.frames_THWC.shape[0] * 640 == len(item.chunk.samples) == len(item.sound) // 2
            at = np.arange(len(item.chunk.samples)) / 16_000 + item.chunk.start_seconds
            np.testing.assert_allclose(item.chunk.samples, 0.05 * np.sin(2 * np.pi * 440 * at), atol=1e-4)

    play(scene)

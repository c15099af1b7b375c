from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import worker_items

from data_tools.workplace import Failed, check_room, claim, locked, progress, remove_unfinished, work
from flowact.errors import UserError

pytest.importorskip("pebble", reason="workers that may die are pebble's")
pytestmark = pytest.mark.timeout(120)
REPOSITORY = Path(__file__).parents[2]


def outcome(result: str | Failed) -> str:
    return result.code if isinstance(result, Failed) else result


def wait_until(condition: object, what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited in vain for: {what}"
        time.sleep(0.05)


# --- one dies, the others go on ---------------------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_or_is_late_loses_its_item_only() -> None:
    items = ["a", "exit 7", "b", "kill", "sleep 60", "c", "crash", "leave", "d", "sleep 0.1", "e"]
    results = list(work(worker_items.do, items, 2, worker_items.nothing, (), timeout=4, keep_going=True))
    assert [outcome(result) for result in results] == ["a", "crash", "b", "crash", "timeout", "c", "crash", "crash", "d", "sleep 0.1", "e"]
    failed = {item: result.reason for item, result in zip(items, results, strict=True) if isinstance(result, Failed)}
    assert "exit code 7" in failed["exit 7"]
    assert "more than 4 s" in failed["sleep 60"]


def test_an_error_of_our_own_is_an_error() -> None:
    results = work(worker_items.do, ["a", "raise oh no", "b"], 2, worker_items.nothing, (), keep_going=True)
    assert next(results) == "a"
    with pytest.raises(ValueError, match="oh no"):
        next(results)


@pytest.mark.parametrize("keep_going", [True, False])
def test_workers_that_can_not_begin_say_why(keep_going: bool) -> None:
    with pytest.raises(RuntimeError, match="no model there"):
        list(work(worker_items.do, ["a", "b"], 2, worker_items.refuse, (), keep_going=keep_going))


@pytest.mark.parametrize("keep_going", [True, False])
def test_workers_are_prepared_and_give_results_in_order(keep_going: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    results = list(work(worker_items.told, range(9), 2, worker_items.remember, ("hello",), keep_going=keep_going))
    assert [result[:3] for result in results] == [(number, ["hello"], "1") for number in range(9)]
    processes = {result[3] for result in results}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(("jobs", "keep_going"), [(1, False), (0, False), (0, True)])
def test_one_job_works_here(jobs: int, keep_going: bool) -> None:
    worker_items._begun.clear()
    results = list(work(worker_items.told, [1, 2], jobs, worker_items.remember, ("hello",), keep_going=keep_going))
    assert [(result[0], result[1], result[3]) for result in results] == [(1, ["hello"], os.getpid()), (2, ["hello"], os.getpid())]


def test_no_items_start_nothing() -> None:
    for keep_going in (True, False):
        assert list(work(worker_items.do, [], 4, worker_items.refuse, (), keep_going=keep_going)) == []
    with pytest.raises(UserError, match="--jobs -1"):
        list(work(worker_items.do, ["a"], -1, worker_items.nothing, ()))


# --- it is stopped ----------------------------------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path[:0] = [{repository!r}, {here!r}]
if __name__ == "__main__":
    import worker_items
    from data_tools.workplace import work
    for result in work(worker_items.do, ["hold " + sys.argv[1]] * 6, 2, worker_items.nothing, (), keep_going=sys.argv[2] == "True"):
        print(result)
"""


@pytest.mark.parametrize("keep_going", [True, False])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_when_it_is_stopped(tmp_path: Path, how: signal.Signals, keep_going: bool) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "here"
    script.write_text(SCRIPT.format(repository=str(REPOSITORY), here=str(Path(__file__).parent)))
    folder.mkdir()
    run = subprocess.Popen([sys.executable, script, folder, str(keep_going)], start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(list(folder.iterdir())) == 2, "two workers")
        workers = [int(path.name) for path in folder.iterdir()]
        if how == signal.SIGINT:  # as a terminal does: to all of them
            os.killpg(run.pid, how)
        else:
            os.kill(run.pid, how)
        assert run.wait(30) != 0
        wait_until(lambda: not any(psutil.pid_exists(worker) for worker in workers), "the end of the workers")
    finally:
        if run.poll() is None:
            run.kill()


def test_who_stops_asking_stops_the_workers(tmp_path: Path) -> None:
    results = work(worker_items.do, ["a", f"hold {tmp_path}", "b"], 2, worker_items.nothing, (), keep_going=True)
    assert next(results) == "a"
    wait_until(lambda: list(tmp_path.iterdir()), "the worker")
    results.close()  # type: ignore[attr-defined]
    worker = int(next(tmp_path.iterdir()).name)
    wait_until(lambda: not psutil.pid_exists(worker), "the end of the worker")


# --- folders ----------------------------------------------------------------------------------------------------------------------------------------

HOLD = """
import pathlib, sys
sys.path.insert(0, {repository!r})
from data_tools.workplace import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    command = [sys.executable, "-c", HOLD.format(repository=str(REPOSITORY)), str(folder)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another flowact-data run works in"), locked(folder):
            pass
    finally:
        first.kill()
        first.wait()
    with locked(folder):
        pass
    assert not list(folder.iterdir()), "a lock leaves nothing"


def test_a_folder_is_gone_on_with_only_as_it_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "out"
    claim(out, "made.json", {"size": 64, "clips": ["a"]})
    claim(out, "made.json", {"size": 64, "clips": ["a"]})
    with pytest.raises(UserError, match="size was 64, now 128"):
        claim(out, "made.json", {"size": 128, "clips": ["a"]})
    (out / "made.json").write_text("[")
    with pytest.raises(UserError, match="damaged"):
        claim(out, "made.json", {"size": 64})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        claim(tmp_path / "full", "made.json", {})


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.tar", "a.json", "b.tar", "c.tar.part", "notes.txt"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "a.json", "notes.txt"}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    check_room(tmp_path, 1.0, "a byte")
    with pytest.raises(UserError, match=r"latents needs about 1000000000\.00 GB"):
        check_room(tmp_path, 1e18, "latents")


def test_progress_gives_every_item() -> None:
    assert list(progress(iter(range(3)), 3, "look", "clips")) == [0, 1, 2]

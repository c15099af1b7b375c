"""What the verbs share: one run a folder, a record of what made it, room on the disk, work in processes, progress."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from data_tools import watchdog
from flowact.data.schema import write_atomically
from flowact.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder while working in it.

    Raises:
        UserError: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another flowact-data run works in {folder}; wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


def claim(folder: Path, file: str, record: dict[str, Any]) -> None:
    """Write down how a folder is made, or make sure that it was begun the same way.

    Args:
        folder: to work in.
        file: name of the record in it.
        record: plain values.

    Raises:
        UserError: the folder holds something else, or was made with other settings; names the first difference.
    """
    path = folder / file
    if not path.exists():
        if folder.exists() and any(entry.name != f"{file}.part" for entry in folder.iterdir()):
            raise UserError(f"{folder} is not empty and has no {file}; give a new folder as --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        differences = [f"{name} was {old.get(name)!r}, now {value!r}" for name, value in record.items() if old.get(name) != value]
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder or give another --out") from error
    if differences:
        raise UserError(f"{folder} was made with other settings or clips: {'; '.join(differences)}; give another --out, or the same to go on")


def check_room(folder: Path, num_bytes: float, what: str) -> None:
    """Refuse to start what will not fit.

    Raises:
        UserError: less room on the disk than needed.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(f"{what} needs about {num_bytes / 1e9:.2f} GB, {folder} has {free / 1e9:.2f} GB free; make room or use another disk")


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed run left: parts, and a tar whose index was not written."""
    for path in [*folder.glob("*.part"), *(tar for tar in folder.glob("*.tar") if not tar.with_suffix(".json").exists())]:
        path.unlink()


@dataclass(frozen=True)
class Failed:
    """An item that killed its worker or took too long.

    Attributes:
        reason: for a person.
        code: 'crash' or 'timeout'.
    """

    reason: str
    code: str


def work(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...],
    *,
    timeout: float | None = None,
    keep_going: bool = False,
) -> Iterator[Any]:
    """Results in the order of the items, from `jobs` processes; with one job in this process, unless `keep_going` asks for one of its own.

    Args:
        function: of a module, as it is sent by name.
        items: to work on.
        jobs: processes; 0 works in this one whatever `keep_going` says, so that a debugger sees it.
        start: called with `arguments` in each process first.
        arguments: of `start`.
        timeout: seconds for one item; only with `keep_going`.
        keep_going: an item that kills its process or takes too long gives a `Failed` and the others go on; otherwise it is an error.
    """
    if jobs < 0:
        raise UserError(f"--jobs {jobs}: must be at least 1, or 0 to work in this process")
    jobs = min(jobs, len(items))
    if jobs < 1 or (jobs == 1 and not keep_going):
        if items:
            start(*arguments)
        yield from map(function, items)
        return
    with _one_thread_each():
        yield from (_isolated if keep_going else _together)(function, items, jobs, start, arguments, timeout)


def _isolated(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...],
    timeout: float | None,
) -> Iterator[Result | Failed]:
    """Processes of pebble: one that dies is replaced, one that is late is stopped, and only its item is lost."""
    try:
        from pebble import ProcessExpired, ProcessPool
    except ImportError as error:
        raise UserError("a build runs in processes of pebble; pip install 'flowact[data]'") from error
    with ProcessPool(jobs, context=get_context("spawn"), initializer=watchdog.begin, initargs=(start, arguments)) as pool:
        waiting: deque[Any] = deque()
        rest = iter(items)
        try:
            # few are in flight: results and what they hold do not pile up
            waiting.extend(pool.schedule(watchdog.run, args=[function, item], timeout=timeout) for item in itertools.islice(rest, 2 * jobs))
            while waiting:
                future = waiting.popleft()
                try:
                    result: Result | Failed = future.result()
                except (ProcessExpired, SystemExit) as error:
                    code = getattr(error, "exitcode", None) or getattr(error, "code", None)
                    result = Failed(f"the process that read it died (exit code {code}); the file may be damaged, or memory ran out", "crash")
                except TimeoutError:
                    result = Failed(f"it took more than {timeout} s and was stopped; the file may be damaged", "timeout")
                waiting.extend(pool.schedule(watchdog.run, args=[function, item], timeout=timeout) for item in itertools.islice(rest, 1))
                yield result
        except BaseException:
            pool.stop()
            raise


def _together(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    jobs: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...],
    timeout: float | None,
) -> Iterator[Result]:
    """Processes of the standard library; any error ends them all at once."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=watchdog.begin, initargs=(start, arguments)) as pool:
        waiting = [pool.submit(watchdog.run, function, item) for item in items]
        try:
            for number in range(len(waiting)):
                yield waiting[number].result()
                waiting[number] = None  # type: ignore[call-overload]  # its result leaves the memory
        except BaseException:
            workers = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:  # they would go on with what is queued in their pipe
                worker.kill()
            raise


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started inside do one thing each; they read the environment when they start."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def progress(items: Iterable[Item], total: int, what: str, unit: str) -> Iterator[Item]:
    """The items, with a bar, a count and the time left on the terminal's error stream."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    Console().print(table)

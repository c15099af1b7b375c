"""How `flowact` and `flowact-data` end: exit codes, an error as one line on stderr, an orderly end on a signal, nothing but JSON beside JSON."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

from flowact.errors import UserError

#: exit codes: done; a verb's own "no" (`doctor`, `lint`); something that the user can put right; a fault of ours; Ctrl-C; SIGTERM
DONE, NO, WRONG, FAULT, INTERRUPTED, TERMINATED = 0, 1, 2, 70, 130, 143
DEBUG_VARIABLE = "FLOWACT_DEBUG"
#: what a disk says that takes no more
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MAKE_ROOM = "make room and run the same command again"
_ADVICE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions, or name another place"),
    errno.EROFS: "name another place",
    errno.EADDRINUSE: "another program listens there; stop it, or choose another --port",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
}


class Terminated(BaseException):
    """SIGTERM came: everything that is open is closed in order, as after Ctrl-C."""


def wants_debug(argv: list[str]) -> bool:
    """Whether tracebacks are asked for, by option or by environment."""
    return "--debug" in argv or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def run_program(name: str, body: Callable[[], int | None], *, go_on: str = "", debug: bool = False) -> int:
    """Run `body` and say in one line why it failed.

    Args:
        name: of the program, with which every line on stderr begins.
        body: what the program does; returns its exit code.
        go_on: what to do after an end that came from outside.
        debug: show the traceback of whatever ends it; the exit code is the same.

    Returns:
        exit code.
    """
    with _one_line_warnings(name, debug), _orderly_termination():
        try:
            code = body()
            sys.stdout.flush()
            return int(code or DONE)
        except BaseException as error:
            code, message = _explain(error, name, f"; {go_on}" if go_on else "")
            _forget_unwritten()
            if code in (FAULT, WRONG) and debug:
                traceback.print_exc()
            elif code == FAULT:
                message += f"; the traceback is {_keep_traceback(name)}, and --debug shows it. This is a fault of FlowAct: please report it"
            if message:
                print(f"{name}: {message}", file=sys.stderr)
            return code


def _explain(error: BaseException, name: str, going_on: str) -> tuple[int, str]:
    """Exit code and what is said, or the error itself where it is no failure."""
    kind = type(error)
    match error:
        case UserError():
            return WRONG, f"error: {error}"
        case BrokenPipeError() if _reader_left():
            return DONE, ""
        case KeyboardInterrupt():
            return INTERRUPTED, f"interrupted{going_on}"
        case Terminated():
            return TERMINATED, f"terminated{going_on}"
        case SystemExit() if kind.__name__ == "SIGTERMException":  # Lightning's, after the step that was begun
            return TERMINATED, f"terminated{going_on}"
        case SystemExit() if isinstance(error.__context__, KeyboardInterrupt):  # Lightning leaves with 1 once all is put in order
            return INTERRUPTED, f"interrupted{going_on}"
        case SystemExit():
            raise error
        case MemoryError():
            return WRONG, f"error: this machine has not enough memory{f' ({error})' if str(error) else ''}"
        case OSError() if error.errno in _FULL:
            return WRONG, f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}; {_MAKE_ROOM}"
        case OSError() if error.errno is not None:
            place = f"{error.filename}: " if error.filename is not None else ""
            advice = _ADVICE.get(error.errno, "")
            return WRONG, f"error: {place}{error.strerror}{f'; {advice}' if advice else ''}"
        case ModuleNotFoundError() if error.name and error.name.partition(".")[0] not in ("flowact", "data_tools"):
            return WRONG, f"error: the package {error.name!r} is not installed; `{name} doctor` says how to get what is missing"
    text = " ".join(str(error).split())
    if isinstance(error, OSError):  # of a library: a picture that is none, a hub that cannot be reached
        return WRONG, f"error: {_short(text, 300)}"
    if "No space left on device" in text or "os error 28" in text:  # said by safetensors and torch, without an errno
        return WRONG, f"error: No space left on device; {_MAKE_ROOM}"
    if kind.__name__ == "OutOfMemoryError":
        return WRONG, f"error: {_short(text, 160)} Take a smaller batch or fewer tokens; `flowact plan RECIPE` says what a recipe needs"
    if kind.__module__ == "sqlite3":
        return WRONG, f"error: the ledger cannot be written ({text}); {_MAKE_ROOM}"
    return FAULT, f"error: {kind.__name__}: {_short(text, 300)} ({_place(error)})"


@contextmanager
def json_alone(wanted: bool) -> Iterator[None]:
    """While a verb prints JSON, file descriptor 1 is stderr for child processes and C libraries; Python's `sys.stdout` stays where it was."""
    try:
        descriptor = sys.stdout.fileno() if wanted else -1
    except (OSError, ValueError):  # a test or a notebook stands in for it
        descriptor = -1
    if descriptor != 1:
        yield
        return
    before = sys.stdout
    before.flush()
    kept = os.dup(descriptor)
    os.dup2(2, descriptor)
    try:
        with open(kept, "w", encoding=before.encoding, errors=before.errors, closefd=False) as sys.stdout:
            yield
    finally:
        sys.stdout = before
        os.dup2(kept, descriptor)
        os.close(kept)


@contextmanager
def _one_line_warnings(name: str, debug: bool) -> Iterator[None]:
    """A warning is a line in the program's voice; with `debug` it is Python's, which says where it comes from."""
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = lambda message, *_: print(f"{name}: warning: {' '.join(str(message).split())}", file=sys.stderr)
        yield


@contextmanager
def _orderly_termination() -> Iterator[None]:
    """SIGTERM raises `Terminated`, unless something else handles it: a trainer ends after its step, a server after its sessions."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(number: int, _: FrameType | None) -> None:
        if signal.getsignal(signal.SIGTERM) is terminate:  # Lightning's handler calls this one too, and ends by itself
            signal.signal(number, signal.SIG_DFL)  # who is in a hurry sends a second one
            raise Terminated

    _workers_end_at_once()
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@cache
def _workers_end_at_once() -> None:
    """Forked processes do not inherit the handler. SIGTERM waits meanwhile, since a fork drops what Python has not handled yet."""
    ours = {signal.SIGTERM}
    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ours),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ours),
        after_in_child=lambda: (signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)),
    )


def _reader_left() -> bool:
    """Whether nobody reads stdout any more, as after `| head`; a broken pipe of something else is a failure."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False


def _forget_unwritten() -> None:
    """Where stdout takes no more, what it still holds is dropped, so that Python does not fail over it at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _keep_traceback(name: str) -> str:
    """Writes the current traceback where it stays; its path, or the traceback itself where nothing can be written."""
    import tempfile

    state = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser())
    text = f"{' '.join(sys.argv)}\n{traceback.format_exc()}"
    for folder in (state / "flowact", Path(tempfile.gettempdir())):
        path = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return f"in {path}"
        except OSError:
            continue
    return f"\n{text}"


def _place(error: BaseException) -> str:
    """`file:line` that raised it."""
    steps = traceback.extract_tb(error.__traceback__)
    return f"{Path(steps[-1].filename).name}:{steps[-1].lineno}" if steps else "nowhere"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip()} ..."


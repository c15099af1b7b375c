"""Both programs end alike: exit codes, one line on stderr, whatever the reason. Through real processes where the reason is the machine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools import cli as data_cli
from flowact import cli, endings
from flowact.errors import UserError

ROOT = Path(__file__).parents[1]
PROGRAMS = {"flowact": "flowact.cli", "flowact-data": "data_tools.cli"}
#: a quick verb of each; that of flowact-data is replaced, since all of them import much
QUICK = {"flowact": ["list"], "flowact-data": ["doctor"]}
STAND_IN = "from types import SimpleNamespace as N; doctor = N(add_arguments=lambda parser: None, run=lambda args: print('fine'))"


def start(name: str, *arguments: str, folder: Path, code: str = "", **options) -> subprocess.Popen:
    """A program in a process of its own, with its state in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), **options.pop("variables", {})}
    stand_in = f"{STAND_IN}; sys.modules['data_tools.doctor'] = doctor;" if list(arguments[:1]) == QUICK["flowact-data"] else ""
    start_up = f"import sys; from {PROGRAMS[name]} import main; sys.argv[0] = {name!r}; {stand_in} {code}\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", start_up, *arguments],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder, "env": environment, **options},
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out or "", err or ""


def assert_one_line(name: str, err: str) -> None:
    assert err.startswith(f"{name}: ")
    assert err.count("\n") == 1, err


@pytest.fixture
def sleeper(tmp_path) -> Path:
    """A plugin file that says it is there and then takes its time: whatever the verb, the program is busy."""
    path = tmp_path / "sleeper.py"
    path.write_text('import sys, time\nprint("busy", file=sys.stderr, flush=True)\ntime.sleep(60)\n')
    return path


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_ends_in_order(name, number, code, word, sleeper, tmp_path):
    process = start(name, *QUICK[name], "--plugin", str(sleeper), folder=tmp_path)
    assert process.stderr.readline() == "busy\n"
    process.send_signal(number)
    returned, out, err = finish(process)
    assert (returned, out) == (code, "")
    assert_one_line(name, err)
    assert err.startswith(f"{name}: {word}")


def test_a_worker_that_is_forked_dies_of_sigterm_at_once(tmp_path):
    code = "import os, signal, time; import flowact.commands.listing as l; l.run = lambda args: child()\ndef child():\n"
    code += "  pid = os.fork()\n  if not pid:\n    time.sleep(60)\n    os._exit(3)\n  os.kill(pid, signal.SIGTERM)\n"
    code += "  print(os.WTERMSIG(os.waitpid(pid, 0)[1]))"
    assert finish(start("flowact", "list", folder=tmp_path, code=code)) == (0, f"{int(signal.SIGTERM)}\n", "")


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_reader_that_leaves_is_no_failure(name, tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = start(name, *QUICK[name], folder=tmp_path, stdout=writing)
    os.close(writing)
    assert finish(process) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_full_disk_is_said(name, tmp_path):
    with open("/dev/full", "w") as full:
        code, _, err = finish(start(name, *QUICK[name], folder=tmp_path, stdout=full))
    assert code == 2
    assert_one_line(name, err)
    assert "No space left on device; make room and run the same command again" in err


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs /sys, in which nobody may make a folder")
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("flowact", ["new", "plugin", "mine", "--kind", "memory", "--out", "/sys/kernel/mine"], "/sys/kernel/mine"),
        ("flowact", ["generate", "--audio", "gone.wav", "--out", "a.mp4"], "gone.wav"),
        ("flowact", ["check", "gone.yaml"], "gone.yaml"),
        ("flowact", ["diff", ".", "debug/autoencoder.yaml"], "manifest.json"),
        ("flowact-data", ["stats", "gone"], "gone"),
        ("flowact-data", ["probe", "gone.mp4"], "gone.mp4"),
        ("flowact-data", ["synth", "--out", "/sys/kernel/mine", "--train-identities", "1", "--val-identities", "0"], "/sys/kernel/mine"),
        ("flowact-data", ["probe", "."], "."),
    ],
)
def test_a_place_that_cannot_be_used_is_named(name, arguments, said, tmp_path):
    code, out, err = finish(start(name, *arguments, folder=tmp_path))
    assert (code, out) == (2, "")
    assert_one_line(name, err)
    assert err.startswith(f"{name}: error: ")
    assert said in err
    assert list(tmp_path.iterdir()) == []


FAULTY = "import flowact.commands.listing as l; l.run = lambda args: 1 / 0; doctor = globals().get('doctor', l); doctor.run = l.run"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_fault_of_ours_is_one_line_and_its_traceback_is_kept(name, tmp_path):
    code, out, err = finish(start(name, *QUICK[name], folder=tmp_path, code=FAULTY))
    assert (code, out) == (70, "")
    assert_one_line(name, err)
    assert "ZeroDivisionError: division by zero" in err
    assert "--debug" in err
    (log,) = (tmp_path / "state").rglob("*.log")
    assert str(log) in err
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(("arguments", "variables"), [(["--debug"], {}), ([], {"FLOWACT_DEBUG": "1"})])
@pytest.mark.parametrize("name", PROGRAMS)
def test_debug_shows_the_traceback_and_keeps_the_code(name, arguments, variables, tmp_path):
    code, _, err = finish(start(name, *QUICK[name], *arguments, folder=tmp_path, code=FAULTY, variables=variables))
    assert code == 70
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith(f"{name}: error: ZeroDivisionError")
    assert not (tmp_path / "state").exists()


def test_a_traceback_that_cannot_be_kept_is_shown(tmp_path):
    variables = {"XDG_STATE_HOME": "/sys/kernel", "TMPDIR": "/sys/kernel"}
    code = f"{FAULTY}; import tempfile; tempfile.gettempdir = lambda: '/sys/kernel'"
    returned, _, err = finish(start("flowact", "list", folder=tmp_path, code=code, variables=variables))
    assert returned == 70
    assert "Traceback" in err


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a=1 is not b"), 2, "error: a=1 is not b"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied; change its permissions"),
        (OSError(98, "Address already in use"), 2, "choose another --port"),
        (OSError(28, "No space left on device", "/x"), 2, "error: /x: No space left on device; make room"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "make room"),
        (OSError("no such model on the hub"), 2, "error: no such model on the hub"),
        (ModuleNotFoundError("No module named 'peft'", name="peft.tuners"), 2, "`p doctor`"),
        (ModuleNotFoundError("No module named 'flowact.gone'", name="flowact.gone"), 70, "fault of FlowAct"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), 2, "smaller batch"),
        (MemoryError(), 2, "not enough memory"),
        (BrokenPipeError(32, "Broken pipe"), 2, "Broken pipe"),  # of something that is not stdout
        (KeyboardInterrupt(), 130, "p: interrupted; go on"),
        (endings.Terminated(), 143, "p: terminated; go on"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_ends_a_program_is_explained(error, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def body():
        raise error

    assert endings.run_program("p", body, go_on="go on") == code
    err = capsys.readouterr().err
    assert_one_line("p", err)
    assert said in err


def test_a_trainer_that_was_interrupted_leaves_as_interrupted(capsys):
    def body():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert endings.run_program("p", body) == 130
    assert capsys.readouterr().err == "p: interrupted\n"


def test_a_handler_that_calls_ours_too_is_left_to_end_by_itself():
    """As Lightning's does, which ends after the step that was begun."""

    def body():
        ours = signal.getsignal(signal.SIGTERM)
        seen = []
        signal.signal(signal.SIGTERM, lambda *args: (seen.append(1), ours(*args)))
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1]
        return 0

    assert endings.run_program("p", body) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_warnings_are_lines_in_the_programs_voice(capsys):
    import warnings

    assert endings.run_program("p", lambda: warnings.warn("this\nis odd", stacklevel=1)) == 0
    assert capsys.readouterr().err == "p: warning: this is odd\n"


def test_only_json_is_on_stdout_whatever_children_and_libraries_print(tmp_path):
    code = "import os, json; import flowact.commands.listing as l\ndef run(args):\n  os.system('echo noise'); os.write(1, b'more\\n')\n"
    code += "  print(json.dumps({'a': 1}))\nl.run = run"
    returned, out, err = finish(start("flowact", "list", "--json", folder=tmp_path, code=code))
    assert (returned, json.loads(out), err) == (0, {"a": 1}, "noise\nmore\n")


def test_json_is_all_that_is_on_stdout(tmp_path):
    lines = [
        ["list", "--json"],
        ["describe", "StructuredMemory", "--json"],
        ["check", "debug/autoencoder.yaml", "--json"],
        ["diff", "debug/autoencoder.yaml", "debug/diffusion_forcing.yaml", "--json"],
        ["plan", "debug/diffusion_forcing.yaml", "--size", "32x32", "--json"],
        ["doctor", "--json"],
    ]
    code = f"import os\nfor line in {lines!r}:\n  print(f'{{main(line)}}\\0', flush=True)"
    returned, out, err = finish(start("flowact", "list", "--json", folder=tmp_path, code=code))
    assert returned == 0, err
    *records, last = out.split("\0")
    assert len(records) == len(lines)
    for record in [*records, f"{last}0"]:
        assert record[-1] in "01", err
        assert json.loads(record[:-1])


@pytest.mark.parametrize(("name", "arguments"), [("flowact", ["list", "memry", "--json"]), ("flowact-data", ["stats", "gone", "--json"])])
def test_a_failure_leaves_stdout_empty(name, arguments, tmp_path):
    code, out, err = finish(start(name, *arguments, folder=tmp_path))
    assert (code, out) == (2, "")
    assert_one_line(name, err)


def test_a_mistake_in_the_arguments_is_the_same_code_in_both(capsys):
    for main in (cli.main, data_cli.main):
        assert main(["nonsense"]) == 2
        for arguments, code in ((["--quiet"], 2), ([], 0)):
            with pytest.raises(SystemExit) as caught:
                main(arguments)
            assert caught.value.code == code

"""Tab: real shells evaluate the script and are asked, as a user's would be."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools.cli import PROGRAM as DATA
from flowact.cli import PROGRAM
from flowact.completion import completing_parser, shell_code

ROOT = Path(__file__).parents[2]
#: fills COMPREPLY as bash does when Tab is pressed behind a line
ASK = r"""
eval "$(flowact completion bash)"
ask() { COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; COMPREPLY=(); _python_argcomplete "${1%% *}"; echo "${COMPREPLY[*]}"; }
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """A folder with the two programs, of this checkout."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("flowact", "flowact.cli"), ("flowact-data", "data_tools.cli")):
        program = folder / name
        program.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom {module} import main\nsys.exit(main())\n")
        program.chmod(0o755)
    return folder


def environment(programs: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "dumb"}


def test_bash_is_offered_what_there_is(programs, tmp_path):
    (tmp_path / "anna.yaml").touch()
    lines = {
        "flowact li": "list",
        "flowact list mem": "memory",
        "flowact describe StructuredM": "StructuredMemory",
        "flowact fit --config quickstart/pretr": "quickstart/pretraining.yaml",
        "flowact fit --config an": "anna.yaml",
        "flowact fit --config anna.yaml model.init_args.memory=NoM": "NoMemory",  # bash completes what stands after =
        "flowact new plugin mine --kind mem": "memory",
        "flowact-data build --score": "--score-only",
        "flowact nonsense": "",
    }
    script = ASK + "".join(f"ask '{line}'\n" for line in lines)
    done = subprocess.run(["bash", "-c", script], env=environment(programs), capture_output=True, text=True, cwd=tmp_path, check=True)
    assert dict(zip(lines, (line.strip() for line in done.stdout.splitlines()), strict=True)) == lines


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_an_interactive_shell_completes_a_line(shell, programs, tmp_path):
    """A word that can only be one is finished and the command runs."""
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}: apt-get install {shell}")
    start = {
        "bash": 'eval "$(flowact completion bash)"; echo rea""dy\n',
        "zsh": 'autoload -U compinit; compinit -u; eval "$(flowact completion zsh)"; echo rea""dy\n',
        "fish": 'flowact completion fish | source; echo rea""dy\n',
    }[shell]
    options = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvpe(shell, [shell, *options, "-i"], {**environment(programs), "HOME": str(tmp_path)})
    try:
        os.write(terminal, start.encode())
        read_until(terminal, "ready")
        os.write(terminal, b"flowact lis\tmem\t\n")
        assert "StructuredMemory" in read_until(terminal, "StructuredMemory")
    finally:
        os.close(terminal)
        os.waitpid(process, 0)


def read_until(terminal: int, words: str, seconds: float = 90.0) -> str:
    """What the terminal shows up to `words`."""
    seen, end = "", time.monotonic() + seconds
    while words not in seen:
        if not select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            pytest.fail(f"{words!r} did not come:\n{seen}")
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


@pytest.mark.parametrize(("program", "line"), [(PROGRAM, "flowact"), (DATA, "flowact-data")])
def test_every_verb_can_be_completed(program, line):
    """Also those that import torch to run."""
    for verb in program.verbs:
        if verb == "encode":
            continue  # imports torch, which takes long
        parser = completing_parser(program, f"{line} {verb} ", len(f"{line} {verb} "))
        assert verb in parser._subparsers._group_actions[0].choices


def test_answering_imports_no_torch(tmp_path):
    for program, line in (("flowact.cli", "flowact fit --config q"), ("data_tools.cli", "flowact-data build x --li")):
        code = f"import sys; from {program} import PROGRAM; from flowact.completion import completing_parser\n"
        code += f"completing_parser(PROGRAM, {line!r}, {len(line)}); print(*{{'torch', 'lightning', 'deepspeed'}} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.strip() == ""


def test_there_is_a_script_for_each_shell_with_both_programs():
    for shell in ("bash", "zsh", "fish"):
        script = shell_code("flowact", "flowact-data", shell=shell)
        assert "flowact-data" in script
        assert "_ARGCOMPLETE" in script

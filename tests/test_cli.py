from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import data_tools.cli
from flowact import cli

ROOT = Path(__file__).parents[1]


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    report = "\nprint('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}{report}"], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.rpartition("LOADED ")[2].split())


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["list", "memory", "--json"], ["fit", "--help"]])
def test_help_and_list_answer_without_heavy_imports(argv):
    code = f"from flowact.cli import main\ntry:\n    main({argv!r})\nexcept SystemExit:\n    pass"
    assert not loaded_by(code) & {"torch", "lightning", "jsonargparse", "omegaconf", "numpy", "av", "deepspeed"}


def test_help_names_every_verb_with_its_line(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for verb, (_, line) in cli.VERBS.items():
        assert f"{verb} {line}" in shown


def test_every_verb_has_a_module_with_the_two_functions():
    for module, _ in (*cli.VERBS.values(), *data_tools.cli.VERBS.values()):
        text = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert "def add_arguments(" in text
        assert "def run(" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fitt"], "there is no verb 'fitt'. Did you mean fit?"),
        (["list", "memry"], "no kind of component called 'memry'. Did you mean memory?"),
        (["list", "--jsn"], "flowact list does not take '--jsn'. Did you mean --json?"),
        (["list", "a=1"], "a=1"),
        (["diff", "a"], "the following arguments are required: B"),
        (["fit"], "the following arguments are required: --config"),
        (["list", "--trust", "*"], "'*' cannot be trusted"),
        (["list", "--plugin", "gone.py"], "--plugin gone.py: not a Python file"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_code_two(capsys, argv, message):
    try:
        code = cli.main(argv)
    except SystemExit as error:
        code = error.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.err.startswith("flowact: error: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") == 1


def test_no_verb_prints_the_help(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 0
    assert "VERB" in capsys.readouterr().out


@pytest.fixture
def verb(monkeypatch):
    """Replace what `flowact list` does."""
    from flowact.commands import listing

    return lambda function: monkeypatch.setattr(listing, "run", function)


@pytest.mark.parametrize("before", [True, False])
def test_quiet_may_stand_before_or_after_the_verb(verb, before):
    seen = []
    verb(lambda args: seen.append(args.quiet))
    assert cli.main(["--quiet", "list"] if before else ["list", "--quiet"]) == 0
    assert cli.main(["list"]) == 0
    assert seen == [True, False]


def test_overrides_may_stand_anywhere_after_the_verb(monkeypatch):
    from flowact.commands import fit

    seen = []
    monkeypatch.setattr(fit, "run", lambda args: seen.append((args.overrides, args.resume)))
    cli.main(["fit", "--config", "r.yaml", "a.b=1", "c=-2", "--resume", "d", "e=3", "--quiet", "f=4"])
    assert seen == [(["a.b=1", "c=-2", "e=3", "f=4"], "d")]


def test_the_module_is_the_program():
    done = subprocess.run([sys.executable, "-m", "flowact", "list", "memory"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[0] == "memory"


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"flowact {version('flowact')}\n"

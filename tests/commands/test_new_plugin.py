"""What `flowact new plugin` writes is a plugin: it installs, is listed, works in a recipe, passes its own tests, and is clean."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree
from collections import Counter
from pathlib import Path

import pytest

import flowact
from flowact import cli, registry
from flowact.commands import new

ROOT = Path(flowact.__file__).parents[1]
KINDS = sorted(new.KINDS)
#: kind -> a shipped recipe and what puts the component into it
RECIPES = {
    "memory": ("quickstart/diffusion_forcing.yaml", "model.init_args.memory={}", "data.init_args.history_frames=3"),
    "schedulers": ("quickstart/diffusion_forcing.yaml", "model.init_args.levels={}"),
    "solvers": ("quickstart/self_forcing.yaml", "model.init_args.solver.class_path={}"),
    "stages": ("quickstart/diffusion_forcing.yaml", "model.class_path={}"),
    "denoisers": (
        "quickstart/pretraining.yaml",
        "model.init_args.denoiser={{class_path: {}, init_args: {{latent_channels: 96, text_width: 256, audio_width: 127}}}}",
    ),
    "corruptors": ("quickstart/self_forcing.yaml", "model.init_args.corruptor={}"),
    "adapters": ("quickstart/diffusion_forcing.yaml", "model.init_args.adapter.class_path={}"),
    "callbacks": ("quickstart/pretraining.yaml", "trainer.callbacks.mine.class_path={}"),
}


def name_of(kind: str) -> str:
    return f"flowact-try-{kind}"


def class_of(kind: str) -> str:
    return f"Try{kind.capitalize()}"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a plugin of each kind."""
    folder = tmp_path_factory.mktemp("plugins")
    for kind in KINDS:
        assert cli.main(["new", "plugin", name_of(kind), "--kind", kind, "--out", str(folder / name_of(kind))]) == 0
    return folder


@pytest.fixture
def installed(written, install):
    """`installed(kind)`: the plugin's project table, installed as its pyproject.toml says."""

    def add(kind: str) -> dict:
        folder = written / name_of(kind)
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        points = {group.removeprefix("flowact."): names for group, names in project["entry-points"].items()}
        source = folder / "src"
        install(project["name"], points, {path.relative_to(source).as_posix(): path.read_text() for path in source.rglob("*.py")}, project["version"])
        return project

    return add


def test_the_tests_of_every_kind_pass(written):
    report = written / "report.xml"
    paths = [str(ROOT), *(str(written / name_of(kind) / "src") for kind in KINDS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(written), f"--junitxml={report}"]
    folders = [str(written / name_of(kind) / "tests") for kind in KINDS]
    done = subprocess.run([*command, *folders], capture_output=True, text=True, env=environment, cwd=written, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = xml.etree.ElementTree.parse(report).iter("testcase")
    passed = Counter(str(case.get("classname")).rpartition("test_flowact_try_")[2] for case in cases if len(case) == 0)
    assert {kind: passed[kind] >= 4 for kind in KINDS} == dict.fromkeys(KINDS, True)


@pytest.mark.parametrize("kind", KINDS)
def test_installed_it_is_a_component_like_any_other(kind, installed, capsys):
    project = installed(kind)
    name = class_of(kind)
    assert project["entry-points"] == {f"flowact.{kind}": {name: f"flowact_try_{kind}:{name}"}}
    assert cli.main(["list", kind]) == 0
    shown = capsys.readouterr()
    (line,) = [line for line in shown.out.splitlines() if line.split()[:1] == [name]]
    assert line.endswith(f"[flowact-try-{kind} 0.1.0]")
    assert len(line.split()) > 8
    assert name not in shown.err
    assert cli.main(["describe", name]) == 0
    assert f"({kind}: a {registry.KINDS[kind].base})" in capsys.readouterr().out
    assert registry.load(name, kind).__name__ == name


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_a_shipped_recipe_takes_it_by_name(kind, installed, capsys):
    recipe, *overrides = RECIPES[kind]
    installed(kind)
    command = ["check", recipe, *(override.format(class_of(kind)) for override in overrides)]
    assert cli.main(command) == 0, capsys.readouterr().err


@pytest.mark.parametrize("kind", sorted(RECIPES))
def test_the_recipe_and_the_commands_of_its_page_are_right(kind, written, installed, tmp_path, capsys):
    installed(kind)
    page = (written / name_of(kind) / "README.md").read_text()
    (tmp_path / "recipe.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert cli.main(["check", str(tmp_path / "recipe.yaml")]) == 0, capsys.readouterr().err
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("    flowact ")]
    assert [command[0] for command in commands] == ["list", "describe", "check", "fit"]
    for command in commands[:3]:
        assert cli.main(command) == 0, capsys.readouterr().err
    assert [command for command in commands[3] if "=" in command] == [command for command in commands[2] if "=" in command]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_also_a_plugin_file(kind, written, tmp_path):
    registry.refresh()
    source = written / name_of(kind) / "src" / f"flowact_try_{kind}" / "__init__.py"
    file = tmp_path / f"try_{kind}.py"
    file.write_text(source.read_text())
    (component,) = registry.load_plugin_file(file)
    registry.refresh()
    assert (component.kind, component.name) == (kind, class_of(kind))


def test_what_is_written_is_clean(written):
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", str(written)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_every_folder_has_the_same_shape_and_nothing_is_left_to_fill_in(kind, written):
    folder = written / name_of(kind)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert files == {"pyproject.toml", "README.md", f"src/flowact_try_{kind}/__init__.py", f"tests/test_flowact_try_{kind}.py"}
    for file in files:
        text = (folder / file).read_text()
        assert not any(mark in text for mark in ("{{", "{%", "NotImplementedError", "TODO", "...\n"))
        assert text.endswith("\n")
        assert not text.endswith("\n\n")
    page = (folder / "README.md").read_text()
    assert all(word in page for word in ("pip install -e", "flowact describe", "pytest", class_of(kind)))
    test = (folder / "tests" / f"test_flowact_try_{kind}.py").read_text()
    assert f"check_constructor({class_of(kind)})" in test
    assert new.KINDS[kind].check in test
    assert new.KINDS[kind].check in (ROOT / "flowact" / "testing" / "__init__.py").read_text()


def test_it_says_what_was_written_and_the_next_three_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "plugin", "flowact-last-frames", "--kind", "memory"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrote flowact-last-frames: LastFrames, a MemoryBank (memory)"
    assert all((tmp_path / "flowact-last-frames" / line.strip()).is_file() for line in lines[1:5])
    assert lines[5:] == ["next:", "  pip install -e ./flowact-last-frames", "  flowact describe LastFrames", "  pytest ./flowact-last-frames"]


def test_name_folder_and_class_are_the_users(tmp_path, capsys):
    assert cli.main(["new", "plugin", "Our.Levels", "--kind", "schedulers", "--class", "OurOwn", "--out", str(tmp_path / "a" / "b c")]) == 0
    assert (tmp_path / "a" / "b c" / "src" / "our_levels" / "__init__.py").read_text().count("class OurOwn(NoiseScheduler)") == 1
    assert f"pip install -e '{tmp_path}/a/b c'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["my plugin", "--kind", "memory"], "no name of a distribution"),
        (["-x", "--kind", "memory"], "error"),
        (["mine-", "--kind", "memory"], "no name of a distribution"),
        (["../mine", "--kind", "memory"], "no name of a distribution"),
        (["3d-memory", "--kind", "memory"], "begin with a letter"),
        (["class", "--kind", "memory", "--class", "Mine"], "begin with a letter"),
        (["json", "--kind", "memory", "--class", "Mine"], "there is a module 'json' already"),
        (["FlowAct", "--kind", "memory", "--class", "Mine"], "there is a module 'flowact' already"),
        (["mine", "--kind", "memroy"], "Did you mean memory?"),
        (["mine", "--kind", "autoencoders"], "there is a template for memory, corruptors"),
        (["mine", "--kind", "autoencoders"], "docs/plugins.md"),
        (["mine", "--kind", "memory", "--class", "StructuredMemory"], "taken: flowact 0.1.0 registers it (memory)"),
        (["mine", "--kind", "planners", "--class", "StructuredMemory"], "registers it (memory)"),
        (["flowact-no-memory", "--kind", "memory"], "'NoMemory' is taken"),
        (["mine", "--kind", "memory", "--class", "mine"], "no name of a class"),
        (["mine", "--kind", "memory", "--class", "My-Bank"], "no name of a class"),
        (["mine", "--kind", "memory", "--class", ""], "no name of a class"),
        (["mine", "--kind", "memory", "--class", "None"], "a name of Python itself"),
        (["mine", "--kind", "memory", "--class", "ValueError"], "a name of Python itself"),
        (["mine", "--kind", "memory", "--class", "MemoryBank"], "something that the component is made of"),
        (["mine", "--kind", "callbacks", "--class", "Callback"], "something that the component is made of"),
        (["there", "--kind", "memory"], "there is there already"),
        (["mine"], "--kind"),
        (["m" * 300, "--kind", "memory"], "give another folder with --out"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    try:
        code = cli.main(["new", "plugin", *words])
    except SystemExit as exit_:
        code = exit_.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("flowact: error: ")
    assert says in shown.err
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["new", "plugin", "mine", "--kind", "memory", "--out", str(tmp_path / "file" / "mine")]) == 2
    assert "give another folder with --out" in capsys.readouterr().err


def test_it_answers_without_torch(tmp_path):
    code = f"import sys; from flowact.cli import main; main(['new', 'plugin', 'mine', '--kind', 'steps', '--out', {str(tmp_path / 'x')!r}]);"
    code += "import time; assert time.process_time() < 2, time.process_time();"  # 0.25 s on an idle machine
    code += "print(sorted({'torch', 'lightning', 'numpy', 'av'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"

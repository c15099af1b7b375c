"""A broken plugin is reported by name, distribution, reason and fix; everything else goes on."""

from __future__ import annotations

import json
import re

import pytest

from flowact import cli, faults, registry

GOOD = '''
from flowact.memory.base import MemoryBank

class {name}(MemoryBank):
    """A bank."""
    num_frames = num_segments = history_chunks = 1
    def reset(self, reference): ...
    def write(self, state, chunk): ...
    def read(self, state): ...
'''
HALF = "from flowact.memory import MemoryBank\n\nclass Parent(MemoryBank):\n    def reset(self, reference): ...\n"
USE = "model.init_args.memory=Bank"
CHECK = ("check", "quickstart/diffusion_forcing.yaml", "data.init_args.history_frames=3")

BANK = GOOD.format(name="Bank")
OF_A_SCHEDULER = "from flowact.schedulers import UniformLevel\n\nclass Bank(UniformLevel):\n    pass\n"
OF_A_PARENT = "from .parent import Parent\n\nclass Bank(Parent):\n    num_frames = 1\n    num_segments: int\n    def read(self, state): ...\n"
NO_BASE = "does not derive from MemoryBank"

#: what is installed (entry point's target, files) -> what the reason and the fix say
BROKEN = {
    "no module": ("gone_module:Bank", {}, "no module 'gone_module'", "reinstall"),
    "no class": ("broken:Bank", {"broken.py": GOOD.format(name="Banc")}, "has none of this name. Did you mean Banc", "reinstall"),
    "no target": ("broken", {"broken.py": BANK}, "'broken', which is no class", "module:Class"),
    "syntax": ("broken:Bank", {"broken.py": "class Bank(:\n"}, "broken.py:1: invalid syntax", "reinstall"),
    "wrong base": ("broken:Bank", {"broken.py": "class Bank:\n    'A bank.'\n"}, NO_BASE, "flowact.memory.MemoryBank"),
    "another base": ("broken:Bank", {"broken.py": OF_A_SCHEDULER}, NO_BASE, "group of its kind"),
    "half of it": (
        "broken.bank:Bank",
        {"broken/__init__.py": "", "broken/parent.py": HALF, "broken/bank.py": OF_A_PARENT},
        "does not define history_chunks, num_segments, write",
        "reinstall|define it",
    ),
    "fails": ("broken:Bank", {"broken.py": BANK + "\nraise RuntimeError('no GPU')\n"}, "RuntimeError: no GPU", "reinstall"),
    "leaves": ("broken:Bank", {"broken.py": BANK + "\nraise SystemExit(3)\n"}, "SystemExit: 3", "reinstall"),
    "lacks a package": ("broken:Bank", {"broken.py": "import surely_not_there\n" + BANK}, "the package 'surely_not_there'", "reinstall"),
    "made by a call": ("broken:Bank", {"broken.py": "Bank = type('Bank', (), {})\n"}, NO_BASE, "reinstall"),
}
#: what sources alone do not tell
ONLY_WHEN_IMPORTED = {"fails", "leaves", "lacks a package", "made by a call"}


@pytest.fixture
def broken(request, install):
    """One broken plugin beside a good one; the name of the case."""
    target, files, *_ = BROKEN[request.param]
    install("broken-plugin", {"memory": {"Bank": target}}, files)
    install("good-plugin", {"memory": {"GoodBank": "good_module:GoodBank"}}, {"good_module.py": GOOD.format(name="GoodBank")})
    return request.param


def run(capsys, *argv):
    try:
        code = cli.main(list(argv))
    except SystemExit as left:
        code = left.code
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_list_names_it_and_shows_the_rest(broken, capsys):
    _, _, reason, fix = BROKEN[broken]
    code, out, err = run(capsys, "list", "memory")
    assert code == 0
    assert "GoodBank" in out
    assert "A bank.  [good-plugin 1.0]" in out
    assert "StructuredMemory" in out
    if broken in ONLY_WHEN_IMPORTED:
        assert err == ""
        return
    (line,) = err.splitlines()
    assert line.startswith("flowact: warning: Bank of broken-plugin: ")
    assert reason in line
    assert re.search(fix, line)


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
def test_doctor_names_it_with_what_to_do(broken, capsys, monkeypatch):
    _, _, reason, fix = BROKEN[broken]
    code, out, _ = run(capsys, "doctor", "--json")
    found = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert code == 1
    assert "memory GoodBank" not in found
    finding = found["memory Bank"]
    assert finding["status"] == "missing"
    assert "broken-plugin 1.0" in finding["value"]
    assert reason in finding["value"]
    assert re.search(fix, finding["fix"])


@pytest.mark.parametrize("broken", BROKEN, indirect=True)
@pytest.mark.parametrize("command", [("describe", "Bank"), (*CHECK, USE), ("fit", "--config", *CHECK[1:], USE)], ids=lambda words: words[0])
def test_whoever_needs_it_is_told_in_one_line(broken, command, capsys):
    code, out, err = run(capsys, *command)
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("flowact: error: ")
    assert "Bank" in line
    assert "broken-plugin" in line
    assert "Traceback" not in line


@pytest.mark.parametrize("broken", ["no module", "syntax", "fails", "leaves", "wrong base"], indirect=True)
def test_whoever_does_not_need_it_goes_on(broken, capsys):
    assert run(capsys, *CHECK, "model.init_args.memory=NoMemory", "data.init_args.history_frames=0")[0] == 0
    assert run(capsys, "describe", "GoodBank")[0] == 0
    assert run(capsys, "describe", "StructuredMemory")[0] == 0


def test_a_clash_names_both_and_neither_hides_the_rest(install, capsys):
    for name in ("a-plugin", "b-plugin"):
        module = name.replace("-", "_")
        install(name, {"memory": {"Bank": f"{module}:Bank"}}, {f"{module}.py": GOOD.format(name="Bank")})
    code, out, err = run(capsys, "list", "memory")
    assert code == 0
    assert "NoMemory" in out
    assert len(err.splitlines()) == 2
    assert all("claimed by a-plugin 1.0 and b-plugin 1.0; uninstall one, or write the full class path" in line for line in err.splitlines())
    for command in (("describe", "Bank"), (*CHECK, USE)):
        code, _, err = run(capsys, *command)
        assert code == 2
        assert "claimed by a-plugin 1.0" in err
        assert "b-plugin 1.0" in err
    assert run(capsys, *CHECK, "model.init_args.memory=a_plugin.Bank")[0] == 0


@pytest.mark.parametrize(
    ("requires", "reason", "fix"),
    [
        ("surely-not-there>=2", "needs surely-not-there>=2, which is not installed", "pip install 'surely-not-there>=2'"),
        ("pytest>=10000", "needs pytest>=10000, and ", "pip install 'pytest>=10000'"),
        ("surely-not-there; extra == 'more'", None, None),
        ("surely-not-there; python_version < '3'", None, None),
        ("pytest>=1", None, None),
        ("flowact", None, None),
    ],
)
def test_a_dependency_that_is_not_there_is_seen_without_import(requires, reason, fix, install, capsys):
    site = install("needy-plugin", {"memory": {"Bank": "needy:Bank"}}, {"needy.py": "import surely_not_there\n" + GOOD.format(name="Bank")})
    metadata = site / "needy_plugin-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + f"Requires-Dist: {requires}\n")
    registry.refresh()
    (component,) = [c for c in registry.components("memory") if c.name == "Bank"]
    fault = faults.fault_of(component)
    assert (fault and fault.fix) == fix
    if reason:
        assert fault.reason.startswith(reason)
        assert f"Bank of needy-plugin: {reason}" in run(capsys, "list", "memory")[2]


def test_a_group_that_is_no_kind_and_entry_points_that_cannot_be_read_are_named(install, capsys):
    install("lost-plugin", {"memroy": {"Bank": "lost:Bank"}}, {"lost.py": GOOD.format(name="Bank")})
    code, out, err = run(capsys, "list")
    assert code == 0
    assert "lost-plugin: registers Bank in the group 'flowact.memroy', which is no kind of component. Did you mean flowact.memory" in err
    site = install("garbled-plugin", {})
    (site / "garbled_plugin-1.0.dist-info" / "entry_points.txt").write_text("[flowact.memory]\nBank broken:Bank\n")
    registry.refresh()
    code, out, err = run(capsys, "list")
    assert code == 0
    assert "StructuredMemory" in out
    assert "garbled-plugin: its entry points cannot be read" in err
    assert "pip uninstall garbled-plugin" in err
    assert "lost-plugin" in err
    names = [finding["name"] for finding in json.loads(run(capsys, "doctor", "--json")[1])["findings"]]
    assert {"plugin garbled-plugin", "plugin lost-plugin"} <= set(names)


def test_a_name_that_no_recipe_can_write_is_named(install):
    install("odd-plugin", {"memory": {"my.bank": "odd:Bank"}}, {"odd.py": GOOD.format(name="Bank")})
    (component,) = [c for c in registry.components("memory") if c.distribution == "odd-plugin"]
    assert "give it the name of its class, Bank" in faults.fault_of(component).fix


CHAINS = {
    "through a package": ("from flowact.memory import MemoryBank as M\n\nclass Bank(M): ...\n", "history_chunks"),
    "by a dotted name": ("import flowact.memory.base\n\nclass Bank(flowact.memory.base.MemoryBank): ...\n", "history_chunks"),
    "by a module's alias": ("import flowact.memory.base as base\n\nclass Bank(base.MemoryBank[int]): ...\n", "history_chunks"),
    "by a module": ("from flowact.memory import base\n\nclass Bank(base.MemoryBank): ...\n", "history_chunks"),
    "whole, of another bank": ("from flowact.memory import NoMemory\n\nclass Bank(NoMemory): ...\n", None),
    "of what nobody can tell": ("from elsewhere_gone import Base\n\nclass Bank(Base): ...\n", None),
    "of what is made": ("from flowact.memory import NoMemory\n\nclass Bank(type('X', (NoMemory,), {})): ...\n", None),
    "abstract of its own": (
        "import abc\nfrom flowact.memory import NoMemory\n\nclass Bank(NoMemory):\n    @abc.abstractmethod\n    def more(self): ...\n",
        "more",
    ),
}


@pytest.mark.parametrize("case", CHAINS)
def test_base_classes_are_followed_through_sources(case, install):
    text, missing = CHAINS[case]
    install("chain-plugin", {"memory": {"Bank": "chain:Bank"}}, {"chain.py": text})
    (component,) = [c for c in registry.components("memory") if c.name == "Bank"]
    fault = faults.fault_of(component)
    assert (fault is not None) == (missing is not None)
    assert missing is None or missing in fault.reason


def test_nothing_that_is_installed_here_is_at_fault():
    assert {component.name: faults.fault_of(component) for component in registry.components() if faults.fault_of(component)} == {}

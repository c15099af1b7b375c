"""`flowact new plugin NAME --kind KIND`: the folder of a distribution with one working component, its test and its page."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib.util
import keyword
import os
import re
from dataclasses import dataclass
from pathlib import Path

from flowact import registry
from flowact.errors import UserError, did_you_mean

TEMPLATES = Path(__file__).parents[1] / "templates" / "plugin"
PAGE = "docs/plugins.md"
#: what the packaging standard calls a valid name (PEP 508)
NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)


@dataclass(frozen=True)
class Template:
    """A kind of plugin that can be written.

    Attributes:
        what: the component that is written, for the description and the page.
        check: the conformance check of `flowact.testing`; empty where the kind has none.
    """

    what: str
    check: str = ""


#: kind -> what `templates/plugin/KIND.py.j2` and `templates/plugin/KIND_test.py.j2` hold
KINDS = {
    "memory": Template("A memory bank: the reference and the newest latent frames", "check_memory_bank"),
    "corruptors": Template("A memory corruptor: history with less detail", "check_corruptor"),
    "conditioning": Template("An audio encoder: levels of frequency bands in each video frame", "check_conditioning_encoder"),
    "schedulers": Template("A noise schedule: levels between one for all chunks and one for each", "check_noise_scheduler"),
    "solvers": Template("A solver: Euler's method towards a clean estimate with momentum", "check_solver"),
    "denoisers": Template("A denoiser: MMDiT with a learnt gain of each channel", "check_denoiser"),
    "stages": Template("A stage: diffusion forcing on a loss that bad frames weigh less in"),
    "planners": Template("A behaviour planner: speaking while there is speech, else listening", "check_planner"),
    "writers": Template("A video writer: uncompressed Y4M beside a WAV file", "check_writer"),
    "callbacks": Template("A callback: logs how far the loss lies above its average"),
    "adapters": Template("An adapter: parameters chosen by name are trained, all others stay", "check_adapter"),
    "steps": Template("A step of a dataset build: rejects footage whose light flickers"),
    "detectors": Template("A face detector: a face that stays in one place"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to write, its name and where."""
    parser.add_argument("what", choices=["plugin"], help="a distribution that registers a component")
    parser.add_argument("name", help="of the distribution, such as flowact-last-frames")
    parser.add_argument("--kind", required=True, help=f"of the component: {', '.join(KINDS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; it must not exist (default: NAME)")
    parser.add_argument("--class", dest="class_name", metavar="CLASS", help="of the component (default: from NAME, as LastFrames)")


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what comes next."""
    class_name = class_name_of(args.name) if args.class_name is None else args.class_name
    folder = args.out or Path(args.name)
    written = write_plugin(args.name, args.kind, folder, class_name)
    print(f"wrote {folder}: {class_name}, a {registry.KINDS[args.kind].base} ({args.kind})")
    for path in written:
        print(f"  {path.as_posix()}")
    print("next:")
    for command in (f"pip install -e {shown(folder)}", f"flowact describe {class_name}", f"pytest {shown(folder)}"):
        print(f"  {command}")
    return 0


def write_plugin(name: str, kind: str, folder: Path, class_name: str) -> list[Path]:
    """Write a distribution.

    Args:
        name: of the distribution.
        kind: a key of `KINDS`.
        folder: to write.
        class_name: of the component.

    Returns:
        the files, relative to the folder.

    Raises:
        UserError: a name that is not valid or taken, a kind without a template, or a folder that is there.
    """
    check_kind(kind)
    module = module_of(name)
    check_class_name(class_name)
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already; give another folder with --out, or remove it")
    files = render(name, kind, module, class_name)
    check_no_clash(class_name, files[f"src/{module}/__init__.py"])
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error}); give another folder with --out") from error
    return [Path(path) for path in files]


def render(name: str, kind: str, module: str, class_name: str) -> dict[str, str]:
    """The texts of a distribution by path; arguments as for `write_plugin`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    values = {"name": name, "kind": kind, "module": module, "cls": class_name, **vars(KINDS[kind])}
    sources = {
        "pyproject.toml": "pyproject.toml.j2",
        "README.md": "README.md.j2",
        f"src/{module}/__init__.py": f"{kind}.py.j2",
        f"tests/test_{module}.py": f"{kind}_test.py.j2",
    }
    return {path: environment.get_template(template).render(values) for path, template in sources.items()}


def shown(folder: Path) -> str:
    """A folder as `pip install -e` and `pytest` take it: a bare word would be looked up in the package index."""
    text = folder.as_posix()
    text = text if folder.is_absolute() or text.startswith(".") else f"./{text}"
    return f"'{text}'" if re.search(r"[^\w./~+-]", text) else text


# --- names ------------------------------------------------------------------------------------------------------------------------------------------


def class_name_of(name: str) -> str:
    """The class that a distribution's name suggests: flowact-last-frames is LastFrames."""
    words = [word for word in re.split(r"[^a-zA-Z0-9]+", name) if word]
    words = words[1:] if len(words) > 1 and words[0].lower() == "flowact" else words
    return "".join(word[0].upper() + word[1:] for word in words)


def module_of(name: str) -> str:
    """The module of a distribution.

    Raises:
        UserError: the name is no distribution name, gives no module name, or its module is there already.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a distribution: letters, digits, '-', '_' and '.', with a letter or digit at both ends")
    module = re.sub(r"[-_.]+", "_", name).lower()
    if not module.isidentifier() or keyword.iskeyword(module):
        raise UserError(f"{name!r} gives the module '{module}', which Python cannot import; begin with a letter, such as flowact-{name.lower()}")
    spec = importlib.util.find_spec(module)
    if spec is not None and spec.origin is not None:  # without one it is a mere folder, such as of an earlier try
        raise UserError(f"there is a module '{module}' already, which {name!r} would hide; choose another name, such as flowact-my-{name.lower()}")
    return module


def check_kind(kind: str) -> None:
    """Refuse a kind that has no template.

    Raises:
        UserError: no such kind, or one that is too large for a template.
    """
    if kind not in registry.KINDS:
        raise UserError(f"--kind {kind}: there is no such kind of component.{did_you_mean(kind, KINDS)}")
    if kind not in KINDS:
        raise UserError(f"--kind {kind}: there is a template for {', '.join(KINDS)}; for {kind}, read {PAGE} and copy a folder of plugins/")


def check_class_name(class_name: str) -> None:
    """Refuse a name that no class can have, and one that a recipe would not understand.

    Raises:
        UserError: not a class name in ASCII with a capital first, or taken.
    """
    if not (class_name.isascii() and class_name.isidentifier() and class_name[:1].isupper()):
        raise UserError(f"'{class_name}' is no name of a class: letters and digits, a capital letter first; give one with --class")
    if hasattr(builtins, class_name):
        raise UserError(f"'{class_name}' is a name of Python itself; give another with --class")
    for component in registry.components():
        if component.name == class_name:
            raise UserError(f"'{class_name}' is taken: {component.origin} registers it ({component.kind}); give another name with --class")


def check_no_clash(class_name: str, source: str) -> None:
    """Refuse the name of something that the module needs beside its class.

    Raises:
        UserError: it imports or defines that name too.
    """
    nodes = ast.parse(source).body
    names = [alias.asname or alias.name for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names]
    names += [node.name for node in nodes if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    names += [target.id for node in nodes if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)]
    if names.count(class_name) > 1:
        raise UserError(f"'{class_name}' is the name of something that the component is made of; give another with --class")

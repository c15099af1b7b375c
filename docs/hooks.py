"""What the site shows beyond the files of docs/: pages of plugins, the changelog, and the reference, from code that is read and never run.

MkDocs calls the `on_*` functions. Pages stay readable where they lie: their links are those of the repository, and become links of the site here.
"""

from __future__ import annotations

import ast
import posixpath
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # tests read this file where MkDocs is not installed
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: packages whose public names others rely on, in reading order
PACKAGES = (
    *("flowact.models", "flowact.memory", "flowact.conditioning", "flowact.schedulers", "flowact.autoencoders", "flowact.planning"),
    *("flowact.sampling", "flowact.stages", "flowact.strategies", "flowact.data", "flowact.callbacks", "flowact.characters"),
    *("flowact.writers", "flowact.evaluation", "flowact.budget", "flowact.serving", "flowact.testing", "data_tools.steps"),
)
#: single modules that are public as well
MODULES = ("flowact.types", "flowact.errors", "flowact.recipe", "flowact.registry", "flowact.checkpoints", "flowact.sampling.pipeline")
GROUP = "flowact."
INDEX = "reference/index.md"
FENCED = re.compile(r"(^ {0,3}```.*?^ {0,3}```\s*?$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Registered:
    """A component as a pyproject.toml registers it."""

    kind: str
    name: str
    path: str
    distribution: str


def outside() -> dict[str, str]:
    """Pages that lie outside docs/: path in the repository -> path in the site."""
    pages = {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "benchmarks/README.md": "benchmarks.md",
        "plugins/README.md": "shipped/index.md",
    }
    for page in sorted((ROOT / "plugins").glob("*/README.md")):
        pages[page.relative_to(ROOT).as_posix()] = f"shipped/{page.parent.name}.md"
    return pages


def registered() -> list[Registered]:
    """Every component of FlowAct and of the plugins in this repository, by kind and name."""
    found = []
    for project in [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]:
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        for group, points in table.get("entry-points", {}).items():
            if group.startswith(GROUP):
                found += [Registered(group.removeprefix(GROUP), name, path.replace(":", "."), table["name"]) for name, path in points.items()]
    return sorted(found, key=lambda component: (component.kind, component.name))


def public_names(package: str) -> list[str]:
    """The names in `__all__` of a package or module; where there is none, the classes and functions without an underscore."""
    base = ROOT / package.replace(".", "/")
    tree = ast.parse((base / "__init__.py" if base.is_dir() else base.with_suffix(".py")).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")]


def docstring(path: str) -> str:
    """The docstring of a class or package alone, without its name, which the page has written above it."""
    return f"::: {path}\n    options: {{show_root_heading: false, show_root_toc_entry: false, members: []}}\n"


def components_page(kind: str, components: list[Registered]) -> str:
    """Every registered class of a kind, with its arguments."""
    page = f"# {kind}\n\nWhat `flowact list {kind}` prints; `flowact describe NAME` shows the same in a terminal.\n"
    for component in components:
        page += f"\n## {component.name} {{ #{component.name} }}\n\n"
        if component.distribution != "flowact":
            page += f"From [{component.distribution}](../shipped/{component.distribution}.md).\n\n"
        page += docstring(component.path)
    return page


def package_page(package: str, components: list[Registered]) -> str:
    """The public names of a package. Those that are components are links to the pages of their kinds."""
    kinds = {component.name: component.kind for component in components if component.distribution == "flowact"}
    names = public_names(package)
    links = [f"[{name}](components_{kinds[name]}.md#{name})" for name in names if name in kinds]
    page = f"# {package}\n\n{docstring(package)}\n" + (f"Components: {', '.join(links)}.\n" if links else "")
    return page + "".join(f"\n::: {package}.{name}\n" for name in names if name not in kinds)


def tables(components: list[Registered]) -> str:
    """What the first page of the reference ends with: every component, and the public names of every package."""
    lines = ["", "## Components", "", "| kind | components |", "|---|---|"]
    for kind in sorted({component.kind for component in components}):
        links = ", ".join(f"[{c.name}](components_{kind}.md#{c.name})" for c in components if c.kind == kind)
        lines.append(f"| [{kind}](components_{kind}.md) | {links} |")
    lines += ["", "## Packages", "", "For those who write Python.", "", "| package | public names |", "|---|---|"]
    lines += [f"| [{package}]({package}.md) | {', '.join(f'`{name}`' for name in public_names(package))} |" for package in (*PACKAGES, *MODULES)]
    return "\n".join(lines) + "\n"


def reference() -> dict[str, str]:
    """Pages of the reference: path in the site -> Markdown."""
    components = registered()
    pages = {}
    for kind in sorted({component.kind for component in components}):
        pages[f"reference/components_{kind}.md"] = components_page(kind, [component for component in components if component.kind == kind])
    for package in (*PACKAGES, *MODULES):
        pages[f"reference/{package}.md"] = package_page(package, components)
    return pages


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let the reference find the sources of plugins."""
    handler = config.plugins["mkdocstrings"].config["handlers"]["python"]
    handler["paths"] = [str(ROOT), *(str(source) for source in sorted((ROOT / "plugins").glob("*/src")))]
    return config


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]  # before mkdocstrings reads them


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold, and list them where the navigation says `<reference>` and `<shipped>`."""
    from mkdocs.structure.files import File

    written = reference()
    for path, place in outside().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    for place, content in written.items():
        files.append(File.generated(config, place, content=content))
    kinds = [place for place in written if "components_" in place]
    packages = [place for place in written if "." in Path(place).stem]
    listed: dict[str, list[Any]] = {
        "shipped": [place for place in outside().values() if place.startswith("shipped/")],
        "reference": [
            INDEX,
            {"Components": [{Path(place).stem.removeprefix("components_"): place} for place in kinds]},
            {"Packages": [{Path(place).stem: place} for place in packages]},
        ],
    }
    config.nav = filled(config.nav, listed)
    return files


def filled(nav: Any, listed: dict[str, list[Any]]) -> Any:
    """The navigation with placeholders `<name>` replaced by lists of pages."""
    if isinstance(nav, list):
        return [filled(entry, listed) for entry in nav]
    if isinstance(nav, dict):
        return {title: filled(entry, listed) for title, entry in nav.items()}
    found = re.fullmatch(r"<(\w+)>", nav)
    return listed[found[1]] if found else nav


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of the repository into links of the site; what the site does not hold keeps its words without a link."""
    if page.file.src_uri == INDEX:
        markdown += tables(registered())
    elif page.file.src_uri.startswith("reference/"):
        return markdown
    places = outside()
    home = next((path for path, place in places.items() if place == page.file.src_uri), f"docs/{page.file.src_uri}")

    def text(part: str) -> str:
        return part if FENCED.fullmatch(part) else LINK.sub(lambda link: moved(link, home, page.file.src_uri, places), part)

    return "".join(text(part) for part in FENCED.split(markdown))


def title(path: str) -> str:
    """The first heading of a page of the repository."""
    found = re.search(r"^# (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else path


def moved(link: re.Match[str], home: str, here: str, places: dict[str, str]) -> str:
    """A link of the page at `home` in the repository, as one of the page `here` in the site."""
    picture, text, address = link.groups()
    target, hash_, anchor = address.partition("#")
    if not target or re.match(r"[a-z]+:", target):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(home), target))
    if (ROOT / path).is_dir() and (ROOT / path / "README.md").is_file():
        path += "/README.md"
    place = places.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if place is None and path == "README.md":
        place = "index.md"
    if place is None:
        return text if (ROOT / path).exists() and not picture else link[0]
    if text.endswith(".md") and (ROOT / path).is_file():  # a path tells a reader of files; a reader of the site is told the page's title
        text = title(path)
    return f"{picture}[{text}]({posixpath.relpath(place, posixpath.dirname(here) or '.')}{hash_}{anchor})"

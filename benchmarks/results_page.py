"""docs/results.md, of which each command owns some sections."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results.md"


def replace_sections(sections: dict[str, str], introduction: str | None = None) -> None:
    """Replace or append the sections with these headings (without their ##); the others stay as they are."""
    first, *rest = re.split(r"^## ", PAGE.read_text(encoding="utf-8") if PAGE.exists() else "# Results\n\n", flags=re.MULTILINE)
    found = dict(part.split("\n", 1) for part in rest)
    found |= {heading: f"\n{text.strip()}\n\n" for heading, text in sections.items()}
    start = first if introduction is None else f"# Results\n\n{introduction.strip()}\n\n"
    PAGE.write_text((start + "".join(f"## {heading}\n{text}" for heading, text in found.items())).rstrip() + "\n", encoding="utf-8")

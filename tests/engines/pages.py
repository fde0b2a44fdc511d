"""What the pages of docs/engines say: their blocks, by the name in the comment above each."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "docs" / "engines"
_BLOCK = re.compile(
    r"(?:<!-- (?P<name>[^>]*?) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL
)


def blocks(page: str, kind: str) -> dict[str, str]:
    """Return a page's blocks of one kind; each must have a name of its own."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = [(m["name"], m["text"].strip()) for m in _BLOCK.finditer(text) if m["kind"] == kind]
    named = dict(found)
    assert len(named) == len(found), f"{page}: two {kind} blocks have the same name"
    assert None not in named, f"{page}: a {kind} block has no name"
    return named


def statements(text: str) -> list[str]:
    """Return the statements of a block that has several."""
    return [statement.strip() for statement in text.split(";") if statement.strip()]

"""What the site of docs/ needs beyond MkDocs' settings: links to files outside docs/."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)")
"""A Markdown link, not an image, that leaves docs/: its text, and a path from the top of the repository."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links that leave docs/ to the repository that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return outside(markdown, project.get("urls", {}).get("Repository"))


def outside(markdown: str, repository: str | None) -> str:
    """Return a page whose links that leave docs/ lead to a repository; without one, their text stays."""
    return OUTSIDE.sub(rf"[\1]({repository}/blob/main/\2)" if repository else r"\1", markdown)

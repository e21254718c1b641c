"""What the site of docs/ needs beyond MkDocs' settings: links to files outside docs/, and Mermaid without a network."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import normalize_url

ROOT = Path(__file__).parents[2]
MERMAID = "mkdocs/mermaid.js"
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)")
"""A Markdown link, not an image, that leaves docs/: its text, and a path from the top of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add Mermaid's script, which the theme would otherwise take from a public server."""
    script = distribution("mermaidx").locate_file("mermaidx/assets/mermaid.js")
    files.append(File.generated(config, MERMAID, abs_src_path=str(script)))


def on_page_content(html: str, page: Page, **_: object) -> str:
    """Load Mermaid, three megabytes, on pages with diagrams only."""
    script = f'<script src="{normalize_url(MERMAID, page)}"></script>'
    return html + script if '<pre class="mermaid">' in html else html


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links that leave docs/ to the repository that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return outside(markdown, project.get("urls", {}).get("Repository"))


def outside(markdown: str, repository: str | None) -> str:
    """Return a page whose links that leave docs/ lead to a repository; without one, their text stays."""
    return OUTSIDE.sub(rf"[\1]({repository}/blob/main/\2)" if repository else r"\1", markdown)

"""What the site of docs/ needs beyond MkDocs' settings: links to files outside docs/, and pictures that are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./([^)\s]+)\)")
"""A Markdown link, not an image, that leaves docs/: its text, and a path from the top of the repository."""
PICTURE = re.compile(r"(!\[[^\]]*\]\()\.\./([^)\s]+\))")
"""An image that is outside docs/: what comes before its path from the top of the repository, and that path."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures that pages show from outside docs/, under their path from the top of the repository."""
    for page in list(files.documentation_pages()):
        for _, path in PICTURE.findall(page.content_string):
            name = path.removesuffix(")")
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links that leave docs/ to the repository that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return PICTURE.sub(r"\1\2", outside(markdown, project.get("urls", {}).get("Repository")))


def outside(markdown: str, repository: str | None) -> str:
    """Return a page whose links that leave docs/ lead to a repository; without one, their text stays."""
    return OUTSIDE.sub(rf"[\1]({repository}/blob/main/\2)" if repository else r"\1", markdown)

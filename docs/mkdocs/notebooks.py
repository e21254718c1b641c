"""Notebooks as pages of the site of docs/."""

from __future__ import annotations

from collections.abc import Iterator

import nbformat
from mkdocs.structure.files import File, Files


class Notebook(File):
    """A notebook that MkDocs treats as a Markdown page."""

    def is_documentation_page(self) -> bool:
        """Return that it is a page of its own."""
        return True

    @property
    def content_string(self) -> str:
        """The notebook as Markdown."""
        return "\n\n".join(as_markdown(nbformat.reads(super().content_string, as_version=4)))


def on_files(files: Files, **_: object) -> Files:
    """Make pages of notebooks."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls))
    return files


def as_markdown(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Yield the blocks of a page: text, code, and what the code printed and drew."""
    for cell in notebook.cells:
        yield fenced("python", cell.source) if cell.cell_type == "code" else cell.source
        for output in cell.get("outputs", []):
            data = {"text/plain": output.get("text", ""), **output.get("data", {})}
            image = data.get("image/png")
            yield f"![](data:image/png;base64,{image.strip()})" if image else fenced("text", data["text/plain"])


def fenced(language: str, text: str) -> str:
    """Return a block of code."""
    return f"````{language}\n{text.rstrip()}\n````"

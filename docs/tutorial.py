"""Run docs/tutorial.ipynb and keep in it what its cells print and draw: ``make tutorial``."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
from matplotlib import pyplot as plt
from nbformat import NotebookNode
from nbformat.v4 import new_output

NOTEBOOK = Path(__file__).with_suffix(".ipynb")


def run(notebook: NotebookNode) -> None:
    """Run the code cells in one namespace, as Jupyter does, and put what they show into them."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = evaluate(cell.source, f"cell {number}", namespace)
        cell.execution_count = number
        cell.outputs = list(outputs(printed.getvalue(), value))


def evaluate(source: str, name: str, namespace: dict[str, Any]) -> Any:
    """Run a cell; return the value of its last line if that is an expression."""
    *body, last = ast.parse(source).body
    if not isinstance(last, ast.Expr):
        body.append(last)
    exec(compile(ast.Module(body, []), name, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), name, "eval"), namespace) if last not in body else None


def outputs(printed: str, value: Any) -> Iterator[NotebookNode]:
    """Yield a cell's outputs: what it printed, its value, and its figures, which are closed."""
    if printed:
        yield new_output("stream", name="stdout", text=printed)
    if hasattr(value, "_repr_png_"):  # what Jupyter asks of Pillow's images
        yield picture(value._repr_png_())
    elif value is not None:
        yield new_output("display_data", {"text/plain": repr(value)})
    for figure in map(plt.figure, plt.get_fignums()):
        figure.savefig(png := io.BytesIO(), bbox_inches="tight")
        yield picture(png.getvalue())
    plt.close("all")


def picture(png: bytes) -> NotebookNode:
    """Return an image as an output."""
    return new_output("display_data", {"image/png": base64.b64encode(png).decode()})


if __name__ == "__main__":
    matplotlib.use("agg")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with contextlib.chdir(NOTEBOOK.parent):
        run(notebook)
    nbformat.write(notebook, NOTEBOOK)

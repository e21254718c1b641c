"""Writes the report: tables, then figures, then report.html and, last, REPORT.md."""

import base64
import io
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from vpd.config.params import Params
from vpd.config.paths import WEIGHTS
from vpd.config.tables import FigureSpec
from vpd.report.cells import cells_csv, csv_text
from vpd.report.claims import Line, claims_csv
from vpd.report.collect import costs_csv
from vpd.report.evidence import evidence_csv, values_csv
from vpd.report.figures import dots_figure, empty_figure, learning_figure, loss_figure, save, styled, trend_figure
from vpd.report.provenance import COLUMNS, backbones_csv
from vpd.report.report import Report, learning_curves
from vpd.report.sections import build_view
from vpd.report.tables import by_row, table_csv, table_view
from vpd.utils.files import atomic_folder, write_text

PAGES = ("report.html", "REPORT.md")  # also the templates; REPORT.md, which the orchestrators wait for, comes last
LARGE, WIDEST = 120_000, 1600  # bytes from which a picture is packed again; pixels to which a wider one is scaled


def write_report(
    params: Params,
    results: Path,
    pretraining: Path,
    previews: Mapping[str, Path],
    out: Path,
    *,
    costs: Path | None = None,
    costs_scale: str | None = None,
) -> None:
    """Write REPORT.md, report.html, ``tables/`` and ``figures/`` to ``out``; mark what has not been run.

    Args:
        params: the matrix at the scale of the results.
        results: folder with metrics, history, panels, specs, timing, backbones and released.
        pretraining: output folder of the small Stable Diffusion.
        previews: dataset -> preview picture.
        costs: file of ``vpd cost --out``.
        costs_scale: scale whose networks the costs are of; by default that of ``params``.
    """
    report = Report(params, results, pretraining, previews, out, costs, costs_scale)
    tables = _table_texts(report)  # a damaged input raises here, before anything old is removed
    for name in PAGES:
        (out / name).unlink(missing_ok=True)
    with atomic_folder(out / "tables") as folder:
        for name, content in tables.items():
            write_text(folder / name, content)
    with atomic_folder(out / "figures") as folder, styled():
        _write_figures(report, folder)
    view = build_view(report)
    for name in PAGES:
        write_text(out / name, _environment().get_template(name).render(view=view))


def _table_texts(report: Report) -> dict[str, str]:
    """Format every table of the paper as markdown and CSV, and the tables beside them, by file name."""
    macros, texts = _environment().get_template("macros.md").module, {}
    for name, caption in report.captions.items():
        source, rows = report.reported[name], by_row(report.cells, name)
        texts[f"{name}.md"] = macros.paper_table(table_view(name, caption, source, rows))  # type: ignore[attr-defined]
        texts[f"{name}.csv"] = table_csv(source, rows)
    if report.evidence is not None:
        texts["evidence.csv"] = evidence_csv(report.evidence)
    return texts | {
        "values.csv": values_csv(report.frame),
        "cells.csv": cells_csv(report.cells),
        "claims.csv": claims_csv({"paper": report.claims, "beyond the paper": report.answers}),
        "costs.csv": costs_csv(report.row_costs),
        "backbones.csv": backbones_csv(report.backbones),
        "provenance.csv": csv_text(COLUMNS, (run.values() for runs in report.runs.values() for run in runs)),
    }


def _write_figures(report: Report, folder: Path) -> None:
    """Draw every figure as SVG and PNG, and copy pictures of other stages, so that the report carries them."""
    for name, figure in report.params.figures.items():
        if figure.drawn:
            save(_draw(report, name, figure), folder, name)
    for task, names in report.tasks.items():
        histories = {name: report.histories[name] for name in names if name in report.histories}
        save(loss_figure(histories, "training step", share=True), folder, f"training-{task}")
    pictures = {f"data-{name}": path for name, path in report.previews.items()}
    if report.params.pretraining.milestones:
        losses = report.pretraining_losses
        groups = () if losses is None else losses.assign(seed=0).groupby("phase", sort=False)
        phases = {str(phase): frame for phase, frame in groups}
        save(loss_figure(phases, "step", share=False), folder, "pretraining-loss")
        pictures["pretraining-samples"] = report.pretraining / "samples.png"
    elif report.params.block.shipped:
        pictures["pretraining-samples"] = WEIGHTS / report.params.block.shipped / "samples.png"
    for name, path in pictures.items():
        if path.is_file():
            shutil.copyfile(path, folder / f"{name}.png")
        else:
            empty_figure().savefig(folder / f"{name}.png", metadata={"Software": None})


def _draw(report: Report, name: str, figure: FigureSpec) -> Figure:
    if figure.points:
        return trend_figure(report.points[name], report.params.comparable)
    if figure.curves:
        return learning_figure(*learning_curves(report, figure.curves))
    table = figure.table or ""
    own = [cell for cell in report.cells if cell.table == table and cell.provenance != "quoted"]
    columns = {name: [cell for cell in own if cell.column == name] for name in report.params.tables[table].columns}
    columns = {name: cells for name, cells in columns.items() if cells}
    return dots_figure(columns, report.reported[table], report.params.comparable)


@cache
def _environment() -> Environment:
    """The templates in ``page/``: html escapes all that it prints, and a misspelt name is an error."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=lambda name: not (name or "").endswith(".md"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"cell": _markdown_cell, "code": _markdown_code, "prose": _html_prose, "bar": _bar, "data_uri": data_uri}
    templates.filters |= filters
    return templates


def _markdown_cell(text: str) -> str:
    """Escape a text for a cell of a markdown table: no end of the cell or line, and no HTML."""
    return " ".join(text.splitlines()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_code(text: str) -> str:
    """Format an id as code in a cell of a markdown table, where only ``|`` has a meaning."""
    return f"`{' '.join(text.splitlines())}`".replace("|", "\\|")


def _html_prose(text: str) -> Markup:
    """Escape prose and turn its ```code``` into HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _bar(line: Line) -> dict[str, float | None]:
    """Place a comparison on a line from 0 to 100, where 50 is no difference and the right what was claimed."""
    values = (line.difference.mean, *(line.interval or ())) if line.difference else (0.0,)
    widest = max(map(abs, values))
    # Farther away, the paper's difference would squeeze the measured range.
    near = line.paper is not None and abs(line.paper) <= 2 * widest
    scale = line.sign * 46 / (max(widest, abs(line.paper or 0.0) if near else 0.0) or 1.0)
    at, *ends = (round(50 + scale * value, 2) for value in values)
    low, high = sorted(ends) or (None, None)
    return {"at": at, "low": low, "high": high, "paper": round(50 + scale * (line.paper or 0.0), 2) if near else None}


def data_uri(png: Path) -> str:
    """Pack a picture into the page: its SVG if there is one; a large PNG becomes WebP, at most ``WIDEST`` pixels wide."""
    if (vector := png.with_suffix(".svg")).is_file():
        return f"data:image/svg+xml;base64,{base64.b64encode(vector.read_bytes()).decode('ascii')}"
    content, kind = png.read_bytes(), "png"
    if len(content) > LARGE:
        image, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
        image.thumbnail((WIDEST, image.height), Image.Resampling.LANCZOS)
        image.save(buffer, "webp", quality=82, method=4)
        content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"

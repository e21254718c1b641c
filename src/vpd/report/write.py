"""Writes the report: tables, then figures, then report.html and, last, REPORT.md."""

import base64
import hashlib
import io
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from vpd.config.params import Params
from vpd.config.tables import FigureSpec
from vpd.datasets.images import read_image
from vpd.measures.results import PICTURE
from vpd.report import markdown
from vpd.report.cells import Cell, cells_csv, csv_text, number, read_cells
from vpd.report.claims import Line, claims_csv
from vpd.report.collect import costs_csv
from vpd.report.evidence import evidence_csv, values_csv
from vpd.report.figures import dots_figure, empty_figure, learning_figure, loss_figure, save, styled, trend_figure
from vpd.report.provenance import COLUMNS, backbones_csv
from vpd.report.report import Report, learning_curves
from vpd.report.sections import build_view
from vpd.report.tables import by_row, own_columns, table_csv, table_view
from vpd.utils.errors import UserError, printable
from vpd.utils.files import atomic_folder, exclusive, restore, write_text

PAGES = ("report.html", "REPORT.md")  # also the templates; REPORT.md, which the orchestrators wait for, comes last
TABLES, FIGURES = "tables", "figures"
LARGE, WIDEST = 120_000, 1600  # bytes from which a picture is packed again; pixels to which a wider one is scaled
THUMBNAIL = 640  # pixels of a picture in a drawer, which is not wider


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
    with exclusive(out, "report"):
        report = Report(params, results, pretraining, previews, out, costs, costs_scale)
        tables = _table_texts(report)  # a damaged input raises here, before anything old is removed
        restore(out / TABLES)
        restore(out / FIGURES)
        _check_old(out, report.cells)
        if report.outdated:
            listed = ", ".join(report.outdated)
            print(f"vpd: not of the settings in {params.source}: {listed}; run them again", file=sys.stderr, flush=True)
        for name in PAGES:
            (out / name).unlink(missing_ok=True)
        with atomic_folder(out / TABLES, own=True) as folder:
            for name, content in tables.items():
                write_text(folder / name, content)
        with atomic_folder(out / FIGURES, own=True) as folder, styled():
            _write_figures(report, folder)
        view = build_view(report)
        for name in PAGES:
            write_text(out / name, _environment(name.rpartition(".")[2]).get_template(name).render(view=view))


def _check_old(out: Path, cells: Sequence[Cell]) -> None:
    """UserError if ``out`` holds files of others under the report's names, or a report with numbers that this one lacks."""
    own = (out / TABLES / "provenance.csv").is_file()
    for path in (out / name for name in (*PAGES, TABLES, FIGURES)):
        if not own and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} is not of a report that vpd wrote, and would be replaced; name another --out")
    if not (out / TABLES / "cells.csv").is_file():
        return
    old = read_cells(out / TABLES / "cells.csv")
    recorded = set(old.index[old["provenance"] == "measured"])
    if lost := [key for cell in cells if not cell.values and (key := (cell.table, cell.row, cell.column)) in recorded]:
        raise UserError(
            f"{out} has {len(lost)} measured numbers that are not here any more, first {', '.join(lost[0])}; evaluate them "
            f"again, name another --out, or remove {out / TABLES} first"
        )


def _table_texts(report: Report) -> dict[str, str]:
    """Format every table of the paper as markdown and CSV, and the tables beside them, by file name."""
    macros, texts = _environment("md").get_template("macros.md").module, {}
    for name, caption in report.captions.items():
        source, rows = report.reported[name], by_row(report.cells, name)
        texts[f"{name}.md"] = macros.paper_table(table_view(name, caption, source, rows))  # type: ignore[attr-defined]
        texts[f"{name}.csv"] = table_csv(source, rows)
    for name, points in report.points.items():
        lines = (
            (cell.row, steps, *map(number, (cell.mean, cell.sd)), cell.metric) for steps, cell in points if cell.values
        )
        texts[f"{name}.csv"] = csv_text(("point", "pretraining", "value", "sd", "metric"), lines)
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
            _save(report, _draw(report, name, figure), folder, name)
    for task, names in report.tasks.items():
        histories = {name: report.histories[name] for name in names if name in report.histories}
        _save(report, loss_figure(histories, "training step", share=True), folder, f"training-{task}")
    pictures = {f"data-{name}": path for name, path in report.previews.items()}
    if report.params.pretraining.milestones:
        losses = report.pretraining_losses
        groups = () if losses is None else losses.assign(seed=0).groupby("phase", sort=False)
        phases = {str(phase): frame for phase, frame in groups}
        _save(report, loss_figure(phases, "step", share=False), folder, "pretraining-loss")
    if report.measured is not None:
        pictures["pretraining-samples"] = report.measures / PICTURE
    for name, path in pictures.items():
        if path.is_file():
            shutil.copyfile(path, folder / f"{name}.png")
        elif not _keep(report, folder, name):
            empty_figure().savefig(folder / f"{name}.png", metadata={"Software": None})


def _save(report: Report, figure: Figure | None, folder: Path, name: str) -> None:
    """Write a figure; where there is nothing to draw, keep the recorded one, or else say that it is not run yet."""
    if figure is not None or not _keep(report, folder, name):
        save(figure or empty_figure(), folder, name)


def _keep(report: Report, folder: Path, name: str) -> bool:
    """Copy a figure of the last report, if it has one: a placeholder never replaces what is recorded."""
    recorded = [path for kind in ("svg", "png") if (path := report.out / FIGURES / f"{name}.{kind}").is_file()]
    for path in recorded:
        shutil.copyfile(path, folder / path.name)
    return bool(recorded)


def _draw(report: Report, name: str, figure: FigureSpec) -> Figure | None:
    if figure.points:
        return trend_figure(report.points[name], report.params.comparable)
    if figure.curves:
        return learning_figure(*learning_curves(report, figure.curves))
    table = figure.table or ""
    columns = own_columns(report.cells, table, report.params.tables[table])
    return dots_figure(columns, report.reported[table], report.params.comparable)


@cache
def _environment(kind: str) -> Environment:
    """The templates in ``page/``, for ``md`` or ``html``: whatever they print is escaped, and a misspelt name is an error."""
    show, prose = (markdown.escape, markdown.prose) if kind == "md" else (_html, _html_prose)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        finalize=show,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals["thumbnail"] = THUMBNAIL
    templates.filters |= {
        "code": markdown.code,
        "prose": prose,
        "bar": _bar,
        "data_uri": data_uri,
        "sha256_source": _source,
        "multiline": _multiline,
    }
    return templates


def _html(text: object) -> Markup:
    """Escape a text for HTML."""
    return text if isinstance(text, Markup) else escape(printable(text))


def _html_prose(text: str) -> Markup:
    """Escape prose and turn its ```code``` into HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(_html(text))))


def _multiline(text: str) -> Markup:
    """Escape a text of several lines for HTML."""
    return Markup("\n").join(map(_html, text.split("\n")))


def _source(content: str) -> Markup:
    """Name an inline script or style for a Content-Security-Policy, which then refuses all others."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'")


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


def data_uri(png: Path, widest: int = WIDEST) -> str:
    """Pack a picture into the page: its SVG if there is one; a large PNG becomes WebP, at most ``widest`` pixels wide."""
    if (vector := png.with_suffix(".svg")).is_file():
        return f"data:image/svg+xml;base64,{base64.b64encode(vector.read_bytes()).decode('ascii')}"
    content, kind = png.read_bytes(), "png"
    if len(content) > LARGE or widest < WIDEST:
        image, buffer = Image.fromarray(read_image(png)), io.BytesIO()
        image.thumbnail((widest, image.height), Image.Resampling.LANCZOS)
        image.save(buffer, "webp", quality=82, method=4)
        content, kind = buffer.getvalue(), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"

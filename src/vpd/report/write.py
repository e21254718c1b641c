"""Writes the report: tables, then figures, then report.html and, last, REPORT.md."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.config.table_checks import PAGES, FigureSpec
from vpd.report.backbones import backbones_csv
from vpd.report.cells import write_cells
from vpd.report.claims import claims_csv
from vpd.report.collect import read_curves
from vpd.report.context import Report
from vpd.report.costs import costs_csv
from vpd.report.curves import pretraining_figure, training_figure
from vpd.report.figures import dots_figure, trend_figure
from vpd.report.html import page
from vpd.report.learning import learning_figure
from vpd.report.provenance import provenance_csv
from vpd.report.sections import text
from vpd.report.style import empty_figure, save, styled
from vpd.report.tables import csv_table, markdown_table
from vpd.utils.files import atomic_folder, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vpd.config.params import Params


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
    """Write REPORT.md, report.html, ``tables/`` and ``figures/`` under ``out``.

    ``results`` holds metrics, history, panels, specs and timing; ``previews`` maps datasets to their contact sheets.
    ``costs`` is a file of ``vpd cost --out`` for the networks of ``costs_scale`` (by default the scale of ``params``).
    What has not been run is reported as such; UserError only if no metrics exist at all, or a file is damaged.
    """
    report = Report(params, results, pretraining, previews, out, costs, costs_scale)
    tables = table_texts(report)  # whatever is damaged shows before anything old is removed
    for name in PAGES:
        (out / name).unlink(missing_ok=True)
    with atomic_folder(out / "tables") as folder:
        for name, content in tables.items():
            write_text(folder / name, content)
        write_cells(report.cells, folder / "cells.csv")
    with atomic_folder(out / "figures") as folder, styled():
        write_figures(report, folder)
        copy_pictures(report, folder)
    write_text(out / "report.html", page(report))
    write_text(out / "REPORT.md", text(report))


def table_texts(report: Report) -> dict[str, str]:
    """Every table of the paper as markdown and CSV, and the tables beside them, by file name; cells.csv apart."""
    texts = {}
    for name in report.tables:
        table, source = report.params.tables.get(name), report.reported[name]
        texts[f"{name}.md"] = markdown_table(name, table, source, report.cells)
        texts[f"{name}.csv"] = csv_table(name, source, report.cells)
    texts["claims.csv"] = claims_csv({"paper": report.claims, "beyond the paper": report.answers})
    texts["costs.csv"] = costs_csv(report.row_costs)
    texts["backbones.csv"] = backbones_csv(report.backbones)
    texts["provenance.csv"] = provenance_csv(report.sources)
    return texts


def write_figures(report: Report, folder: Path) -> None:
    """Every figure that the report draws, as SVG and PNG."""
    for name, figure in report.params.figures.items():
        if figure.drawn:
            save(draw(report, name, figure), folder, name)
    for task, names in report.tasks.items():
        histories = {name: report.histories[name] for name in names if name in report.histories}
        save(training_figure(histories), folder, f"training-{task}")
    if report.params.pretraining.milestones:
        history = read_curves(report.pretraining / "history.csv", ("phase", "step", "loss"))
        save(pretraining_figure(history), folder, "pretraining-loss")


def draw(report: Report, name: str, figure: FigureSpec) -> Figure:
    """One figure of params.yaml."""
    if figure.points:
        return trend_figure(report.points[name], report.params.comparable)
    if figure.curves:
        return learning_figure(*report.curves(figure.curves))
    columns = report.dots(figure.table)
    decimals = {column: report.reported[figure.table].decimals(column) for column in columns}
    return dots_figure(columns, decimals, report.params.comparable)


def copy_pictures(report: Report, folder: Path) -> None:
    """Bring pictures that other stages drew outside the results here, so that the report carries them."""
    pictures = {f"data-{name}.png": path for name, path in report.previews.items()}
    if report.params.pretraining.milestones:
        pictures["pretraining-samples.png"] = report.pretraining / "samples.png"
    for name, path in pictures.items():
        if path.is_file():
            shutil.copyfile(path, folder / name)
        else:
            empty_figure("not run yet").savefig(folder / name, metadata={"Software": None})

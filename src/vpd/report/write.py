"""Writes the report: tables, then figures, then REPORT.md last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vpd.files import atomic_folder, read_json, write_text
from vpd.report import markdown
from vpd.report.cells import Cell, all_cells, write_cells
from vpd.report.claims import table_findings, trend_findings
from vpd.report.collect import collect, collect_released, read_curves, read_timings
from vpd.report.curves import pretraining_figure, training_figure
from vpd.report.figures import dots_figure, pretraining_steps, trend_figure
from vpd.report.layout import FigureSpec, table_names, tasks
from vpd.report.names import ordinal
from vpd.report.reported import ReportedTable, load_claims, load_reported
from vpd.report.style import empty_figure, save, styled
from vpd.report.tables import csv_table, markdown_table

if TYPE_CHECKING:
    from vpd.params import Params


@dataclass(frozen=True)
class Report:
    """Everything that the sections draw from."""

    params: Params
    results: Path
    pretraining: Path
    previews: Mapping[str, Path]
    out: Path
    reported: Mapping[str, ReportedTable]
    cells: Sequence[Cell]

    @cached_property
    def links(self) -> markdown.Links:
        """Links from REPORT.md."""
        return markdown.Links(self.out)

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """Experiments by task."""
        return tasks(self.params)

    def points(self, name: str, figure: FigureSpec) -> list[tuple[int, Cell]]:
        """(pre-training steps, cell) of a trend figure's points."""
        steps = pretraining_steps(self.params, name, figure)
        return [(steps[cell.row], cell) for cell in self.cells if cell.table == name and cell.row in steps]

    def decimals(self, name: str) -> int:
        """Decimals of a figure's sentences: those of the paper where it prints a number."""
        source = self.reported.get(name)
        return source.decimals(source.columns[0]) if source else 2


def write_report(params: Params, results: Path, pretraining: Path, previews: Mapping[str, Path], out: Path) -> None:
    """Write REPORT.md, ``tables/`` and ``figures/`` under ``out``.

    ``results`` holds metrics, history, panels, specs and timing; ``previews`` maps datasets to their contact sheets.
    What has not been run is reported as such; UserError only if no metrics exist at all, or a file is damaged.
    """
    reported = load_reported()
    own = collect(results / "metrics", params.experiments)
    released = collect_released(results / "released", params.released)
    frame = pd.concat([own, released]) if len(released) else own
    cells = all_cells(params, reported, frame)
    report = Report(params, results, pretraining, previews, out, reported, cells)
    (out / "REPORT.md").unlink(missing_ok=True)
    with atomic_folder(out / "tables") as folder:
        write_tables(report, folder)
    with atomic_folder(out / "figures") as folder, styled():
        write_figures(report, folder)
        copy_pictures(report, folder)
    write_text(out / "REPORT.md", text(report))


def write_tables(report: Report, folder: Path) -> None:
    """Every table of the paper as markdown and CSV, and cells.csv."""
    for name in table_names(report.params, report.reported):
        table, source = report.params.tables.get(name), report.reported[name]
        write_text(folder / f"{name}.md", markdown_table(name, table, source, report.cells))
        write_text(folder / f"{name}.csv", csv_table(name, source, report.cells))
    write_cells(report.cells, folder / "cells.csv")


def write_figures(report: Report, folder: Path) -> None:
    """Every figure that the report draws, as SVG and PNG."""
    for name, figure in report.params.figures.items():
        if figure.points:
            save(trend_figure(report.points(name, figure), report.params.comparable), folder, name)
        elif figure.table:
            columns = dot_columns(report, figure.table)
            decimals = {column: report.reported[figure.table].decimals(column) for column in columns}
            save(dots_figure(columns, decimals, report.params.comparable), folder, name)
    for task, experiments in report.tasks.items():
        paths = {name: report.results / "history" / f"{name}.csv" for name in experiments}
        histories = {name: read_curves(path, ("seed", "step", "loss")) for name, path in paths.items()}
        save(
            training_figure({n: frame for n, frame in histories.items() if frame is not None}),
            folder,
            f"training-{task}",
        )
    if report.params.pretraining.milestones:
        history = read_curves(report.pretraining / "history.csv", ("phase", "step", "loss"))
        save(pretraining_figure(history), folder, "pretraining-loss")


def dot_columns(report: Report, table: str) -> dict[str, list[Cell]]:
    """Cells that this project runs, by measured column of a table."""
    columns: dict[str, list[Cell]] = {}
    for cell in report.cells:
        if cell.table == table and cell.provenance != "quoted":
            columns.setdefault(cell.column, []).append(cell)
    return columns


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


def text(report: Report) -> str:
    """REPORT.md."""
    params = report.params
    protocols = sorted({params.resolve(name).protocol for name in params.experiments})
    sections = [
        markdown.summary(params.scale, ", ".join(protocols), params.comparable, report.cells),
        *trends(report),
        contributions(report),
        "## The paper's tables\n",
        *(
            markdown_table(name, params.tables.get(name), report.reported[name], report.cells)
            for name in table_names(params, report.reported)
        ),
        LEGEND,
        *released(report),
        *panels(report),
        training(report),
        *pretraining(report),
        data(report),
        "## Time by stage\n\n" + markdown.times(read_timings(report.results / "timing")),
        "## Where the numbers come from\n\n" + source_table(report),
    ]
    return "\n".join(section for section in sections if section)


LEGEND = (
    "Bold: measured here, mean ± standard deviation over seeds; below it the paper's number and, in brackets, the "
    "difference (measured minus paper). Rows whose source is `quoted` repeat the paper.\n"
)


INTERVALS = (
    "Intervals are Welch's, over seeds. Seeds differ in initialisation and order of the data, not in the data, and with "
    "few seeds an interval is wide: *not settled* means that these runs cannot tell, not that there is no difference.\n"
)


def trends(report: Report) -> list[str]:
    """The question that comes first: does pre-training matter?"""
    sections = []
    for name, figure in report.params.figures.items():
        if figure.points:
            caption = (
                f"{ordinal(name)}: VPD against the pre-training steps of its diffusion model; "
                "mean, standard deviation and seeds"
            )
            found = trend_findings(report.points(name, figure), report.decimals(name))
            picture = report.links.figure(caption, report.out / "figures" / f"{name}.png")
            sections.append(f"## Does pre-training matter?\n\n{picture}\n{markdown.findings(found)}")
    return sections


def contributions(report: Report) -> str:
    """The dot plots, and the paper's comparisons between its own rows."""
    found = markdown.findings(table_findings(load_claims(), report.reported, report.cells))
    pictures = [
        report.links.figure(
            f"{ordinal(figure.table)}: mean, standard deviation and seeds of its rows; the best mean in orange",
            report.out / "figures" / f"{name}.png",
        )
        for name, figure in report.params.figures.items()
        if figure.table
    ]
    return "## What do the prompt, the adapter and the attention maps add?\n\n" + "\n".join(
        [*pictures, found, INTERVALS]
    )


def released(report: Report) -> list[str]:
    """What was found out about the authors' released weights, where the scale measures them."""
    index = report.results / "released" / "index.json"
    facts = read_json(index)["released"] if index.is_file() else {}
    return ["## The authors' released weights\n\n" + markdown.released(facts)] if facts else []


def panels(report: Report) -> list[str]:
    """Figures whose panels the evaluation drew."""
    folder = report.results / "panels"
    return [
        f"## {ordinal(name)}\n\n" + markdown.panels(name, figure, report.links, folder)
        for name, figure in report.params.figures.items()
        if not figure.drawn
    ]


def training(report: Report) -> str:
    """Training curves, a figure per task."""
    caption = "Training loss, {}: seeds thin, their smoothed mean thick, the range of all experiments of the task grey"
    pictures = [
        report.links.figure(caption.format(task), report.out / "figures" / f"training-{task}.png")
        for task in report.tasks
    ]
    return "## Training\n\n" + "\n".join(pictures)


def pretraining(report: Report) -> list[str]:
    """Loss and samples of the small Stable Diffusion, if this scale pre-trains one."""
    if not report.params.pretraining.milestones:
        return []
    folder = report.out / "figures"
    return [
        "## The small Stable Diffusion\n",
        report.links.figure("Loss of each phase of pre-training", folder / "pretraining-loss.png"),
        report.links.image("Images drawn from prompts, one line per milestone", folder / "pretraining-samples.png"),
    ]


def data(report: Report) -> str:
    """Contact sheets of the datasets."""
    folder = report.out / "figures"
    sheets = [report.links.image(f"Samples of `{name}`", folder / f"data-{name}.png") for name in report.previews]
    return "## The data\n\n" + "\n".join(sheets) if sheets else ""


def source_table(report: Report) -> str:
    """Experiments with links to the files behind them."""
    experiments = {name: task for task, names in report.tasks.items() for name in names}
    ordered = {name: experiments[name] for name in report.params.experiments}
    return markdown.sources(ordered, report.cells, report.links, report.results)

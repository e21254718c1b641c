"""Everything that the pages and figures of the report are made from, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vpd.config.params import Params
from vpd.config.reported import ReportedTable, load_claims, load_reported
from vpd.config.tables import FigureSpec, matched_row
from vpd.report.cells import Cell
from vpd.report.claims import Finding, Points, answers, findings
from vpd.report.collect import RowCost, collect, read_costs, read_curves, read_timings, row_costs
from vpd.report.curves import Curve
from vpd.report.judge import all_cells, table_names
from vpd.report.provenance import Backbone, Source, backbones, sources
from vpd.report.wording import ordinal
from vpd.utils.errors import UserError, pick
from vpd.utils.files import read_json

HISTORY = ("seed", "step", "loss")


@dataclass(frozen=True)
class Report:
    """Contents of the report."""

    params: Params
    results: Path
    pretraining: Path
    previews: Mapping[str, Path]
    out: Path
    costs_scale: str
    reported: Mapping[str, ReportedTable]
    """The paper's numbers."""
    frame: pd.DataFrame
    """All measurements of the matrix and of released weights, one per line."""
    cells: Sequence[Cell]
    points: Mapping[str, Points]
    """Points of each trend figure."""
    claims: Sequence[Finding]
    answers: Sequence[Finding]
    """To the questions beyond the paper."""
    timings: pd.DataFrame
    row_costs: Sequence[RowCost]
    histories: Mapping[str, pd.DataFrame]
    """Training history of every experiment that has one."""
    pretraining_losses: pd.DataFrame | None
    backbones: Sequence[Backbone]
    sources: Sequence[Source]
    released: Mapping[str, Mapping[str, Any]]
    """Facts about released weights and public models, as the released stage recorded them."""

    @property
    def captions(self) -> dict[str, str]:
        """Captions of the tables, in the paper's order: ``Table 5. Ablations on ADE20K with 8K iterations``."""
        names, specs = table_names(self.params, self.reported), self.params.tables
        titles = {name: (name in specs and specs[name].title) or self.reported[name].title for name in names}
        return {name: f"{ordinal(name)}. {title}" for name, title in titles.items()}

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Experiments of the matrix by task."""
        names: dict[str, list[str]] = {}
        for name, line in self.params.experiments.items():
            names.setdefault(line.task, []).append(name)
        return names


def read_report(
    params: Params,
    results: Path,
    pretraining: Path,
    previews: Mapping[str, Path],
    out: Path,
    costs: Path | None,
    costs_scale: str | None,
) -> Report:
    """Read all inputs, and derive cells and verdicts; for arguments and errors see ``write_report``."""
    reported, scale = load_reported(), costs_scale or params.scale
    counted = pick(scale, params.document.scales, "scale", f"{params.source}: costs of the report")
    frame = collect(results / "metrics", params.experiments, results / "released", params.released)
    figures, timings = read_costs(costs), read_timings(results / "timing")
    cells = all_cells(params, reported, frame, figures, counted.comparable)
    points = {}
    for name, figure in params.figures.items():
        if steps := pretraining_steps(params, name, figure):
            points[name] = [(steps[cell.row], cell) for cell in cells if cell.table == name and cell.row in steps]
    histories = {name: read_curves(results / "history" / f"{name}.csv", HISTORY) for name in params.experiments}
    index = results / "released" / "index.json"
    facts = read_json(index) if index.is_file() else {}
    return Report(
        params=params,
        results=results,
        pretraining=pretraining,
        previews=previews,
        out=out,
        costs_scale=scale,
        reported=reported,
        frame=frame,
        cells=cells,
        points=points,
        claims=findings(load_claims(), reported, cells, points),
        answers=answers(params.questions, cells),
        timings=timings,
        row_costs=row_costs(params, timings, figures),
        histories={name: history for name, history in histories.items() if history is not None},
        pretraining_losses=read_curves(pretraining / "history.csv", ("phase", "step", "loss")),
        backbones=backbones(params, results / "backbones"),
        sources=sources(params, results),
        released={**facts.get("released", {}), **facts.get("public", {})},
    )


def pretraining_steps(params: Params, name: str, figure: FigureSpec) -> dict[str, int]:
    """Look up the pre-training steps of each point's U-Net: 0 if untrained, else of its milestone or from the figure.

    Raises:
        UserError: neither the milestones nor the figure know a checkpoint.
    """
    known = {**figure.steps, **params.pretraining.milestones}
    steps = {}
    for point, experiment in figure.points.items():
        spec = params.resolve(experiment)
        if getattr(spec.model, "unet", None) == "random":
            steps[point] = 0
        elif spec.checkpoint in known:
            steps[point] = known[spec.checkpoint]
        else:
            cure = f"add it to figures.{name}.steps"
            raise UserError(f"figures.{name}: the pre-training steps of '{spec.checkpoint}' are not known; {cure}")
    return steps


def dots(report: Report, table: str) -> dict[str, list[Cell]]:
    """Cells that this project runs, by measured column of a table."""
    own = [cell for cell in report.cells if cell.table == table and cell.provenance != "quoted"]
    columns = {name: [cell for cell in own if cell.column == name] for name in report.params.tables[table].columns}
    return {name: cells for name, cells in columns.items() if cells}


def learning_curves(report: Report, table: str) -> tuple[list[Curve], str]:
    """Learning curves of a table's trained rows in the paper's order, and the metric of its first column."""
    spec, source = report.params.tables[table], report.reported[table]
    metric = next(iter(spec.columns.values())).partition(".")[2]
    rows = {matched_row(row, source, f"tables.{table}"): row for row in spec.rows}
    curves = []
    for index, row in sorted(rows.items()):
        printed = source.rows[index]
        label, schedule = str(printed.get("method", row.label)), printed.get("schedule")
        for experiment in dict.fromkeys(row.trained.values()):
            curves.append(_curve(report, label, f", {schedule}" if schedule else "", experiment, metric))
    return curves, metric


def _curve(report: Report, label: str, schedule: str, experiment: str, metric: str) -> Curve:
    spec, frame = report.params.resolve(experiment), report.frame
    scores = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric)]
    scores = scores[scores["milestone"].isin(spec.training.milestones)][["seed", "step", "value"]]
    panel = (spec.variant or spec.dataset) + schedule
    history = report.histories.get(experiment)
    return Curve(label, panel, spec.model.kind == "vpd", history, scores if len(scores) else None)

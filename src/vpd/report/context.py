"""Everything that the pages of the report draw from, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from vpd.config.reported import ReportedTable, load_claims, load_reported
from vpd.config.table_checks import matched_row, table_names, tasks
from vpd.report.backbones import Backbone, backbones
from vpd.report.cells import Cell
from vpd.report.claims import Finding, Points, findings
from vpd.report.collect import collect, collect_released, read_curves, read_timings
from vpd.report.costs import RowCost, read_costs, row_costs
from vpd.report.figures import pretraining_steps
from vpd.report.judge import Costs, all_cells
from vpd.report.learning import Curve
from vpd.report.provenance import Source, sources
from vpd.report.questions import answers
from vpd.report.tables import caption
from vpd.utils.errors import pick
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from vpd.config.params import Params, Scale


@dataclass(frozen=True)
class Report:
    """Inputs of the report, and what follows from them."""

    params: Params
    results: Path
    pretraining: Path
    previews: Mapping[str, Path]
    out: Path
    costs_file: Path | None = None
    costs_scale: str | None = None
    """Scale whose networks the costs are of; None stands for the report's own."""

    @cached_property
    def reported(self) -> Mapping[str, ReportedTable]:
        """The paper's numbers."""
        return load_reported()

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All measurements of the matrix and of released weights, one per line."""
        own = collect(self.results / "metrics", self.params.experiments)
        released = collect_released(self.results / "released", self.params.released)
        return pd.concat([own, released]) if len(released) else own

    @cached_property
    def costs(self) -> Costs:
        """Figures of ``vpd cost`` by experiment."""
        return read_costs(self.costs_file)

    @cached_property
    def cells(self) -> Sequence[Cell]:
        """Every number of the report."""
        return all_cells(self.params, self.reported, self.frame, self.costs, self.counted_block.comparable)

    @property
    def counted_scale(self) -> str:
        """Scale whose networks the costs are of."""
        return self.costs_scale or self.params.scale

    @property
    def counted_block(self) -> Scale:
        """That scale's block of params.yaml."""
        scales = self.params.document.scales
        return pick(self.counted_scale, scales, "scale", f"{self.params.source}: costs of the report")

    @cached_property
    def tables(self) -> dict[str, str]:
        """Tables in the paper's order, with their captions."""
        names = table_names(self.params, self.reported)
        return {name: caption(name, self.params.tables.get(name), self.reported[name]) for name in names}

    @cached_property
    def tasks(self) -> dict[str, list[str]]:
        """Experiments by task."""
        return tasks(self.params)

    @cached_property
    def protocol(self) -> str:
        """The protocol of the experiments."""
        return ", ".join(sorted({self.params.resolve(name).protocol for name in self.params.experiments}))

    @cached_property
    def points(self) -> dict[str, Points]:
        """(pre-training steps, cell) of the points of each trend figure."""
        found = {}
        for name, figure in self.params.figures.items():
            if figure.points:
                steps = pretraining_steps(self.params, name, figure)
                found[name] = [(steps[c.row], c) for c in self.cells if c.table == name and c.row in steps]
        return found

    @cached_property
    def claims(self) -> list[Finding]:
        """The paper's claims, tested."""
        return findings(load_claims(), self.reported, self.cells, self.points)

    @cached_property
    def answers(self) -> list[Finding]:
        """Answers to the questions beyond the paper."""
        return answers(self.params.questions, self.cells)

    @cached_property
    def histories(self) -> dict[str, pd.DataFrame]:
        """Training history of every experiment that kept one."""
        paths = {name: self.results / "history" / f"{name}.csv" for name in self.params.experiments}
        found = {name: read_curves(path, ("seed", "step", "loss")) for name, path in paths.items()}
        return {name: frame for name, frame in found.items() if frame is not None}

    @cached_property
    def timings(self) -> pd.DataFrame:
        """Wall time of every job."""
        return read_timings(self.results / "timing")

    @cached_property
    def row_costs(self) -> list[RowCost]:
        """What every row took."""
        return row_costs(self.params, self.timings, self.costs)

    @cached_property
    def backbones(self) -> list[Backbone]:
        """The pre-trained networks."""
        return backbones(self.params, self.results / "backbones")

    @cached_property
    def sources(self) -> list[Source]:
        """Provenance of every experiment."""
        return sources(self.params, self.results)

    @cached_property
    def released(self) -> Mapping[str, Mapping]:
        """What was found out about the authors' released weights, where the scale measures them."""
        return self._index.get("released", {})

    @cached_property
    def public(self) -> Mapping[str, Mapping]:
        """The same of public models of others."""
        return self._index.get("public", {})

    @cached_property
    def _index(self) -> Mapping[str, Mapping]:
        path = self.results / "released" / "index.json"
        return read_json(path) if path.is_file() else {}

    def dots(self, table: str) -> dict[str, list[Cell]]:
        """Cells that this project runs, by measured column of a table."""
        columns: dict[str, list[Cell]] = {column: [] for column in self.params.tables[table].columns}
        for cell in self.cells:
            if cell.table == table and cell.provenance != "quoted" and cell.column in columns:
                columns[cell.column].append(cell)
        return {column: cells for column, cells in columns.items() if cells}

    def curves(self, table: str) -> tuple[list[Curve], str]:
        """Learning curves of a table's trained rows in the paper's order, and their metric."""
        spec, source = self.params.tables[table], self.reported[table]
        metric = _metric(spec.columns)
        placed = [(matched_row(row, source, f"tables.{table}"), row) for row in spec.rows]
        curves = []
        for index, row in sorted(placed, key=lambda pair: pair[0]):
            printed = source.rows[index]
            for experiment in dict.fromkeys(row.trained.values()):
                label, schedule = str(printed.get("method", row.label)), printed.get("schedule")
                curves.append(self._curve(label, f", {schedule}" if schedule else "", experiment, metric))
        return curves, metric

    def _curve(self, label: str, schedule: str, experiment: str, metric: str) -> Curve:
        resolved, frame = self.params.resolve(experiment), self.frame
        scores = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric)]
        scores = scores[scores["milestone"].isin(resolved.training.milestones)][["seed", "step", "value"]]
        panel = (resolved.variant or resolved.dataset) + schedule
        own = resolved.model.kind == "vpd"
        return Curve(label, panel, own, self.histories.get(experiment), scores if len(scores) else None)


def _metric(columns: Mapping[str, str]) -> str:
    """The metric of a table's first column."""
    return next(iter(columns.values())).partition(".")[2]

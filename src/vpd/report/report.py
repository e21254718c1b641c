"""Everything that the pages and figures of the report are made from, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from vpd.config.claims import load_claims
from vpd.config.params import Params
from vpd.config.paths import EVIDENCE, evaluated
from vpd.config.reported import load_reported
from vpd.config.schema import Count, released_spec
from vpd.config.tables import FigureSpec, matched_row
from vpd.measures.results import measures_to_show
from vpd.report.cells import Cell
from vpd.report.claims import Points, answers, findings
from vpd.report.collect import collect, read_costs, read_curves, read_measures, read_timings, row_costs
from vpd.report.evidence import compared, joined, read_evidence
from vpd.report.figures import Curve
from vpd.report.judge import all_cells, table_names
from vpd.report.provenance import backbones, runs_of
from vpd.report.wording import ordinal
from vpd.utils.errors import UserError, pick
from vpd.utils.validation import read_as


class Embeddings(TypedDict):
    """How class embeddings agree with ours."""

    mean: FiniteFloat
    worst: FiniteFloat
    worst_class: str
    in_order: Count
    by_class: dict[str, FiniteFloat]


class Weights(TypedDict):
    """What ``vpd released`` found out about one file."""

    file: str
    sha256: str
    spec: NotRequired[str]
    repo: NotRequired[str]
    revision: NotRequired[str]
    parameters: NotRequired[Count]
    vae_difference: NotRequired[FiniteFloat]
    class_embeddings: NotRequired[Embeddings]


class Absent(TypedDict):
    """Why a file was not measured."""

    missing: str


class Report:
    """Contents of the report, read and derived once."""

    def __init__(
        self,
        params: Params,
        results: Path,
        pretraining: Path,
        previews: Mapping[str, Path],
        out: Path,
        costs: Path | None,
        costs_scale: str | None,
    ) -> None:
        """Read all inputs, and derive cells and verdicts; for arguments and errors see ``write_report``."""
        self.params, self.results, self.out = params, results, out
        self.pretraining, self.previews = pretraining, previews
        self.measures = measures_to_show(results / "measures", params.block.shipped)  # folder; it may not be there yet
        self.costs_scale = costs_scale or params.scale
        counted = pick(self.costs_scale, params.document.scales, "scale", f"{params.source}: costs of the report")
        names = list(params.experiments)
        self.reported = load_reported()
        self.frame = collect(results / "metrics", names, results / "released", params.released)
        figures, self.timings = read_costs(costs), read_timings(results / "timing")
        self.row_costs = row_costs(params, self.timings, figures)
        self.cells = all_cells(params, self.reported, self.frame, figures, counted.comparable)
        self.points = trend_points(params, self.cells)
        recorded = read_evidence(results / EVIDENCE, names)
        self.evidence = None if recorded is None else compared(self.frame, recorded)  # None: nothing was recorded
        # Claims rest on all seeds that are known; tables and figures show this run.
        known = self.frame if self.evidence is None else joined(self.frame, self.evidence)
        seeds = all_cells(params, self.reported, known)
        self.claims = findings(load_claims(), self.reported, seeds, trend_points(params, seeds))
        self.answers = answers(params.questions, seeds)
        histories = {name: read_curves(results / "history" / f"{name}.csv", ("seed", "step", "loss")) for name in names}
        self.histories = {name: history for name, history in histories.items() if history is not None}
        self.pretraining_losses = read_curves(pretraining / "history.csv", ("phase", "step", "loss"))
        self.measured = read_measures(self.measures)
        self.backbones = backbones(params, results / "backbones")
        self.runs = {name: runs_of(params, name, evaluated(results, name).provenance) for name in names}
        # Results of settings that have changed since; those of the authors' weights have settings of their own.
        self.outdated = [name for name, runs in self.runs.items() if runs and not _is_present(params, name, runs[0])]
        index = results / "released" / "index.json"
        kind = dict[str, dict[str, Absent | Weights]]
        facts: dict[str, Any] = read_as(kind, index, "run vpd released again") if index.is_file() else {}
        self.released = {**facts.get("released", {}), **facts.get("public", {})}

    @property
    def captions(self) -> dict[str, str]:
        """Captions of the tables, in the paper's order: ``Table 5. Ablations on ADE20K with 8K iterations``."""
        names, specs = table_names(self.params, self.reported), self.params.tables
        titles = {name: (name in specs and specs[name].title) or self.reported[name].title for name in names}
        return {name: f"{ordinal(name)}. {title}" for name, title in titles.items()}

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Experiments of the matrix by task."""
        tasks = {name: line.task for name, line in self.params.experiments.items()}
        return {task: [name for name in tasks if tasks[name] == task] for task in dict.fromkeys(tasks.values())}


def trend_points(params: Params, cells: Sequence[Cell]) -> dict[str, Points]:
    """Place the cells of each trend figure at the pre-training of their points."""
    points: dict[str, Points] = {}
    for name, figure in params.figures.items():
        if steps := pretraining_steps(params, name, figure):
            here = [cell for cell in cells if cell.table == name and cell.row in steps]
            points[name] = [(steps[cell.row], cell) for cell in here]
    return points


def pretraining_steps(params: Params, name: str, figure: FigureSpec) -> dict[str, int]:
    """Look up how long each point's U-Net was pre-trained: 0 if untrained, else images or steps."""
    known = {**figure.steps, **params.milestones}
    steps = {}
    for point, experiment in figure.points.items():
        spec = params.resolve(experiment)
        untrained = getattr(spec.model, "unet", None) == "random"
        if not untrained and spec.checkpoint not in known:
            cure = f"add it to figures.{name}.steps"
            raise UserError(f"figures.{name}: the pre-training steps of '{spec.checkpoint}' are not known; {cure}")
        steps[point] = 0 if untrained else known[spec.checkpoint]
    return steps


def learning_curves(report: Report, table: str) -> tuple[list[Curve], str]:
    """Learning curves of a table's trained rows in the paper's order, and the metric of its first column."""
    table_spec, source, frame = report.params.tables[table], report.reported[table], report.frame
    metric = next(iter(table_spec.columns.values())).partition(".")[2]
    rows = {matched_row(row, source, f"tables.{table}"): row for row in table_spec.rows}
    curves = []
    for index, row in sorted(rows.items()):
        printed = source.rows[index]
        schedule = f", {printed['schedule']}" if printed.get("schedule") else ""
        for experiment in dict.fromkeys(row.trained.values()):
            spec = report.params.resolve(experiment)
            scores = frame[(frame["experiment"] == experiment) & (frame["metric"] == metric)]
            scores = scores[scores["milestone"].isin(spec.training.milestones)][["seed", "step", "value"]]
            label, panel = str(printed.get("method", row.label)), (spec.variant or spec.dataset) + schedule
            history = report.histories.get(experiment)
            curves.append(Curve(label, panel, spec.model.kind == "vpd", history, scores if len(scores) else None))
    return curves, metric


def _is_present(params: Params, name: str, run: Mapping[str, Any]) -> bool:
    spec = params.resolve(name)
    return run["spec"] in (spec.digest(), released_spec(spec).digest())

"""Questions beyond the paper: pairs of experiments that differ in one thing, with no expectation which is ahead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vpd.config.tables import QuestionSpec
from vpd.report.cells import Cell
from vpd.report.claims import Finding, Line, better_is, not_measured, spread
from vpd.report.judge import BEYOND
from vpd.report.names import heading
from vpd.report.statistics import difference

NO_DIFFERENCE, ONE_SEED = "no difference seen", "one seed, cannot tell"
DECIMALS = {"rmse": 3, "rel": 3, "log10": 3, "delta1": 3, "delta2": 3, "delta3": 3}
"""Of a metric where it is not 1."""


def answers(questions: Iterable[QuestionSpec], cells: Sequence[Cell]) -> list[Finding]:
    """Every question with its answer: ``a is ahead``, ``no difference seen``, ``one seed, cannot tell`` or ``not run``."""
    here = {(cell.row, cell.column): cell for cell in cells if cell.table == BEYOND}
    return [answer(asked, here[asked.first, asked.metric], here[asked.second, asked.metric]) for asked in questions]


def answer(question: QuestionSpec, first: Cell, second: Cell) -> Finding:
    """Compare both sides by a two-sided interval."""
    line = not_measured(first, second) or _line(first, second, DECIMALS.get(first.metric, 1))
    milestone, _, metric = question.metric.partition(".")
    return Finding(question.title, f"{heading(metric)}, {milestone}", line.verdict, (line,))


def _line(first: Cell, second: Cell, decimals: int) -> Line:
    found = difference(first.values, second.values)
    label = f"'{first.row}' {spread(first, decimals)} against '{second.row}' {spread(second, decimals)}"
    sign = better_is(first)
    if found.low is None:
        return Line(label, ONE_SEED, found, decimals=decimals, sign=sign)
    ahead = found.settled * sign
    verdict = {1: f"{first.row} is ahead", -1: f"{second.row} is ahead", 0: NO_DIFFERENCE}[ahead]
    return Line(label, verdict, found, decimals=decimals, sign=sign)

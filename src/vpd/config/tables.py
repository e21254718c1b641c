"""Entries of params.yaml that say what the report shows: table rows, figures and questions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from vpd.config.reported import Scalar
from vpd.utils.validation import Frozen

Reference = Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
"""``milestone.metric``, such as ``final.miou_ss``."""
RELEASED = "@released"
"""Ending of an experiment's name whose results are those of released weights."""


class TableRow(Frozen):
    """One row of the paper that this project runs itself."""

    match: dict[str, Scalar] = Field(min_length=1)
    """Selects exactly one row of the paper: all these keys are equal in src/vpd/config/reported.yaml."""
    label: str
    """Name of the row in the report."""
    experiment: str | None = None
    """Experiment that fills every measured column; exactly one of `experiment` and `experiments` is set."""
    experiments: dict[str, str] = {}
    """Column -> experiment that fills it."""
    released: bool = False
    """Whether the row shows the authors' own weights, measured here at scales whose `released` lists them."""
    ours: bool = False
    """Whether nobody published how the row was made; it is then never `reproduced`, but `agrees, protocol: ours`."""
    tolerances: dict[str, float] = {}
    """Column -> half-width of its verdict, in place of the table's and the general ones."""

    @model_validator(mode="after")
    def _check_source(self) -> TableRow:
        if (self.experiment is None) == (not self.experiments):
            raise ValueError(f"row '{self.label}' needs either experiment or experiments")
        return self

    def source(self, column: str) -> str | None:
        """Return the experiment that fills ``column``, if any does, with the ending of released weights if those are shown."""
        name = self.experiment or self.experiments.get(column)
        return name + RELEASED if name and self.released else name

    @property
    def trained(self) -> dict[str, str]:
        """Experiments trained for this row, by column; one that fills all columns has an empty key."""
        if self.released:
            return {}
        return {"": self.experiment} if self.experiment else self.experiments


class TableSpec(Frozen):
    """One table: measured columns and rows; every other number of it is quoted from the paper."""

    title: str | None = None
    """Heading in the report."""
    columns: dict[str, Reference] = Field(min_length=1)
    """Column of the paper's table -> `milestone.metric`, such as `final.miou_ss`."""
    rows: tuple[TableRow, ...]
    """Rows that are measured here; every other row shows the paper's number as quoted."""
    ours: bool = False
    """`ours` for all its rows."""
    tolerances: dict[str, float] = {}
    """Column -> half-width of its verdict, in place of the general one of its metric."""


class FigureSpec(Frozen):
    """One figure of one kind: exactly one of `points`, `table`, `curves`, `panels` and `panel` is set."""

    metric: Reference | None = None
    """Trend: `milestone.metric` of the points."""
    ours: bool = False
    """Trend: whether nobody published how the points were made."""
    points: dict[str, str] = {}
    """Trend: point -> experiment, against the pre-training steps of the experiment's checkpoint."""
    steps: dict[str, PositiveInt] = {}
    """Trend: checkpoint -> its pre-training steps, for a scale that pre-trains nothing itself."""
    table: str | None = None
    """Dots: table whose measured rows are drawn, one panel per measured column."""
    curves: str | None = None
    """Learning curves: table whose rows are drawn against each other, VPD in front."""
    panels: tuple[str, ...] = ()
    """Experiments whose predictions are shown."""
    panel: str | None = None
    """Experiment whose attention maps are shown."""

    @model_validator(mode="after")
    def _check_kind(self) -> FigureSpec:
        kinds = [name for name in ("points", "table", "curves", "panels", "panel") if getattr(self, name)]
        if len(kinds) != 1:
            choice = "points, table, curves, panels and panel"
            raise ValueError(f"a figure needs exactly one of {choice}, found {kinds or 'none'}")
        if bool(self.points) != bool(self.metric):
            raise ValueError("a figure needs both points and metric, or neither")
        return self

    @property
    def drawn(self) -> bool:
        """Whether the report draws this figure itself; evaluation draws panels."""
        return bool(self.points or self.table or self.curves)

    @property
    def experiments(self) -> tuple[str, ...]:
        """All experiments the figure names."""
        return (*self.points.values(), *self.panels, *filter(None, (self.panel,)))


class QuestionSpec(Frozen):
    """A question beyond the paper: two experiments that differ in one thing; neither is expected to be ahead."""

    title: str
    """The question, as the report asks it."""
    metric: Reference
    """`milestone.metric` by which they are compared over their seeds."""
    first: str
    """One experiment."""
    second: str
    """The other one."""

"""Entries of params.yaml that say what the report shows: table rows, figures and questions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from vpd.config.reported import Scalar
from vpd.config.schema import Frozen

Reference = Annotated[str, Field(pattern=r"^[^.]+\.[^.]+$")]
"""``milestone.metric``, such as ``final.miou_ss``."""
RELEASED = "@released"
"""Ending of an experiment's name where its results are those of released weights."""


class TableRow(Frozen):
    """One row of the paper that this project runs itself."""

    match: dict[str, Scalar] = Field(min_length=1)
    """Selects the row of reported.yaml: all these keys are equal."""
    label: str
    experiment: str | None = None
    """The experiment that fills every measured column ..."""
    experiments: dict[str, str] = Field(default_factory=dict)
    """... or one experiment per column."""
    released: bool = False
    """Whether the row shows the authors' released weights, measured here, and not weights trained here."""
    ours: bool = False
    """Whether nobody published how the row was made, so that the protocol is this project's own."""
    tolerances: dict[str, float] = Field(default_factory=dict)
    """Bands by column, in place of the table's and the general ones."""

    @model_validator(mode="after")
    def _one_source(self):
        if (self.experiment is None) == (not self.experiments):
            raise ValueError(f"row '{self.label}' needs either experiment or experiments")
        return self

    def source(self, column: str) -> str | None:
        """The experiment that fills ``column``, if any does; with the ending of released weights where they are shown."""
        name = self.experiment or self.experiments.get(column)
        return name + RELEASED if name and self.released else name

    @property
    def trained(self) -> dict[str, str]:
        """Experiments trained for this row, by column; the key of one that fills all columns is empty."""
        if self.released:
            return {}
        return {"": self.experiment} if self.experiment else self.experiments


class TableSpec(Frozen):
    """One table: measured columns and rows; every other number of it is quoted from the paper."""

    title: str | None = None
    columns: dict[str, Reference] = Field(min_length=1)
    """Column of reported.yaml -> ``milestone.metric``."""
    rows: tuple[TableRow, ...]
    ours: bool = False
    """The same of all its rows."""
    tolerances: dict[str, float] = Field(default_factory=dict)
    """Bands by column, in place of the general ones by metric."""


class FigureSpec(Frozen):
    """One figure of one kind: a trend, dots or learning curves of a table's rows, prediction or attention panels."""

    metric: Reference | None = None
    ours: bool = False
    """Trend: whether its protocol is this project's own."""
    points: dict[str, str] = Field(default_factory=dict)
    """Trend: point -> experiment, drawn against the pre-training steps of the experiment's checkpoint."""
    steps: dict[str, PositiveInt] = Field(default_factory=dict)
    """Trend: pre-training steps by checkpoint id where the scale pre-trains nothing itself."""
    table: str | None = None
    """Dots: the table whose measured rows are drawn, one panel per measured column."""
    curves: str | None = None
    """Learning curves: the table whose rows are drawn against each other, VPD in front."""
    panels: tuple[str, ...] = ()
    """Experiments whose prediction panels are shown."""
    panel: str | None = None
    """Experiment whose attention panel is shown."""

    @model_validator(mode="after")
    def _one_kind(self):
        kinds = [name for name in ("points", "table", "curves", "panels", "panel") if getattr(self, name)]
        if len(kinds) != 1:
            choice = "points, table, curves, panels and panel"
            raise ValueError(f"a figure needs exactly one of {choice}, found {kinds or 'none'}")
        if bool(self.points) != bool(self.metric):
            raise ValueError("a figure needs both points and metric, or neither")
        return self

    @property
    def drawn(self) -> bool:
        """Whether the report draws this figure itself; panels are drawn by the evaluation."""
        return bool(self.points or self.table or self.curves)

    @property
    def experiments(self) -> tuple[str, ...]:
        """All experiments that the figure names."""
        return (*self.points.values(), *self.panels, *filter(None, (self.panel,)))


class QuestionSpec(Frozen):
    """A question beyond the paper: two experiments that differ in one thing, with no expectation which is ahead."""

    title: str
    metric: Reference
    first: str
    second: str

"""Which experiments a plan is about: a table or figure of the paper, a task, or names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vpd.utils.errors import pick

if TYPE_CHECKING:
    from vpd.config.params import Params


def select(params: Params, words: Sequence[str]) -> list[str]:
    """Experiments that any of ``words`` means, in the matrix's order; all without words.

    A word is an experiment, a task, or a table or figure of the paper. UserError for any other, with the nearest.
    """
    meanings = {
        **{name: {name} for name in params.experiments},
        **{task: {name for name, line in params.experiments.items() if line.task == task} for task in _tasks(params)},
        **{
            name: {used for row in table.rows for used in row.trained.values()} for name, table in params.tables.items()
        },
        **{name: set(figure.experiments) for name, figure in params.figures.items() if figure.experiments},
    }
    wanted = set().union(
        *(pick(word, meanings, "experiment, task, table or figure", str(params.source)) for word in words)
    )
    return [name for name in params.experiments if name in wanted or not words]


def _tasks(params: Params) -> list[str]:
    return list(dict.fromkeys(line.task for line in params.experiments.values()))

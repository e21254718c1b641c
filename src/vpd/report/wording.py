"""Ids in the words of the paper, and numbers as the report prints them."""

import re
from collections.abc import Iterable
from itertools import groupby

WORDS = {
    "miou": "mIoU", "oiou": "oIoU", "4k": "4K", "8k": "8K", "iters": "iterations", "gflops": "GFLOPs",
    "rmse": "RMSE ↓", "rel": "REL ↓", "log10": "log10 ↓", "refcoco": "RefCOCO", "refcoco+": "RefCOCO+", "refcocog": "RefCOCOg",
    **{f"p{threshold}0": f"P@0.{threshold}" for threshold in range(5, 10)},
    **{f"delta{power}": f"δ{power}" for power in (1, 2, 3)},
}  # fmt: skip
METRICS = {
    "miou_ss": "mIoU, single scale (%)", "miou_ms": "mIoU, multi-scale (%)", "oiou": "overall IoU (%)",
    "miou": "mean IoU (%)", "rmse": "RMSE (m)",
}  # fmt: skip


def heading(column: str) -> str:
    """Name a column in words: ``miou_ss_4k`` -> ``mIoU ss 4K``; an arrow marks errors, where lower is better."""
    return " ".join(WORDS.get(word, word) for word in column.split("_"))


def metric_name(metric: str) -> str:
    """Name a metric with its unit, for an axis."""
    return METRICS.get(metric, heading(metric))


def ordinal(name: str) -> str:
    """Title of a table or figure: ``table3-released`` -> ``Table 3 (released)``; other names as words."""
    if parts := re.fullmatch(r"(table|figure)(\d+)(?:-(.+))?", name):
        return f"{parts[1].capitalize()} {parts[2]}" + (f" ({parts[3]})" if parts[3] else "")
    return name.replace("-", " ")


def signed(value: float, decimals: int) -> str:
    """Format a number with its sign: ``+1.2``, ``−0.3``; a number that rounds to zero is ``+0.0``."""
    text = f"{value:+.{decimals}f}"
    if float(text) == 0:
        text = f"+{0:.{decimals}f}"
    return text.replace("-", "−")


def rounded(value: float, decimals: int) -> str:
    """Round to ``decimals``, or to two significant digits where that would leave only zeros."""
    text = f"{value:.{decimals}f}"
    return f"{value:.2g}" if value and float(text) == 0 else text


def ranges(numbers: Iterable[int]) -> str:
    """List whole numbers, runs of three and more by their ends: ``0, 2, 5–9``."""
    ordered = sorted(numbers)
    runs = [[n for _, n in run] for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def duration(seconds: float) -> str:
    """Format ``12 s``, ``3.5 min`` or ``2.1 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def short(value: float, position: float | None = None) -> str:
    """Format ``800``, ``2k`` or ``1.2M``; matplotlib also passes the position of a tick."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"

"""Ids of tables, figures, columns and metrics in the words of the paper."""

from __future__ import annotations

WORDS = {
    "miou": "mIoU",
    "oiou": "oIoU",
    "4k": "4K",
    "8k": "8K",
    "p50": "P@0.5",
    "p60": "P@0.6",
    "p70": "P@0.7",
    "p80": "P@0.8",
    "p90": "P@0.9",
    "rmse": "RMSE ↓",
    "rel": "REL ↓",
    "log10": "log10 ↓",
    "delta1": "δ1",
    "delta2": "δ2",
    "delta3": "δ3",
    "refcoco": "RefCOCO",
    "refcoco+": "RefCOCO+",
    "refcocog": "RefCOCOg",
    "iters": "iterations",
    "gflops": "GFLOPs",
}
METRICS = {
    "miou_ss": "mIoU, single scale (%)",
    "miou_ms": "mIoU, multi-scale (%)",
    "oiou": "overall IoU (%)",
    "miou": "mean IoU (%)",
    "rmse": "RMSE (m)",
}


def heading(column: str) -> str:
    """A column in words: ``miou_ss_4k`` -> ``mIoU ss 4K``; an arrow marks errors, where lower is better."""
    return " ".join(WORDS.get(word, word) for word in column.split("_"))


def metric_name(metric: str) -> str:
    """A metric with its unit, for an axis."""
    return METRICS.get(metric, heading(metric))


def ordinal(name: str) -> str:
    """``table3-released`` -> ``Table 3 (released)``, ``figure3`` -> ``Figure 3``; other names as words."""
    first, _, rest = name.partition("-")
    for kind in ("table", "figure"):
        digits = first.removeprefix(kind)
        if first.startswith(kind) and digits.isdigit():
            return f"{kind.capitalize()} {digits}" + (f" ({rest})" if rest else "")
    return name.replace("-", " ")

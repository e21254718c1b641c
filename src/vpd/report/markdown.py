"""The sections of REPORT.md; each function returns markdown and reads nothing but what it is given."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from vpd.config.tables import FigureSpec
from vpd.report.backbones import Backbone
from vpd.report.cells import PROVENANCES, Cell, counts
from vpd.report.claims import Finding, shown
from vpd.report.costs import RowCost
from vpd.report.names import ordinal
from vpd.report.tables import escaped

STAGES = ("data", "pretrain", "checkpoint", "train", "evaluate", "released")


class Links:
    """Links from REPORT.md in ``out`` to files, relative, and plain words where there is no file."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def _address(self, path: Path) -> str:
        return quote(Path(os.path.relpath(path, self.out)).as_posix(), safe="/+")

    def link(self, text: str, path: Path) -> str:
        """A link, or a dash if the file does not exist."""
        return f"[{text}]({self._address(path)})" if path.is_file() else "–"

    def image(self, text: str, path: Path) -> str:
        """An image with its caption, or a line that says that it is missing."""
        if not path.is_file():
            return f"*{text}: not run.*\n"
        return f"![{text}]({self._address(path)})\n\n*{text}*\n"

    def figure(self, text: str, path: Path) -> str:
        """A drawn figure: the PNG is shown, the SVG of the same name linked."""
        vector = self.link("SVG", path.with_suffix(".svg"))
        return f"![{text}]({self._address(path)})\n\n*{text}* ({vector})\n"


def plural(count: int, word: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def summary(scale: str, protocol: str, comparable: bool, cells: Sequence[Cell]) -> str:
    """Title, what was run, and how many numbers come from where."""
    found = counts(cells, "provenance")
    origins = ", ".join(f"{found[name]} {name}" for name in PROVENANCES if name in found)
    verdicts = counts([cell for cell in cells if cell.values], "verdict")
    words = ", ".join(f"{count} {name}" for name, count in sorted(verdicts.items()))
    held = (
        "The paper's absolute numbers can be expected at this scale, so each measured number gets a verdict."
        if comparable
        else "The paper's absolute numbers cannot be expected at this scale: they stand beside the measured ones for "
        "orientation, and what can be compared is which of two rows is ahead."
    )
    return (
        "# VPD reproduced: Unleashing Text-to-Image Diffusion Models for Visual Perception (ICCV 2023)\n\n"
        f"Scale `{scale}`, protocol `{protocol}`. {held}\n\n"
        f"The report has {plural(len(cells), 'numeric cell')}: {origins}. "
        + (f"Verdicts on the measured ones: {words}. " if words else "")
        + "All of them, one line each, are in [tables/cells.csv](tables/cells.csv). "
        "`±` is the sample standard deviation over seeds.\n"
    )


def findings(found: Iterable[Finding]) -> str:
    """Claims or questions as a table of verdicts; of those with several comparisons, each is told in a folded part."""
    found = list(found)
    if not found:
        return ""
    rows = [
        f"| {escaped(item.title)} | {item.place} | **{item.verdict}** | {escaped(_evidence(item))} |" for item in found
    ]
    heads = ["| claim | shown in | verdict | measured here |", "|---|---|---|---|"]
    return "\n".join([*heads, *rows]) + "\n" + _comparisons([item for item in found if len(item.lines) > 1])


def _evidence(item: Finding) -> str:
    """The one comparison in words, or how many of several ended how."""
    if len(item.lines) == 1:
        return item.sentence
    verdicts = Counter(line.verdict for line in item.lines)
    return f"of {len(item.lines)} comparisons " + ", ".join(f"{count} {name}" for name, count in verdicts.items())


def _comparisons(found: Sequence[Finding]) -> str:
    """Every comparison of claims that have several, folded; a page that cannot fold shows them as they are."""
    if not found:
        return ""
    lines = []
    for item in found:
        lines += [f"{item.title} ({item.place}): {item.verdict}", ""]
        lines += [*(f"- {line.verdict}: {line.sentence}" for line in item.lines), ""]
    return "\n<details><summary>Every comparison</summary>\n\n" + "\n".join(lines) + "\n</details>\n"


def panels(name: str, figure: FigureSpec, links: Links, folder: Path) -> str:
    """Prediction panels of several experiments, or the attention panel of one."""
    if figure.panel:
        text = "cross-attention maps by word over the image"
        return links.image(f"{ordinal(name)}, `{figure.panel}`: {text}", folder / figure.panel / "attention.png")
    text = "image, ground truth, prediction"
    parts = [
        links.image(f"{ordinal(name)}, `{run}`: {text}", folder / run / "predictions.png") for run in figure.panels
    ]
    return "\n".join(parts)


def released(facts: Mapping[str, Mapping]) -> str:
    """A line per released file: what it is, how its frozen parts agree with the checkpoint, or why it is missing."""
    lines = [
        "| experiment | file | SHA-256 | VAE differs by | class embeddings: cosine with ours, mean / worst; in our order |",
        "|---|---|---|---:|---|",
    ]
    for name, fact in facts.items():
        if "missing" in fact:
            lines.append(f"| `{name}` | not measured: {fact['missing']} | – | – | – |")
            continue
        embeddings = fact.get("class_embeddings")
        agreement = (
            f"{embeddings['mean']:.4f} / {embeddings['worst']:.4f} ({embeddings['worst_class']}); "
            f"{embeddings['in_order']} of {len(embeddings['by_class'])}"
            if embeddings
            else "–"
        )
        lines.append(
            f"| `{name}` | {fact['file']} | `{fact['sha256'][:16]}` | {fact['vae_difference']:.1e} | {agreement} |"
        )
    return "\n".join(lines) + "\n"


def public(facts: Mapping[str, Mapping]) -> str:
    """A line per public model of others: what it is, or why it is missing."""
    lines = ["| model | weights | SHA-256 | parameters |", "|---|---|---|---:|"]
    for name, fact in facts.items():
        if "missing" in fact:
            lines.append(f"| `{name}` | not measured: {fact['missing']} | – | – |")
            continue
        size = f"{fact['parameters'] / 1e6:.0f} M"
        lines.append(f"| `{name}` | {public_source(fact)} | `{fact['sha256'][:16]}` | {size} |")
    return "\n".join(lines) + "\n"


def public_source(fact: Mapping) -> str:
    """Where a public model's weights come from: a file, with its repository and commit if it has one."""
    return f"{fact['file']} of {fact['repo']} at {fact['revision'][:12]}" if "repo" in fact else fact["file"]


def costs(rows: Iterable[RowCost]) -> str:
    """Time, memory, size and multiply-adds by row of the paper's tables."""
    lines = [
        "| table | row | experiment | training, per seed | peak memory | parameters (M) | GMACs |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        numbers = " | ".join(cost_texts(row))
        lines.append(f"| {row.table} | {row.row} | `{row.experiment}` | {numbers} |")
    return "\n".join(lines) + "\n"


def cost_texts(row: RowCost) -> list[str]:
    """Training time, peak memory, parameters and multiply-adds of a row, with dashes for what is not known."""
    size, macs = row.figures.get("parameters (M)"), row.figures.get("GMACs")
    return [
        "–" if row.seconds is None else duration(row.seconds),
        "–" if row.peak_mb is None else f"{row.peak_mb:.0f} MB",
        "–" if size is None else shown(size, 1),
        "–" if macs is None else shown(macs, 2),
    ]


def backbones(found: Iterable[Backbone]) -> str:
    """Objective, images, size and proof of learning of every pre-trained network."""
    lines = [
        "| checkpoint | weights | objective | images seen | parameters | loss, first to last | trained against random |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for item in found:
        lines.append(f"| `{item.name}` | {' | '.join(backbone_texts(item))} |")
    return "\n".join(lines) + "\n"


def backbone_texts(item: Backbone) -> list[str]:
    """The cells of a checkpoint's line, with dashes for what is not known."""
    facts = item.manifest
    if facts is None:
        return [item.source, *["–"] * 5]
    measures = ", ".join(f"{name} {v.trained:.3g} against {v.random:.3g}" for name, v in facts.measures.items())
    return [
        item.source,
        facts.objective or "–",
        "–" if facts.images_seen is None else f"{facts.images_seen:,}",
        "–" if facts.size is None else f"{facts.size / 1e6:.3g} M",
        "–" if facts.loss is None else f"{facts.loss.first:.3g} → {facts.loss.last:.3g}",
        measures or "–",
    ]


def times(timings: pd.DataFrame) -> str:
    """Wall time by stage, with the total; jobs may have run side by side."""
    if timings.empty:
        return "No timings were recorded.\n"
    lines = ["| stage | jobs | total | longest job | peak memory |", "|---|---:|---:|---:|---:|"]
    *stages, total = stage_times(timings)
    lines += [f"| {' | '.join(stage)} |" for stage in stages]
    lines.append(f"| {' | '.join(['**all**', *total[1:]])} |")
    return "\n".join(lines) + "\n\nTotals add up the jobs; jobs that ran side by side took less on the clock.\n"


def stage_times(timings: pd.DataFrame) -> list[list[str]]:
    """Stage, jobs, total, longest job and peak memory, with ``all`` last; empty if nothing was timed."""
    if timings.empty:
        return []
    order = {stage: index for index, stage in enumerate(STAGES)}
    stages = sorted(set(timings["stage"]), key=lambda stage: (order.get(stage, len(order)), stage))
    groups = [(stage, timings[timings["stage"] == stage]) for stage in stages]
    return [_stage_time(stage, jobs) for stage, jobs in (*groups, ("all", timings))]


def _stage_time(stage: str, jobs: pd.DataFrame) -> list[str]:
    longest = jobs.loc[jobs["seconds"].idxmax()]
    memory = pd.to_numeric(jobs["peak_mb"]).max()
    peak = "–" if pd.isna(memory) else f"{memory:.0f} MB"
    total, most = duration(jobs["seconds"].sum()), duration(longest["seconds"])
    return [stage, str(len(jobs)), total, f"{most} ({longest['name']})", peak]


def duration(seconds: float) -> str:
    """``12 s``, ``3.5 min`` or ``2.1 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def sources(experiments: Mapping[str, str], cells: Sequence[Cell], links: Links, results: Path) -> str:
    """Each experiment (name -> task) with the cells it fills and links to its spec, metrics and panels."""
    lines = ["| experiment | task | fills | spec | metrics | predictions |", "|---|---|---|---|---|---|"]
    for name, task in experiments.items():
        filled = dict.fromkeys(ordinal(cell.table) for cell in cells if cell.experiment == name)
        files = (
            links.link("spec", results / "specs" / f"{name}.json"),
            links.link("metrics", results / "metrics" / f"{name}.json"),
            links.link("panels", results / "panels" / name / "predictions.png"),
        )
        lines.append(f"| `{name}` | {task} | {', '.join(filled) or '–'} | {' | '.join(files)} |")
    return "\n".join(lines) + "\n"

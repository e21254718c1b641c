"""Plain tables of the report: what every row costs, what the networks saw, and every number and comparison, one per line."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from vpd.config.reported import ReportedTable
from vpd.config.tables import RELEASED
from vpd.measures.results import REAL
from vpd.report.cells import Cell, number
from vpd.report.claims import QUESTION_DECIMALS, Finding
from vpd.report.collect import MEASURES
from vpd.report.evidence import DIFFERENT, EQUAL, NEW, RECORDED, evidence_lines
from vpd.report.wording import duration, heading, ordinal, rounded, signed

View = dict[str, Any]
STAGES = ("data", "pretrain", "checkpoint", "measure", "train", "evaluate", "released")


def anchor(experiment: str) -> str:
    """Id of what tells all of an experiment: its drawer, or its row among the weights that others released."""
    name = experiment.removesuffix(RELEASED)
    return f"{'run' if name == experiment else 'released'}-{name}"


def grid(heads: Iterable[str], lines: Iterable[Iterable[View | str]], numeric: Iterable[int] = (), **more: Any) -> View:
    """Lay out a plain table.

    ``numeric`` columns are aligned to the right and sorted by value; ``total`` marks the last row, and ``ids`` name all rows.
    """
    rows = [[entry(cell) if isinstance(cell, str) else cell for cell in line] for line in lines]
    return {"heads": heads, "rows": rows, "numeric": numeric, "total": False, "ids": ()} | more


def entry(text: str, value: float | None = None, **more: Any) -> View:
    """Describe one cell: its text, and the number behind it, by which its column is sorted.

    It may be an id (``code``) or a ``verdict``, have a full text if it is shortened (``title``), the ``origin`` of a number
    that is not measured, ``links`` as (text, id) instead of the text, and a comparison to draw (``bar``).
    """
    plain: View = {"code": False, "verdict": "", "title": "", "origin": "", "links": (), "bar": None}
    return {"text": text or "–", "value": number(value), **plain, **more}


def _known(value: float | None, text: str, origin: str = "") -> View:
    if value is None or pd.isna(value):
        return entry("", origin=origin)
    return entry(text.format(value), value, origin=origin)


def _rounded(value: float | None, decimals: int, origin: str = "") -> View:
    return _known(value, "" if value is None or pd.isna(value) else rounded(value, decimals), origin)


def _duration(seconds: float | None) -> View:
    return entry("" if seconds is None else duration(seconds), seconds)


def experiments(*names: str) -> View:
    """Name experiments; each leads to what made it."""
    links = [(name.removesuffix(RELEASED), anchor(name)) for name in names]
    return entry(", ".join(name for name, _ in links), code=bool(names), links=links)


# ---------------------------------------------------------------------------------------------- every number and comparison
def cell_grid(cells: Iterable[Cell], reported: Mapping[str, ReportedTable]) -> View:
    """Tabulate every cell of every table and figure."""
    heads = ("table", "row", "column", "here", "sd", "paper", "difference", "seeds", "origin", "verdict", "experiment")
    lines = []
    for cell in cells:
        table = reported.get(cell.table)
        decimals = table.decimals(cell.column) if table else QUESTION_DECIMALS.get(cell.metric, 1)
        mean, counted = cell.mean if cell.values else None, "counted" if cell.provenance == "counted" else ""
        difference = "" if cell.difference is None else signed(cell.difference, decimals)
        line = (
            *(ordinal(cell.table), cell.row, heading(cell.column.rpartition(".")[2])),
            *(_rounded(mean, decimals, counted), _rounded(cell.sd, decimals), _rounded(cell.paper, decimals, "quoted")),
            *(entry(difference, cell.difference), entry(str(len(cell.seeds) or ""), len(cell.seeds) or None)),
            *(cell.provenance, entry(cell.verdict, verdict=cell.verdict)),
            experiments(*filter(None, (cell.experiment,))),
        )
        lines.append(line)
    return grid(heads, lines, range(3, 8))


def comparison_grid(findings: Iterable[Finding]) -> View:
    """Tabulate every comparison of the claims or questions, with its interval drawn."""
    heads = (
        "claim",
        "comparison",
        "verdict",
        "",
        "difference",
        "interval",
        "p",
        "margin",
        "seeds",
        "paper",
        "experiments",
    )
    lines = []
    for finding in findings:
        for line in finding.lines:
            texts, found = line.texts, line.difference
            interval = f"{texts['interval']} ({texts['level']})" if texts["level"] else ""
            row = (
                *(finding.title, f"{line.label}; {line.remark}" if line.remark else line.label),
                *(entry(line.verdict, verdict=line.verdict), entry(" ", bar=line if found else None)),
                *(
                    entry(texts["difference"], found.mean if found else None),
                    entry(interval, (line.interval or [None])[0]),
                ),
                *(entry(texts["p"], line.p), entry(texts["margin"], line.margin)),
                entry(texts["seeds"], len(found.values) if found else None),
                *(entry(texts["paper"], line.paper, origin="quoted"), experiments(*line.experiments)),
            )
            lines.append(row)
    return grid(heads, lines, range(4, 10))


def run_grid(runs: Iterable[View]) -> View:
    """Tabulate the experiments that the drawers describe."""
    heads = (
        "experiment",
        "task",
        "data",
        "schedule",
        "from",
        "fills",
        "seeds",
        "training, per seed",
        "ended",
        "weights",
    )
    lines = []
    for run in runs:
        made = run["runs"][0] if run["runs"] else {}
        line = (
            experiments(run["experiment"]),
            *(run[key] for key in ("task", "data", "schedule", "checkpoint", "fills")),
            entry(str(len(run["runs"]) or ""), len(run["runs"]) or None),
            *(_duration(run["seconds"]), made.get("ended", "") if made else "not run"),
            entry(made.get("weights", "")[:12], code=bool(made.get("weights")), title=made.get("weights", "")),
        )
        lines.append(line)
    return grid(heads, lines, (6, 7))


def evidence_grid(comparison: pd.DataFrame) -> View:
    """Tabulate per experiment how many recorded values this run has again."""
    heads = ("experiment", EQUAL, DIFFERENT, RECORDED, NEW, "differences: recorded and here")
    lines = []
    for name, *counts, texts in evidence_lines(comparison):
        shown = experiments(name) if name != "all" else entry(name)
        lines.append((shown, *(entry(count, float(count)) for count in counts), entry(texts)))
    return grid(heads, lines, range(1, 5), total=True)


# ------------------------------------------------------------------------------------------------------ costs and networks
def cost_grid(rows: Iterable[Mapping[str, Any]]) -> View:
    """Tabulate time, memory, size and multiply-adds of every row of the paper's tables."""
    heads = ("table", "row", "experiment", "training, per seed", "peak memory", "parameters (M)", "GMACs")
    lines = []
    for row in rows:
        spent = (_duration(row["seconds_per_seed"]), _known(row["peak_mb"], "{:.0f} MB"))
        sizes = [_rounded(row[name], decimals, "counted") for name, decimals in (("parameters (M)", 1), ("GMACs", 2))]
        lines.append((row["table"], row["row"], experiments(row["experiment"]), *spent, *sizes))
    return grid(heads, lines, range(3, 7))


def backbone_grid(networks: Iterable[Mapping[str, Any]]) -> View:
    """Tabulate objective, images, size and proof of learning of every pre-trained network."""
    heads = ("checkpoint", "weights", "objective", "images seen", "parameters", "loss, first to last")
    lines = []
    for item in networks:
        parameters, first, last = item["parameters"], item["loss_first"], item["loss_last"]
        entries = (
            item["objective"] or "",
            _known(item["images_seen"], "{:,}"),
            entry("" if parameters is None else f"{parameters / 1e6:.3g} M", parameters, origin="counted"),
            entry("" if first is None else f"{first:.3g} → {last:.3g}", last),
            ", ".join(f"{key} {own:.3g} against {fresh:.3g}" for key, (own, fresh) in item["measures"].items()),
        )
        lines.append((entry(item["checkpoint"], code=True), item["source"], *entries))
    return grid((*heads, "trained against random"), lines, (3, 4, 5))


def measures_grid(measured: pd.DataFrame, milestones: Mapping[str, int]) -> View:
    """Tabulate the measures of each checkpoint and of the images that bound them."""
    lines: list[tuple[View | str, ...]] = []
    for index, line in enumerate(measured.to_dict("records")):
        name = str(line["images"])
        label = f"{name}, {milestones[name]:,} images" if name in milestones else name
        bound = " (floor)" if not index else " (ceiling)" if name == REAL else ""
        values = [_rounded(line[key] * factor, decimals) for key, (_, factor, decimals) in MEASURES.items()]
        lines.append((label + bound, *values))
    heads = [head for head, _, _ in MEASURES.values()]
    return grid(("images", *heads), lines, range(1, 1 + len(heads)))


def released_grid(names: Iterable[str], facts: Mapping[str, Mapping[str, Any]]) -> View | None:
    """Tabulate weights of others: file, digest and agreement with ours, or why they were not measured."""
    lines: list[tuple[View | str, ...]] = []
    for name in names:
        fact, code = facts.get(name, {"missing": "not run"}), entry(name, code=True)
        if "missing" in fact:
            lines.append((code, f"not measured: {fact['missing']}", "", ""))
        else:
            file = f"{fact['file']} of {fact['repo']} at {fact['revision'][:12]}" if "repo" in fact else fact["file"]
            digest = entry(fact["sha256"][:16], code=True, title=fact["sha256"])
            lines.append((code, file, digest, "; ".join(_agreement(fact))))
    ids = [f"released-{name}" for name in names]
    return grid(("weights", "file", "SHA-256", "agreement with ours"), lines, ids=ids) if lines else None


def _agreement(fact: Mapping[str, Any]) -> Iterator[str]:
    if "parameters" in fact:
        yield f"{fact['parameters'] / 1e6:.0f} M parameters"
    if "vae_difference" in fact:
        yield f"VAE differs by {fact['vae_difference']:.1e}"
    if embeddings := fact.get("class_embeddings"):
        worst = f"worst {embeddings['worst']:.4f} ({embeddings['worst_class']})"
        order = f"{embeddings['in_order']} of {len(embeddings['by_class'])} in our order"
        yield f"class embeddings: mean cosine with ours {embeddings['mean']:.4f}, {worst}, {order}"


def stage_grid(timings: pd.DataFrame, known: Collection[str]) -> View:
    """Tabulate wall time by stage, with the total; without rows if nothing was timed. ``known`` are all experiments."""
    stages = dict(iter(timings.groupby("stage")))
    order = [*(stage for stage in STAGES if stage in stages), *(stage for stage in stages if stage not in STAGES)]
    lines: list[tuple[View | str, ...]] = []
    for stage, jobs in [*((stage, stages[stage]) for stage in order), ("all", timings)] if stages else []:
        longest, memory = jobs.nlargest(1, "seconds").iloc[0], pd.to_numeric(jobs["peak_mb"]).max()
        job = str(longest["name"])
        named = experiments(job) if longest["stage"] in ("train", "evaluate") and job in known else entry(job)
        spent = (_duration(jobs["seconds"].sum()), _duration(longest["seconds"]), named)
        peak = _known(memory, "{:.0f} MB")
        lines.append((str(stage), entry(str(len(jobs)), len(jobs)), *spent, peak))
    return grid(("stage", "jobs", "total", "longest", "its job", "peak memory"), lines, (1, 2, 3, 5), total=True)

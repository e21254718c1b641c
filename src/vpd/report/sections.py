"""Builds the view: the sections of the report in order, from what was read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from vpd.report.cells import PROVENANCES
from vpd.report.collect import RowCost
from vpd.report.provenance import Backbone, Source
from vpd.report.report import Report
from vpd.report.tables import by_row, table_view
from vpd.report.view import Entry, Grid, Picture, RunView, Section, View, entries
from vpd.report.wording import duration, heading, ordinal, rounded

STAGES = ("data", "pretrain", "checkpoint", "train", "evaluate", "released")
FILES = {
    "spec": "specs/{}.json",
    "metrics": "metrics/{}.json",
    "history": "history/{}.csv",
    "predictions": "panels/{}/predictions.png",
    "attention": "panels/{}/attention.png",
}
"""Files of an experiment in the results."""
CAPTIONS = {
    "points": "VPD against the pre-training steps of its diffusion model; mean, standard deviation and seeds",
    "table": "mean, standard deviation and seeds of its rows; the best mean in orange",
    "curves": "learning curves of its rows, VPD in front: training loss, and the metric where it is measured on the way",
}
TRAINING = "Training loss, {}: seeds thin, their smoothed mean thick, the range of all experiments of the task grey"
PRETRAINING = {
    "pretraining-loss": "Loss of each phase of pre-training",
    "pretraining-samples": "Images drawn from prompts, one line per milestone",
}


def build_view(report: Report) -> View:
    """Build the view; draw the figures before, since a picture that does not exist is shown as not run."""
    params = report.params
    provenances = Counter(cell.provenance for cell in report.cells)
    verdicts = Counter(cell.verdict for cell in report.cells if cell.values)
    return View(
        scale=params.scale,
        protocol=", ".join(sorted({params.resolve(name).protocol for name in params.experiments})),
        comparable=params.comparable,
        costs_scale=report.costs_scale,
        origins=[(name, provenances[name]) for name in PROVENANCES if name in provenances],
        verdicts=sorted(verdicts.items()),
        sections=[section for section in sections(report) if not section.empty or section.name == "time"],
    )


def sections(report: Report) -> Iterator[Section]:
    """List all sections in order."""
    yield Section("claims", "What the paper claims", claims=report.claims)
    yield Section("beyond", "Beyond the paper", claims=report.answers)
    yield Section("figures", "Figures", pictures=drawn(report))
    captions = report.captions.items()
    tables = [table_view(name, text, report.reported[name], by_row(report.cells, name)) for name, text in captions]
    yield Section("tables", "The paper's tables", tables=tables)
    yield Section(
        "released", "Weights that others released", grid=released_grid(report.params.released, report.released)
    )
    yield from panels(report)
    yield Section("costs", "What every row costs", grid=cost_grid(report.row_costs))
    yield Section("backbones", "What each pre-trained network saw", grid=backbone_grid(report.backbones))
    training = {f"training-{task}": TRAINING.format(task) for task in report.tasks}
    yield Section("training", "Training", pictures=pictures(report, training))
    if report.params.pretraining.milestones:
        yield Section("pretraining", "The small Stable Diffusion", pictures=pictures(report, PRETRAINING))
    samples = {f"data-{name}": f"Samples of `{name}`" for name in report.previews}
    yield Section("data", "The data", pictures=pictures(report, samples))
    yield Section("time", "Time by stage", grid=stage_grid(report.timings))
    runs = [run_view(report, source) for source in report.sources]
    yield Section("runs", "Where the numbers come from", runs=runs)


def pictures(report: Report, captions: Mapping[str, str]) -> list[Picture]:
    """Describe pictures of the report's own folder by name."""
    return [picture(report, text, report.out / "figures" / f"{name}.png") for name, text in captions.items()]


def picture(report: Report, caption: str, path: Path, anchor: str = "") -> Picture:
    """Describe a picture, with the addresses of the files that exist."""
    png, svg = (address(report, file) if file.is_file() else "" for file in (path, path.with_suffix(".svg")))
    return Picture(caption, path, png, svg, anchor)


def address(report: Report, path: Path) -> str:
    """Link to a file, relative to the report."""
    return quote(Path(os.path.relpath(path, report.out)).as_posix(), safe="/+")


def drawn(report: Report) -> list[Picture]:
    """Describe the figures of params.yaml that the report draws itself."""
    captions = {}
    for name, figure in report.params.figures.items():
        if kind := next((kind for kind in CAPTIONS if getattr(figure, kind)), None):
            captions[name] = f"{ordinal(figure.table or figure.curves or name)}: {CAPTIONS[kind]}"
    return pictures(report, captions)


def panels(report: Report) -> Iterator[Section]:
    """List the figures whose panels the evaluation drew, a section each."""
    for name, figure in report.params.figures.items():
        if not figure.drawn:
            file = "attention" if figure.panel else "predictions"
            text = "cross-attention maps by word over the image" if figure.panel else "image, ground truth, prediction"
            runs, title = (figure.panel,) if figure.panel else figure.panels, ordinal(name)
            paths = {run: report.results / FILES[file].format(run) for run in runs}
            drawings = [picture(report, f"{title}, `{run}`: {text}", path, f"run-{run}") for run, path in paths.items()]
            yield Section(name, title, pictures=drawings)


def cost_grid(rows: Iterable[RowCost]) -> Grid:
    """Tabulate time, memory, size and multiply-adds of every row of the paper's tables."""
    heads = ("table", "row", "experiment", "training, per seed", "peak memory", "parameters (M)", "GMACs")
    lines = []
    for row in rows:
        size, macs = row.figures.get("parameters (M)"), row.figures.get("GMACs")
        numbers = (
            "" if row.seconds is None else duration(row.seconds),
            "" if row.peak_mb is None else f"{row.peak_mb:.0f} MB",
            "" if size is None else rounded(size, 1),
            "" if macs is None else rounded(macs, 2),
        )
        experiment = Entry(row.experiment, code=True, anchor=f"run-{row.experiment}")
        lines.append(entries(row.table, row.row, experiment, *numbers))
    return Grid(heads, lines, numeric=range(3, 7))


def backbone_grid(networks: Iterable[Backbone]) -> Grid:
    """Tabulate objective, images, size and proof of learning of every pre-trained network."""
    heads = ("checkpoint", "weights", "objective", "images seen", "parameters", "loss, first to last")
    lines = []
    for item in networks:
        texts = (
            item.objective or "",
            "" if item.images_seen is None else f"{item.images_seen:,}",
            "" if item.size is None else f"{item.size / 1e6:.3g} M",
            "{:.3g} → {:.3g}".format(*item.loss) if item.loss else "",
            ", ".join(f"{key} {own:.3g} against {fresh:.3g}" for key, (own, fresh) in item.measures.items()),
        )
        lines.append(entries(Entry(item.name, code=True), item.origin, *texts))
    return Grid((*heads, "trained against random"), lines, numeric=(3, 4, 5))


def released_grid(names: Iterable[str], facts: Mapping[str, Mapping[str, Any]]) -> Grid | None:
    """Tabulate weights of others: file, digest and agreement with ours, or why they were not measured."""
    lines = []
    for name in names:
        fact, code = facts.get(name, {"missing": "not run"}), Entry(name, code=True)
        if "missing" in fact:
            lines.append(entries(code, f"not measured: {fact['missing']}", "", ""))
        else:
            file = f"{fact['file']} of {fact['repo']} at {fact['revision'][:12]}" if "repo" in fact else fact["file"]
            digest = Entry(fact["sha256"][:16], code=True, title=fact["sha256"])
            lines.append(entries(code, file, digest, "; ".join(_agreement(fact))))
    ids = [f"released-{name}" for name in names]
    return Grid(("weights", "file", "SHA-256", "agreement with ours"), lines, ids=ids) if lines else None


def _agreement(fact: Mapping[str, Any]) -> Iterator[str]:
    if "parameters" in fact:
        yield f"{fact['parameters'] / 1e6:.0f} M parameters"
    if "vae_difference" in fact:
        yield f"VAE differs by {fact['vae_difference']:.1e}"
    if embeddings := fact.get("class_embeddings"):
        worst = f"worst {embeddings['worst']:.4f} ({embeddings['worst_class']})"
        order = f"{embeddings['in_order']} of {len(embeddings['by_class'])} in our order"
        yield f"class embeddings: mean cosine with ours {embeddings['mean']:.4f}, {worst}, {order}"


def stage_grid(timings: pd.DataFrame) -> Grid | None:
    """Tabulate wall time by stage, with the total; None if nothing was timed."""
    if timings.empty:
        return None
    order = {stage: index for index, stage in enumerate(STAGES)}
    stages = sorted(set(timings["stage"]), key=lambda stage: (order.get(stage, len(order)), stage))
    groups = [(stage, timings[timings["stage"] == stage]) for stage in stages]
    lines = [_stage(stage, jobs) for stage, jobs in (*groups, ("all", timings))]
    return Grid(("stage", "jobs", "total", "longest job", "peak memory"), lines, numeric=range(1, 5), total=True)


def _stage(stage: str, jobs: pd.DataFrame) -> Sequence[Entry]:
    longest, memory = jobs.nlargest(1, "seconds").iloc[0], pd.to_numeric(jobs["peak_mb"]).max()
    job = f"{duration(longest['seconds'])} ({longest['name']})"
    peak = "" if pd.isna(memory) else f"{memory:.0f} MB"
    return entries(stage, str(len(jobs)), duration(jobs["seconds"].sum()), job, peak)


def run_view(report: Report, source: Source) -> RunView:
    """Collect the provenance of one experiment, with its numbers seed by seed and links to the files behind them."""
    name = source.experiment
    filled = dict.fromkeys(ordinal(cell.table) for cell in report.cells if cell.experiment == name)
    seconds = next((row.seconds for row in report.row_costs if row.experiment == name), None)
    frame, metrics = report.frame[report.frame["experiment"] == name], []
    for (milestone, metric), values in frame.groupby(["milestone", "metric"], sort=False):
        numbers = [f"{value:.4g}" for value in values.sort_values("seed")["value"]]
        metrics.append((str(milestone), heading(str(metric)), *numbers))
    paths = {word: report.results / pattern.format(name) for word, pattern in FILES.items()}
    files = {word: address(report, path) for word, path in paths.items() if path.is_file()}
    return RunView(source, ", ".join(filled), "" if seconds is None else duration(seconds), metrics, files)

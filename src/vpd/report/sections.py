"""Builds the view: the sections of the report in order, as plain dicts that the templates in ``page/`` lay out.

Captions are prose, which may hold ``code``; all other texts are plain, and the templates escape them.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from vpd.measures.results import REAL
from vpd.report.cells import PROVENANCES
from vpd.report.claims import tally
from vpd.report.collect import MEASURES
from vpd.report.evidence import DIFFERENT, EQUAL, NEW, RECORDED, evidence_lines
from vpd.report.report import Report
from vpd.report.tables import by_row, table_view
from vpd.report.wording import duration, heading, ordinal, rounded

View = dict[str, Any]
STAGES = ("data", "pretrain", "checkpoint", "measure", "train", "evaluate", "released")
FILES = {"spec": "specs/{}.json", "metrics": "metrics/{}.json", "history": "history/{}.csv"}  # of an experiment
FILES |= {name: f"panels/{{}}/{name}.png" for name in ("predictions", "attention")}
CONTENT: View = {"text": "", "claims": (), "pictures": (), "tables": (), "grid": None, "runs": ()}
# Name on the page -> column of provenance.csv.
DIGESTS = {"code": "code", "data": "data_digest", "checkpoint": "checkpoint_digest", "commit": "commit"}
CAPTIONS = {
    "points": "VPD against the pre-training of its diffusion model; mean, standard deviation and seeds",
    "table": "mean, standard deviation and seeds of its rows; the best mean in orange",
    "curves": "learning curves of its rows, VPD in front: training loss, and the metric where it is measured on the way",
}
TRAINING = "Training loss, {}: seeds thin, their smoothed mean thick, the range of all experiments of the task grey"
PRETRAINING = {
    "pretraining-loss": "Loss of each phase of pre-training",
    "pretraining-samples": "Images drawn from prompts, one column per checkpoint; below, real ones and their reconstructions",
}
MEASURED = """Measured on scenes that no dataset shows, with a prompt for each. Objects and rooms: share of drawn images in
which another network, trained on scenes alone, finds the thing with its colour, or the room, that was asked for. Fréchet
distance: to real images in that network's features, in units of their variance. Words point: area under the ROC curve of a
word's cross-attention map against the pixels of its class; 0.5 is chance. Wrong caption: share of images whose noise is
mistaken more with the caption of another scene."""


def build_view(report: Report) -> View:
    """Build the view; draw the figures before, since a picture that does not exist is shown as not run."""
    params = report.params
    provenances = Counter(cell.provenance for cell in report.cells)
    verdicts = Counter(cell.verdict for cell in report.cells if cell.seeds)  # not those that are counted
    return {
        "scale": params.scale,
        "protocol": ", ".join(sorted({params.resolve(name).protocol for name in params.experiments})),
        "comparable": params.comparable,
        "costs_scale": report.costs_scale,
        "origins": [(name, provenances[name]) for name in PROVENANCES if name in provenances],
        "verdicts": sorted(verdicts.items()),
        "claims": tally(report.claims),
        "sections": [section for section in _sections(report) if any(section[kind] for kind in CONTENT)],
    }


def _section(name: str, title: str, **content: Any) -> View:
    return {"name": name, "title": title, **CONTENT, **content}


def _sections(report: Report) -> Iterator[View]:
    yield _section("claims", "What the paper claims", claims=report.claims)
    yield _section("beyond", "Beyond the paper", claims=report.answers)
    if report.evidence is not None:
        yield _section("evidence", "This run and the recorded evidence", grid=_evidence_grid(report.evidence))
    drawn = {}
    for name, figure in report.params.figures.items():
        if kind := next((kind for kind in CAPTIONS if getattr(figure, kind)), None):
            drawn[name] = f"{ordinal(figure.table or figure.curves or name)}: {CAPTIONS[kind]}"
    yield _section("figures", "Figures", pictures=_pictures(report, drawn))
    captions = report.captions.items()
    tables = [table_view(name, text, report.reported[name], by_row(report.cells, name)) for name, text in captions]
    yield _section("tables", "The paper's tables", tables=tables)
    released = _released_grid(report.params.released, report.released)
    yield _section("released", "Weights that others released", grid=released)
    yield from _panels(report)
    yield _section("costs", "What every row costs", grid=_cost_grid(report.row_costs))
    yield _section("backbones", "What each pre-trained network saw", grid=_backbone_grid(report.backbones))
    training = {f"training-{task}": TRAINING.format(task) for task in report.tasks}
    yield _section("training", "Training", pictures=_pictures(report, training))
    yield _section("pretraining", "The small Stable Diffusion", **_small_diffusion(report))
    samples = {f"data-{name}": f"Samples of `{name}`" for name in report.previews}
    yield _section("data", "The data", pictures=_pictures(report, samples))
    yield _section("time", "Time by stage", grid=_stage_grid(report.timings))
    runs = [_run(report, name) for name in report.params.experiments]
    yield _section("runs", "Where the numbers come from", runs=runs)


def _small_diffusion(report: Report) -> View:
    """Show what is measured of the checkpoints, or say how to measure it, if the scale or that of its weights asks for it."""
    params, shown = report.params, []
    if params.pretraining.milestones:  # the losses of shipped weights are where they were made
        shown.append("pretraining-loss")
    content: View = {}
    if report.measured is not None:
        shown.append("pretraining-samples")
        content = {"text": MEASURED, "grid": _measures_grid(report.measured, params.milestones)}
    elif params.measures:
        content = {"text": f"What it has learnt is not measured yet; `vpd measure --scale {params.scale}` does it."}
    elif params.block.shipped:
        command = f"make pretrain SCALE={params.block.shipped}"
        content = {"text": f"The measures of the weights in git are not there yet; `{command}` makes them."}
    return content | {"pictures": _pictures(report, {name: PRETRAINING[name] for name in shown})}


def _measures_grid(measured: pd.DataFrame, milestones: Mapping[str, int]) -> View:
    """Tabulate the measures of each checkpoint and of the images that bound them."""
    lines = []
    for index, line in enumerate(measured.to_dict("records")):
        name = str(line["images"])
        label = f"{name}, {milestones[name]:,} images" if name in milestones else name
        bound = " (floor)" if not index else " (ceiling)" if name == REAL else ""
        values = ((line[key] * factor, decimals) for key, (_, factor, decimals) in MEASURES.items())
        lines.append((label + bound, *("" if pd.isna(value) else rounded(value, digits) for value, digits in values)))
    heads = [head for head, _, _ in MEASURES.values()]
    return _grid(("images", *heads), lines, range(1, 1 + len(heads)))


def _pictures(report: Report, captions: Mapping[str, str]) -> list[View]:
    return [_picture(report, text, report.out / "figures" / f"{name}.png") for name, text in captions.items()]


def _picture(report: Report, caption: str, path: Path, anchor: str = "") -> View:
    """Describe a picture, with the addresses of the files that exist."""
    png, svg = (_address(report, file) if file.is_file() else "" for file in (path, path.with_suffix(".svg")))
    return {"caption": caption, "path": path, "address": png, "vector": svg, "anchor": anchor}


def _address(report: Report, path: Path) -> str:
    return quote(Path(os.path.relpath(path, report.out)).as_posix(), safe="/+")


def _panels(report: Report) -> Iterator[View]:
    """List the figures whose panels the evaluation drew, a section each."""
    for name, figure in report.params.figures.items():
        if not figure.drawn:
            file = "attention" if figure.panel else "predictions"
            text = "cross-attention maps by word over the image" if figure.panel else "image, ground truth, prediction"
            runs, title = (figure.panel,) if figure.panel else figure.panels, ordinal(name)
            paths = {run: report.results / FILES[file].format(run) for run in runs}
            shown = (_picture(report, f"{title}, `{n}`: {text}", path, f"run-{n}") for n, path in paths.items())
            yield _section(name, title, pictures=list(shown))


def _entry(text: str, code: bool = False, anchor: str = "", title: str = "") -> View:
    """One cell of a grid: an id (``code``), what it leads to in the page, and its full text if it is shortened."""
    return {"text": text or "–", "code": code, "anchor": anchor, "title": title}


def _grid(
    heads: Iterable[str], lines: Iterable[Iterable[View | str]], numeric: Iterable[int] = (), **more: Any
) -> View:
    """A plain table: ``numeric`` columns are aligned to the right; ``total`` marks the last row, ``ids`` name all."""
    rows = [[_entry(cell) if isinstance(cell, str) else cell for cell in line] for line in lines]
    return {"heads": heads, "rows": rows, "numeric": numeric, "total": False, "ids": ()} | more


def _evidence_grid(comparison: pd.DataFrame) -> View:
    """Tabulate per experiment how many recorded values this run has again."""
    heads = ("experiment", EQUAL, DIFFERENT, RECORDED, NEW, "differences: recorded and here")
    lines: list[tuple[View | str, ...]] = []
    for name, *texts in evidence_lines(comparison):
        lines.append((_entry(name, code=name != "all"), *texts))
    return _grid(heads, lines, range(1, 5), total=True)


def _cost_grid(rows: Iterable[Mapping[str, Any]]) -> View:
    """Tabulate time, memory, size and multiply-adds of every row of the paper's tables."""
    heads = ("table", "row", "experiment", "training, per seed", "peak memory", "parameters (M)", "GMACs")
    sizes = {"parameters (M)": 1, "GMACs": 2}
    lines = []
    for row in rows:
        numbers = ["" if row["seconds_per_seed"] is None else duration(row["seconds_per_seed"])]
        numbers.append("" if row["peak_mb"] is None else f"{row['peak_mb']:.0f} MB")
        numbers += ["" if row[name] is None else rounded(row[name], decimals) for name, decimals in sizes.items()]
        experiment = _entry(row["experiment"], code=True, anchor=f"run-{row['experiment']}")
        lines.append((row["table"], row["row"], experiment, *numbers))
    return _grid(heads, lines, range(3, 7))


def _backbone_grid(networks: Iterable[Mapping[str, Any]]) -> View:
    """Tabulate objective, images, size and proof of learning of every pre-trained network."""
    heads = ("checkpoint", "weights", "objective", "images seen", "parameters", "loss, first to last")
    lines = []
    for item in networks:
        texts = (
            item["objective"] or "",
            "" if item["images_seen"] is None else f"{item['images_seen']:,}",
            "" if item["parameters"] is None else f"{item['parameters'] / 1e6:.3g} M",
            "" if item["loss_first"] is None else f"{item['loss_first']:.3g} → {item['loss_last']:.3g}",
            ", ".join(f"{key} {own:.3g} against {fresh:.3g}" for key, (own, fresh) in item["measures"].items()),
        )
        lines.append((_entry(item["checkpoint"], code=True), item["source"], *texts))
    return _grid((*heads, "trained against random"), lines, (3, 4, 5))


def _released_grid(names: Iterable[str], facts: Mapping[str, Mapping[str, Any]]) -> View | None:
    """Tabulate weights of others: file, digest and agreement with ours, or why they were not measured."""
    lines: list[tuple[View | str, ...]] = []
    for name in names:
        fact, code = facts.get(name, {"missing": "not run"}), _entry(name, code=True)
        if "missing" in fact:
            lines.append((code, f"not measured: {fact['missing']}", "", ""))
        else:
            file = f"{fact['file']} of {fact['repo']} at {fact['revision'][:12]}" if "repo" in fact else fact["file"]
            digest = _entry(fact["sha256"][:16], code=True, title=fact["sha256"])
            lines.append((code, file, digest, "; ".join(_agreement(fact))))
    ids = [f"released-{name}" for name in names]
    return _grid(("weights", "file", "SHA-256", "agreement with ours"), lines, ids=ids) if lines else None


def _agreement(fact: Mapping[str, Any]) -> Iterator[str]:
    if "parameters" in fact:
        yield f"{fact['parameters'] / 1e6:.0f} M parameters"
    if "vae_difference" in fact:
        yield f"VAE differs by {fact['vae_difference']:.1e}"
    if embeddings := fact.get("class_embeddings"):
        worst = f"worst {embeddings['worst']:.4f} ({embeddings['worst_class']})"
        order = f"{embeddings['in_order']} of {len(embeddings['by_class'])} in our order"
        yield f"class embeddings: mean cosine with ours {embeddings['mean']:.4f}, {worst}, {order}"


def _stage_grid(timings: pd.DataFrame) -> View:
    """Tabulate wall time by stage, with the total; without rows if nothing was timed."""
    stages = dict(iter(timings.groupby("stage")))
    order = [*(stage for stage in STAGES if stage in stages), *(stage for stage in stages if stage not in STAGES)]
    lines = []
    for stage, jobs in [*((stage, stages[stage]) for stage in order), ("all", timings)] if stages else []:
        longest, memory = jobs.nlargest(1, "seconds").iloc[0], pd.to_numeric(jobs["peak_mb"]).max()
        job, peak = f"{duration(longest['seconds'])} ({longest['name']})", "" if pd.isna(memory) else f"{memory:.0f} MB"
        lines.append((str(stage), str(len(jobs)), duration(jobs["seconds"].sum()), job, peak))
    return _grid(("stage", "jobs", "total", "longest job", "peak memory"), lines, range(1, 5), total=True)


def _run(report: Report, name: str) -> View:
    """Collect the provenance of one experiment, with its numbers seed by seed and links to the files behind them."""
    spec, runs = report.params.resolve(name), report.runs[name]
    frame, metrics = report.frame[report.frame["experiment"] == name], []
    for (milestone, metric), values in frame.groupby(["milestone", "metric"], sort=False):
        numbers = [f"{value:.4g}" for value in values.sort_values("seed")["value"]]
        metrics.append((str(milestone), heading(str(metric)), *numbers))
    digests = {word: sorted({run[column] for run in runs} - {""}) for word, column in DIGESTS.items()}
    filled = dict.fromkeys(ordinal(cell.table) for cell in report.cells if cell.experiment == name)
    seconds = next(row["seconds_per_seed"] for row in report.row_costs if row["experiment"] == name)
    paths = {word: report.results / pattern.format(name) for word, pattern in FILES.items()}
    return {
        "experiment": name,
        "task": spec.task,
        "what": f"{spec.task} on {spec.variant or spec.dataset}, {spec.schedule} schedule, from {spec.checkpoint}",
        "fills": ", ".join(filled),
        "took": "" if seconds is None else duration(seconds),
        "runs": runs,
        "digests": {word: found for word, found in digests.items() if found or word != "commit"},
        "metrics": metrics,
        "files": {word: _address(report, path) for word, path in paths.items() if path.is_file()},
    }

"""Builds the view: the sections of the report in order, as plain dicts that the templates in ``page/`` lay out.

Captions are prose, which may hold ``code``; all other texts are plain, and the templates escape them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpd.report.cells import PROVENANCES
from vpd.report.claims import tally
from vpd.report.experiments import FILES, address, experiment_view, made
from vpd.report.grids import (
    View,
    backbone_grid,
    cell_grid,
    comparison_grid,
    cost_grid,
    evidence_grid,
    measures_grid,
    released_grid,
    run_grid,
    stage_grid,
)
from vpd.report.report import Report
from vpd.report.tables import by_row, table_view
from vpd.report.wording import ordinal

CONTENT: View = {"text": "", "claims": (), "pictures": (), "tables": (), "grid": None, "runs": ()}
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
    runs = [experiment_view(report, name) for name in params.experiments]
    return {
        "scale": params.scale,
        "protocol": ", ".join(sorted({params.resolve(name).protocol for name in params.experiments})),
        "comparable": params.comparable,
        "recorded": report.evidence is not None,
        "outdated": report.outdated,
        "costs_scale": report.costs_scale,
        "origins": [(name, provenances[name]) for name in PROVENANCES if name in provenances],
        "verdicts": sorted(verdicts.items()),
        "claims": tally(report.claims),
        "made": made(report),
        "sections": [section for section in _sections(report, runs) if any(section[kind] for kind in CONTENT)],
        # Every line of what the sections sum up, on the page alone.
        "long": {
            "claims": comparison_grid(report.claims),
            "beyond": comparison_grid(report.answers),
            "tables": cell_grid(report.cells, report.reported),
            "runs": run_grid(runs),
        },
    }


def _section(name: str, title: str, **content: Any) -> View:
    return {"name": name, "title": title, **CONTENT, **content}


def _sections(report: Report, runs: list[View]) -> Iterator[View]:
    yield _section("claims", "What the paper claims", claims=report.claims)
    yield _section("beyond", "Beyond the paper", claims=report.answers)
    if report.evidence is not None:
        yield _section("evidence", "This run and the recorded evidence", grid=evidence_grid(report.evidence))
    drawn = {}
    for name, figure in report.params.figures.items():
        if kind := next((kind for kind in CAPTIONS if getattr(figure, kind)), None):
            drawn[name] = f"{ordinal(figure.table or figure.curves or name)}: {CAPTIONS[kind]}"
    yield _section("figures", "Figures", pictures=_pictures(report, drawn))
    captions = report.captions.items()
    tables = [table_view(name, text, report.reported[name], by_row(report.cells, name)) for name, text in captions]
    yield _section("tables", "The paper's tables", tables=tables)
    released = released_grid(report.params.released, report.released)
    yield _section("released", "Weights that others released", grid=released)
    yield from _panels(report)
    yield _section("costs", "What every row costs", grid=cost_grid(report.row_costs))
    yield _section("backbones", "What each pre-trained network saw", grid=backbone_grid(report.backbones))
    training = {f"training-{task}": TRAINING.format(task) for task in report.tasks}
    yield _section("training", "Training", pictures=_pictures(report, training))
    yield _section("pretraining", "The small Stable Diffusion", **_small_diffusion(report))
    samples = {f"data-{name}": f"Samples of `{name}`" for name in report.previews}
    yield _section("data", "The data", pictures=_pictures(report, samples))
    yield _section("time", "Time by stage", grid=stage_grid(report.timings, report.params.experiments))
    yield _section("runs", "Where the numbers come from", runs=runs)


def _small_diffusion(report: Report) -> View:
    """Show what is measured of the checkpoints, or say how to measure it, if the scale or that of its weights asks for it."""
    params, shown = report.params, []
    if params.pretraining.milestones:  # the losses of shipped weights are where they were made
        shown.append("pretraining-loss")
    content: View = {}
    if report.measured is not None:
        shown.append("pretraining-samples")
        content = {"text": MEASURED, "grid": measures_grid(report.measured, params.milestones)}
    elif params.measures:
        content = {"text": f"What it has learnt is not measured yet; `vpd measure --scale {params.scale}` does it."}
    elif params.block.shipped:
        command = f"make pretrain SCALE={params.block.shipped}"
        content = {"text": f"The measures of the weights in git are not there yet; `{command}` makes them."}
    return content | {"pictures": _pictures(report, {name: PRETRAINING[name] for name in shown})}


def _pictures(report: Report, captions: Mapping[str, str]) -> list[View]:
    return [_picture(report, text, report.out / "figures" / f"{name}.png") for name, text in captions.items()]


def _picture(report: Report, caption: str, path: Path, run: str = "", kind: str = "") -> View:
    """Describe a picture, with the addresses of the files that exist; ``run`` is the experiment whose panel it is."""
    png, svg = (address(report, file) if file.is_file() else "" for file in (path, path.with_suffix(".svg")))
    return {"caption": caption, "path": path, "address": png, "vector": svg, "run": run, "kind": kind}


def _panels(report: Report) -> Iterator[View]:
    """List the figures whose panels the evaluation drew, a section each."""
    for name, figure in report.params.figures.items():
        if not figure.drawn:
            file = "attention" if figure.panel else "predictions"
            text = "cross-attention maps by word over the image" if figure.panel else "image, ground truth, prediction"
            runs, title = (figure.panel,) if figure.panel else figure.panels, ordinal(name)
            paths = {run: report.results / FILES[file].format(run) for run in runs}
            shown = (_picture(report, f"{title}, `{n}`: {text}", path, n, file) for n, path in paths.items())
            yield _section(name, title, pictures=list(shown))

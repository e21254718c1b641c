"""report.html: the whole report as one self-contained page, without a script and without anything to load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vpd.report import pictures as packing
from vpd.report.cells import PROVENANCES, counts
from vpd.report.context import Report
from vpd.report.markdown import backbone_texts, cost_texts, duration, plural, public_source, stage_times
from vpd.report.names import heading, ordinal
from vpd.report.provenance import Source
from vpd.report.sections import CAPTIONS, TRAINING, drawn
from vpd.report.views import badge, claim_view, table_view, tally

TEMPLATES = Path(__file__).parent / "page"
RUN_PAGES = (("spec", "specs/{}.json"), ("metrics", "metrics/{}.json"), ("history", "history/{}.csv"))
PANELS = (("predictions", "panels/{}/predictions.png"), ("attention", "panels/{}/attention.png"))


@cache
def environment() -> Environment:
    """Templates in ``page/``; everything that they print is escaped, and a misspelt name is an error."""
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made


def page(report: Report) -> str:
    """The page's text; its pictures are those that lie under the report's folder already."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment().get_template("report.html").render(style=style, **content(report))


def content(report: Report) -> dict:
    """Everything that the template shows."""
    tables = [table_view(report, name) for name in report.tables]
    claims, answers = (list(map(claim_view, found)) for found in (report.claims, report.answers))
    found = counts(report.cells, "provenance")
    return {
        "scale": report.params.scale,
        "protocol": report.protocol,
        "comparable": report.params.comparable,
        "origins": [(name, found[name]) for name in PROVENANCES if name in found],
        "verdicts": tally(badge(cell.verdict) for cell in report.cells if cell.values),
        "claim_verdicts": tally(claim.badge for claim in claims),
        "claims": claims,
        "answers": answers,
        "figures": figures(report),
        "tables": tables,
        "released": released(report),
        "panels": panels(report),
        "counted_scale": report.counted_scale,
        "costs": [(row, cost_texts(row)) for row in report.row_costs],
        "backbones": [(item, backbone_texts(item)) for item in report.backbones],
        "training": training(report),
        "pretraining": pretraining(report),
        "data": pictures(report, {f"data-{name}": f"Samples of {name}" for name in report.previews}),
        "stages": stage_times(report.timings),
        "runs": [run(report, source) for source in report.sources],
    }


# ------------------------------------------------------------------------------------------------------------- pictures
def pictures(report: Report, captions: dict[str, str]) -> list[dict]:
    """Pictures of the report's own folder of figures, by name."""
    folder = report.out / "figures"
    return [
        {"name": name, "caption": text, **packing.figure(folder / f"{name}.png")} for name, text in captions.items()
    ]


def figures(report: Report) -> list[dict]:
    """Trends, then dots, then learning curves."""
    captions, kinds = drawn(report), list(CAPTIONS)
    specs = report.params.figures
    ordered = sorted(captions, key=lambda name: next(i for i, kind in enumerate(kinds) if getattr(specs[name], kind)))
    return pictures(report, {name: captions[name] for name in ordered})


def training(report: Report) -> list[dict]:
    """Training losses, one picture per task."""
    return pictures(report, {f"training-{task}": TRAINING.format(task) for task in report.tasks})


def pretraining(report: Report) -> list[dict]:
    """The small Stable Diffusion, where this scale pre-trains one."""
    if not report.params.pretraining.milestones:
        return []
    captions = {
        "pretraining-loss": "Loss of each phase of pre-training",
        "pretraining-samples": "Images drawn from prompts, one line per milestone",
    }
    return pictures(report, captions)


def panels(report: Report) -> list[dict]:
    """Figures 4 and 5: what the evaluation drew, or that it was not run."""
    found = []
    for name, figure in report.params.figures.items():
        if figure.drawn:
            continue
        kind = "attention" if figure.panel else "predictions"
        text = "cross-attention maps by word over the image" if figure.panel else "image, ground truth, prediction"
        shown = []
        for experiment in figure.panels or (figure.panel,):
            path = report.results / "panels" / experiment / f"{kind}.png"
            shown.append({"experiment": experiment, "uri": packing.data_uri(path) if path.is_file() else ""})
        found.append({"name": name, "title": ordinal(name), "text": text, "pictures": shown})
    return found


# ----------------------------------------------------------------------------------------------------------------- runs
def released(report: Report) -> list[dict]:
    """A line per file of weights that others trained: digest and agreement, or why it was not measured."""
    facts = {**report.released, **report.public}
    return [{"name": name, **_released(facts.get(name, {"missing": "not run"}))} for name in report.params.released]


def _released(fact: Mapping) -> dict[str, str]:
    if "missing" in fact:
        return {"missing": fact["missing"]}
    embeddings = fact.get("class_embeddings")
    notes = [f"VAE differs by {fact['vae_difference']:.1e}"] if "vae_difference" in fact else []
    if embeddings:
        worst = f"worst {embeddings['worst']:.4f} ({embeddings['worst_class']})"
        notes.append(f"class embeddings: cosine with ours {embeddings['mean']:.4f} in the mean, {worst}")
    return {"missing": "", "file": public_source(fact), "sha256": fact["sha256"], "notes": "; ".join(notes) or "–"}


def run(report: Report, source: Source) -> dict:
    """Provenance of one experiment, with its numbers seed by seed and links to the files behind them."""
    name = source.experiment
    filled = dict.fromkeys(ordinal(cell.table) for cell in report.cells if cell.experiment == name)
    timing = next((row for row in report.row_costs if row.experiment == name), None)
    took = duration(timing.seconds) if timing and timing.seconds is not None else ""
    return {
        "source": source,
        "fills": ", ".join(filled),
        "took": took,
        "seeds": plural(len(source.runs), "seed"),
        "inputs": {
            kind: sorted({getattr(r, kind) for r in source.runs} - {""}) for kind in ("code", "data", "checkpoint")
        },
        "metrics": seed_metrics(report, name),
        "files": _files(report, name),
    }


def seed_metrics(report: Report, name: str) -> list[dict]:
    """Every metric at every milestone with its value by seed."""
    frame = report.frame[report.frame["experiment"] == name]
    lines = []
    for (milestone, metric), values in frame.groupby(["milestone", "metric"], sort=False):
        numbers = [f"{value:.4g}" for value in values.sort_values("seed")["value"]]
        lines.append({"milestone": milestone, "metric": heading(metric), "values": numbers})
    return lines


def _files(report: Report, name: str) -> list[tuple[str, str]]:
    """Files of an experiment that exist, as addresses relative to the page."""
    found = []
    for word, pattern in (*RUN_PAGES, *PANELS):
        path = report.results / pattern.format(name)
        if path.is_file():
            found.append((word, quote(Path(os.path.relpath(path, report.out)).as_posix(), safe="/+")))
    return found

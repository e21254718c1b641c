"""What the page tells of one experiment: values by seed, loss curve, provenance, spec, and the commands that make it again."""

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml

from vpd.report.cells import number
from vpd.report.grids import View, entry, grid
from vpd.report.report import Report
from vpd.report.wording import duration, heading, ordinal

FILES = {"spec": "specs/{}.json", "metrics": "metrics/{}.json", "history": "history/{}.csv"}  # of an experiment
FILES |= {name: f"panels/{{}}/{name}.png" for name in ("predictions", "attention")}
# Name on the page -> column of provenance.csv.
DIGESTS = {"code": "code", "data": "data_digest", "checkpoint": "checkpoint_digest", "commit": "commit"}
POINTS, WIDTH, HEIGHT = 60, 300, 100  # of a loss curve: points of a seed, and the size of its drawing


def made(report: Report) -> dict[str, list[str]]:
    """Say when, from which commits and on which machines the experiments were trained, as far as it is recorded."""
    runs = [run for runs in report.runs.values() for run in runs]
    ends = sorted({run["ended"] for run in runs} - {""})
    return {
        "ended": list(dict.fromkeys((*ends[:1], *ends[-1:]))),
        "commits": sorted({run["commit"] for run in runs} - {""}),
        "machines": sorted(set(report.timings["machine"]) - {""}),
    }


def experiment_view(report: Report, name: str) -> View:
    """Collect all that the page shows of one experiment."""
    spec, runs = report.params.resolve(name), report.runs[name]
    frame, digests = report.frame[report.frame["experiment"] == name], {}
    for word, column in DIGESTS.items():
        digests[word] = sorted({run[column] for run in runs} - {""})
    filled = dict.fromkeys(ordinal(cell.table) for cell in report.cells if cell.experiment == name)
    seconds = next(row["seconds_per_seed"] for row in report.row_costs if row["experiment"] == name)
    paths = {word: report.results / pattern.format(name) for word, pattern in FILES.items()}
    jobs = report.timings[(report.timings["stage"] == "train") & (report.timings["name"] == name)]
    data = spec.variant or spec.dataset
    in_figure = any(name in figure.panels for figure in report.params.figures.values())  # there it is larger
    return {
        "experiment": name,
        "task": spec.task,
        "data": data,
        "schedule": spec.schedule,
        "checkpoint": spec.checkpoint,
        "what": f"{spec.task} on {data}, {spec.schedule} schedule, from {spec.checkpoint}",
        "fills": ", ".join(filled),
        "seconds": seconds,
        "took": "" if seconds is None else duration(seconds),
        "machine": ", ".join(sorted(set(jobs["machine"]) - {""})),
        "runs": runs,
        "digests": digests,
        "numbers": value_grid(frame),
        "losses": loss_curve(report.histories.get(name)),
        "panel": None if in_figure or not paths["predictions"].is_file() else paths["predictions"],
        "spec": yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=60),
        "digest": spec.digest(),
        "commands": commands(name, spec.scale, spec.protocol),
        "files": {word: address(report, path) for word, path in paths.items() if path.is_file()},
    }


def address(report: Report, path: Path) -> str:
    """Where a file is, seen from the report."""
    return quote(Path(os.path.relpath(path, report.out)).as_posix(), safe="/+")


def commands(name: str, scale: str, protocol: str) -> Mapping[str, str]:
    """Return what makes an experiment's metrics again in the project's folder, by workflow engine."""
    choice = f"--config scale={scale} protocol={protocol}"  # whatever params.yaml says by then
    return {
        "Snakemake": f"snakemake --cores 2 {choice} -- results/{scale}/metrics/{name}.json",
        f"DVC, with scale: {scale} and protocol: {protocol} in params.yaml": f"dvc repro evaluate@{name}",
    }


def value_grid(frame: pd.DataFrame) -> View:
    """Tabulate the values of one experiment: a row per milestone and metric, a column per seed."""
    seeds, lines = sorted(frame["seed"].unique()), list[tuple[View | str, ...]]()
    for (milestone, metric), found in frame.groupby(["milestone", "metric"], sort=False):
        by_seed = found.set_index("seed")["value"].reindex(seeds)
        summary = (by_seed.mean(), by_seed.std()) if len(seeds) > 1 else ()
        values = [None if pd.isna(value) else float(value) for value in (*summary, *by_seed)]
        shown = [entry("" if value is None else f"{value:.4g}", value) for value in values]
        lines.append((str(milestone), heading(str(metric)), *shown))
    heads = ("milestone", "metric", *(("mean", "sd") if len(seeds) > 1 else ()), *(f"seed {seed}" for seed in seeds))
    return grid(heads, lines, range(2, len(heads)))


def loss_curve(history: pd.DataFrame | None) -> View | None:
    """Draw the training loss: SVG points of a line per seed in a box of ``WIDTH`` by ``HEIGHT``, and the ends of both axes.

    A seed with more than ``POINTS`` points is averaged over stretches of equal length. None if there is no finite loss.
    """
    if history is None:
        return None
    known = history[np.isfinite(history["step"]) & np.isfinite(history["loss"])]
    if known.empty:
        return None
    curves = []
    for _, seed in known.sort_values("step").groupby("seed"):
        parts = np.array_split(seed[["step", "loss"]].to_numpy(float), min(len(seed), POINTS))
        curves.append(np.array([part.mean(axis=0) for part in parts]))
    steps, losses = known["step"], np.concatenate(curves)[:, 1]
    low, high = np.array([steps.min(), losses.min()]), np.array([steps.max(), losses.max()])
    scale = np.where(high > low, high - low, 1.0)
    lines = [((curve - low) / scale * (WIDTH, -HEIGHT) + (0, HEIGHT)).round(1).tolist() for curve in curves]
    points = [" ".join(f"{x:g},{y:g}" for x, y in (line * 2 if len(line) == 1 else line)) for line in lines]
    ends = {"steps": [number(end) for end in (low[0], high[0])], "losses": [f"{end:.3g}" for end in (low[1], high[1])]}
    return {"lines": points, "size": f"0 0 {WIDTH} {HEIGHT}", **ends}

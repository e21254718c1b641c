"""Results of the whole matrix as the other stages leave them, invented, for the tests of the report."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from evaluated_world import write_evaluated
from vpd.config.params import Params, load_params
from vpd.config.tables import FigureSpec, QuestionSpec
from vpd.report.cells import Cell
from vpd.report.write import write_report
from vpd.utils.files import write_json
from vpd.utils.fingerprint import Fingerprint

PARAMS = Path(__file__).parents[1] / "params.yaml"
QUESTIONS = tuple(
    QuestionSpec(title=title, metric="final.miou_ss", first=first, second="seg-fast")
    for title, first in (("Does the scaling of latents matter?", "seg-scaled-latents"), ("Is t = 0 better?", "seg-t0"))
)
MACHINE = "Difference Engine, 2 cores"
METRICS = {
    "segmentation": {"miou_ss": 30.0, "macc_ss": 40.0, "aacc_ss": 70.0, "miou_ms": 31.0},
    "referring": {"oiou": 45.0, "miou": 44.0, "p50": 50.0},
    "depth": {"rmse": 0.6, "delta1": 0.8, "delta2": 0.9, "delta3": 0.95, "rel": 0.2, "log10": 0.08},
}


def write_metrics(folder, spec, generator, seeds):
    level = generator.normal(0, 1.5)
    results = []
    for seed in seeds:
        for milestone, share in spec.training.milestones.items():
            factors = {key: 1 + 0.05 * level * share + generator.normal(0, 0.02) for key in METRICS[spec.task]}
            metrics = {key: round(METRICS[spec.task][key] * factor, 6) for key, factor in factors.items()}
            results.append({"seed": seed, "milestone": milestone, "step": int(200 * share), "metrics": metrics})
    inputs = {"data": "da7a" * 16, "checkpoint": "cafe" * 16}
    write_evaluated(folder, spec.name, results, made=Fingerprint(spec.digest(), "c0de" * 4, inputs))


def write_history(path, generator, seeds):
    steps = np.arange(10, 201, 10)
    losses = [2 * np.exp(-steps / 80) + 0.3 + generator.normal(0, 0.05, 20) for _ in seeds]
    runs = zip(seeds, losses, strict=True)
    frames = [pd.DataFrame({"seed": seed, "step": steps, "loss": loss}) for seed, loss in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(path, index=False)


def write_picture(path, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 255, (12, 36, 3), dtype=np.uint8)).save(path)


def report_params(scale="mini") -> Params:
    """The project's own matrix, with figures of every kind and questions whether or not params.yaml has them."""
    params = load_params(PARAMS, scale=scale)
    figures = params.figures | {"dots": FigureSpec(table="table2")}
    figures |= {f"learning-{name}": FigureSpec(curves=name) for name in params.tables if "-" not in name}
    return Params(params.document.model_copy(update={"figures": figures, "questions": QUESTIONS}), params.source)


def write_results(root, params, seeds=(0, 1, 2)):
    """Results, pre-training outputs and previews as the other stages leave them."""
    generator = np.random.default_rng(7)
    results = root / "results"
    for name in params.experiments:
        spec = params.resolve(name)
        write_metrics(results, spec, generator, seeds)
        write_history(results / "history" / f"{name}.csv", generator, seeds)
        for panel in ("predictions", "attention"):
            write_picture(results / "panels" / name / f"{panel}.png", generator)
        write_json(results / "specs" / f"{name}.json", spec.model_dump(mode="json"))
        timing = {"stage": "train", "name": name, "seconds": 100.5, "steps": 200, "peak_mb": 800}
        timing["machine"] = MACHINE
        write_json(results / "timing" / f"train-{name}.json", timing)
    measures = {"fresh": {"linear_probe": 0.22, "chance": 0.2}, "trained": {"linear_probe": 0.61, "chance": 0.2}}
    manifest = {"source": "pretrained", "parameters": {"vision": 1_200_000, "language": 300_000}, "images_seen": 6400}
    manifest |= {"objective": "masked-image"}
    manifest |= {"phases": {"masked-image": {"loss": {"first": 2.5, "last": 0.75}, "measures": measures}}}
    for name in params.backbones:
        write_json(results / "backbones" / f"{name}.json", manifest)
    (root / "pretraining").mkdir()
    steps = np.arange(20, 401, 20)
    phases = [pd.DataFrame({"phase": name, "step": steps, "loss": 1 / np.sqrt(steps)}) for name in ("vae", "unet")]
    pd.concat(phases).to_csv(root / "pretraining" / "history.csv", index=False)
    previews = {"ade20k": root / "data" / "ade20k.png"}
    write_picture(previews["ade20k"], generator)
    return results, root / "pretraining", previews


def extras(root, params):
    """The optional input of the report: a file as ``vpd cost --out`` writes it, of networks of the paper's size."""
    figures = {"parameters (M)": 902.4, "trainable (M)": 868.2, "GMACs": 971.77}
    counts = dict.fromkeys(params.experiments, 500.0) | {"seg-full": 890.85, "seg-swin-l": 700.0}
    write_json(root / "costs.json", {name: {"figures": figures | {"GMACs, mmcv": n}} for name, n in counts.items()})
    return {"costs": root / "costs.json", "costs_scale": "paper"}


def write_world(root, params):
    """The invented results with their report, of networks counted at the paper's size."""
    inputs = write_results(root, params)
    write_report(params, *inputs, inputs[0], **extras(root, params))
    return inputs


def measured(row, values, metric="miou_ss", paper=None):
    """A cell with one value per seed."""
    return Cell("t", row, "c", paper, "measured", "miniature", row, metric, tuple(range(len(values))), tuple(values))

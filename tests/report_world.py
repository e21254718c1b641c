"""Results of the whole matrix as the other stages leave them, invented, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vpd.config.params import Params, load_params
from vpd.config.table_checks import FigureSpec, QuestionSpec
from vpd.report.cells import Cell

PARAMS = Path(__file__).parents[1] / "params.yaml"
QUESTIONS = (
    QuestionSpec(
        title="Does the scaling of latents matter?",
        metric="final.miou_ss",
        first="seg-scaled-latents",
        second="seg-fast",
    ),
    QuestionSpec(title="Is t = 0 or 1 better?", metric="final.miou_ss", first="seg-t0", second="seg-fast"),
)
METRICS = {
    "segmentation": {"miou_ss": 30.0, "macc_ss": 40.0, "aacc_ss": 70.0, "miou_ms": 31.0},
    "referring": {"oiou": 45.0, "miou": 44.0, "p50": 50.0},
    "depth": {"rmse": 0.6, "delta1": 0.8, "delta2": 0.9, "delta3": 0.95, "rel": 0.2, "log10": 0.08},
}


def write_metrics(folder, spec, generator, seeds):
    level = generator.normal(0, 1.5)
    runs = [(seed, name, share) for seed in seeds for name, share in spec.training.milestones.items()]
    results = [
        {
            "seed": seed,
            "milestone": name,
            "step": int(200 * share),
            "metrics": {
                key: round(value * (1 + 0.05 * level * share + generator.normal(0, 0.02)), 6)
                for key, value in METRICS[spec.task].items()
            },
        }
        for seed, name, share in runs
    ]
    content = {
        "experiment": spec.name,
        "scale": spec.scale,
        "task": spec.task,
        "spec": spec.digest(),
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{spec.name}.json").write_text(json.dumps(content))


def write_history(path, generator, seeds):
    steps = np.arange(10, 201, 10)
    frames = [
        pd.DataFrame(
            {
                "seed": seed,
                "step": steps,
                "epoch": 0,
                "loss": 2 * np.exp(-steps / 80) + 0.3 + generator.normal(0, 0.05, 20),
            }
        )
        for seed in seeds
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).assign(lr=1e-4, lr_unet=1e-5).to_csv(path, index=False)


def write_picture(path, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 255, (12, 36, 3), dtype=np.uint8)).save(path)


def write_runs(folder, spec, seeds):
    """The manifest of all seeds' runs, with invented digests."""
    runs = {
        f"seed{seed}": {
            "spec": spec.training_digest(),
            "code": "c0de" * 4,
            "data": "da7a" * 16,
            "checkpoint": "cafe" * 16,
            "files": {"final.safetensors": f"{seed:x}" * 64},
        }
        for seed in seeds
    }
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"spec": spec.training_digest(), "seeds": runs}))


def write_backbones(folder, params):
    """What the backbone stage leaves in the results of every backbone."""
    folder.mkdir(parents=True)
    for name in params.backbones:
        manifest = {"name": name, "source": "pretrained", "parameters": {"vision": 1_200_000, "language": 300_000}}
        measures = {"fresh": {"linear_probe": 0.22, "chance": 0.2}, "trained": {"linear_probe": 0.61, "chance": 0.2}}
        phase = {"loss": {"first": 2.5, "last": 0.75}, "measures": measures}
        manifest |= {"objective": "masked-image", "images_seen": 6400, "phases": {"masked-image": phase}}
        (folder / f"{name}.json").write_text(json.dumps(manifest))


def write_costs(path, params, counts):
    """A file as ``vpd cost --out`` writes it; ``counts`` are multiply-adds in mmcv's way by experiment."""
    entries = {}
    for name in params.experiments:
        figures = {
            "parameters (M)": 902.4,
            "trainable (M)": 868.2,
            "GMACs": 971.77,
            "GMACs, mmcv": counts.get(name, 500.0),
        }
        entries[name] = {"resources": {"gpus": 1}, "figures": figures}
    path.write_text(json.dumps(entries))
    return path


def report_params(scale="mini") -> Params:
    """The project's own matrix, with figures of every kind and questions whether or not params.yaml has them."""
    params = load_params(PARAMS, scale=scale)
    figures = params.figures | {"dots": FigureSpec(table="table2")}
    figures |= {
        f"learning-{name}": FigureSpec(curves=name) for name in ("table1", "table2", "table3", "table4", "table5")
    }
    return Params(params.document.model_copy(update={"figures": figures, "questions": QUESTIONS}), params.source)


def write_results(root, params, seeds=(0, 1, 2)):
    """Results, pre-training outputs and previews as the other stages leave them."""
    generator = np.random.default_rng(7)
    results = root / "results"
    for name in params.experiments:
        spec = params.resolve(name)
        write_metrics(results / "metrics", spec, generator, seeds)
        write_history(results / "history" / f"{name}.csv", generator, seeds)
        for panel in ("predictions", "attention"):
            write_picture(results / "panels" / name / f"{panel}.png", generator)
        (results / "specs").mkdir(exist_ok=True)
        (results / "specs" / f"{name}.json").write_text(params.resolve(name).model_dump_json(indent=1))
        write_runs(results / "runs" / name, params.resolve(name), seeds)
        timing = {"stage": "train", "name": name, "seconds": 100.5, "steps": 200, "peak_mb": 800}
        (results / "timing").mkdir(exist_ok=True)
        (results / "timing" / f"train-{name}.json").write_text(json.dumps(timing))
    write_backbones(results / "backbones", params)
    write_picture(root / "pretraining" / "samples.png", generator)
    steps = np.arange(20, 401, 20)
    frames = [
        pd.DataFrame({"phase": phase, "step": steps, "loss": 1 / np.sqrt(steps)}) for phase in ("vae", "clip", "unet")
    ]
    pd.concat(frames).to_csv(root / "pretraining" / "history.csv", index=False)
    previews = {"ade20k": root / "data" / "ade20k.png"}
    write_picture(previews["ade20k"], generator)
    return results, root / "pretraining", previews


def extras(root, params):
    """The optional input of the report: costs of networks of the paper's size."""
    if not (root / "costs.json").exists():
        write_costs(root / "costs.json", params, {"seg-full": 890.85, "seg-swin-l": 700.0})
    return {"costs": root / "costs.json", "costs_scale": "paper"}


def measured(row, values, metric="miou_ss", paper=None):
    """A cell with one value per seed."""
    return Cell("t", row, "c", paper, "measured", "miniature", row, metric, tuple(range(len(values))), tuple(values))

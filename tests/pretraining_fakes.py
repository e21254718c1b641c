"""A tiny captions dataset, a pre-training spec that takes seconds, and runs that stop or are killed half-way."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from PIL import Image, ImageDraw

from vpd.config.schema import MeasuresSpec, PretrainingSpec
from vpd.measures import drawing
from vpd.pretraining import loop
from vpd.utils.digests import sha256

VAE = {"channels": [8, 16], "layers_per_block": 1, "steps": 5, "batch_size": 4, "lr": 1e-3, "kl_weight": 1e-6}
TEXT = {"vocabulary": 600, "width": 16, "layers": 1, "heads": 2, "length": 12, "patch_size": 8}
UNET = {"channels": [8, 16, 16, 16], "layers_per_block": 1, "heads": 2, "norm_groups": 4, "batch_size": 4, "lr": 1e-3}
ORACLE = {"scenes": 6, "width": 8, "steps": 4, "batch_size": 4, "lr": 1e-3}
SPEC = PretrainingSpec.model_validate(
    {
        "dataset": "captions", "seed": 0, "threads": 1, "images_seen": 24, "milestones": {"sd-a": 12, "sd-b": 24},
        "autoencoder": VAE,
        "text": TEXT | {"steps": 5, "batch_size": 8, "lr": 1e-3},
        "denoiser": UNET | {"warmup_steps": 2, "ema_decay": 0.9, "noises": 2, "caption_dropout": 0.1},
    }
)  # fmt: skip
MEASURES = MeasuresSpec.model_validate(
    {"sample_prompts": ["a red ball"], "sample_steps": 2, "scenes": 5, "times": [100, 400], "oracle": ORACLE}
)


def draw_captions(folder: Path, count: int = 16, side: int = 32) -> Path:
    """Coloured shapes on white with captions, in the captions layout."""
    choose = random.Random(0)
    (folder / "images").mkdir(parents=True)
    entries = []
    for index in range(count):
        colour, shape = choose.choice(["red", "green", "blue"]), choose.choice(["ball", "box"])
        left, top = choose.randrange(side // 2), choose.randrange(side // 2)
        image = Image.new("RGB", (side, side), "white")
        paint = ImageDraw.Draw(image)
        (paint.ellipse if shape == "ball" else paint.rectangle)((left, top, left + 14, top + 14), fill=colour)
        image.save(folder / f"images/{index:06d}.jpg")
        entries.append({"file": f"images/{index:06d}.jpg", "caption": f"a photo of a {colour} {shape}"})
    (folder / "captions.json").write_text(json.dumps(entries))
    (folder / "manifest.json").write_text(json.dumps({"images": count}))
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below ``folder``."""
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


class Stopped(Exception):
    """Raised in place of a step."""


@contextlib.contextmanager
def watched(phase: str = "", step: int = 0, kill: bool = False) -> Iterator[list[tuple[str, int]]]:
    """Yield the list of all steps done in the block, which is stopped after ``step`` of ``phase``: its key in params.yaml."""
    steps: list[tuple[str, int]] = []

    class Watched(loop.Progress):
        def advance(self, count: int = 1, note: str = "") -> None:
            super().advance(count, note)
            steps.append((self.label, self.count))
            if steps[-1] == (phase, step):
                if kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise Stopped

    with mock.patch.object(loop, "Progress", Watched), mock.patch.object(drawing, "Progress", Watched):
        yield steps


def kill_at(phase: str, step: int, function: Callable, *arguments: object, **options: object) -> None:
    """Call ``function`` in a process that is killed (SIGKILL) after ``step`` of ``phase``."""
    process = multiprocessing.get_context("spawn").Process(
        target=_killed_at, args=(phase, step, function, arguments, options)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _killed_at(phase: str, step: int, function: Callable, arguments: tuple, options: dict) -> None:
    torch.use_deterministic_algorithms(True)
    with watched(phase, step, kill=True):
        function(*arguments, **options)

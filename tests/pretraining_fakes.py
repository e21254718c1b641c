"""A tiny captioned world and a pre-training spec that takes seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from vpd.config.schema import PretrainingSpec

SPEC = PretrainingSpec.model_validate(
    {
        "dataset": "captions",
        "seed": 0,
        "threads": 1,
        "milestones": {"sd-a": 3, "sd-b": 6},
        "autoencoder": {
            "channels": [8, 16],
            "layers_per_block": 1,
            "steps": 5,
            "batch_size": 4,
            "lr": 1e-3,
            "kl_weight": 1e-6,
        },
        "text": {
            "vocabulary": 600,
            "width": 16,
            "layers": 1,
            "heads": 2,
            "length": 12,
            "patch_size": 8,
            "steps": 5,
            "batch_size": 8,
            "lr": 1e-3,
        },
        "denoiser": {
            "channels": [8, 16, 16, 16],
            "layers_per_block": 1,
            "heads": 2,
            "norm_groups": 4,
            "batch_size": 4,
            "lr": 1e-3,
            "warmup_steps": 2,
            "ema_decay": 0.9,
            "caption_dropout": 0.1,
        },
        "sample_prompts": ["a red ball"],
        "sample_steps": 2,
    }
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

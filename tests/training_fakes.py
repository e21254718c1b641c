"""A network and a dataset with VPD's contract, small enough to train in milliseconds."""

import os
import time
from pathlib import Path

import torch
from torch import nn

from vpd.config.schema import (
    AdapterSpec,
    AttentionSpec,
    HeadSpec,
    LearningRateRule,
    LossSpec,
    OptimizerSpec,
    PromptSpec,
    ScheduleSpec,
    SegmentationData,
    SegmentationEvaluation,
    SegmentationSpec,
    TrainingSpec,
    VPDModel,
)
from vpd.utils.fingerprint import Fingerprint

MADE_FROM = Fingerprint("s", "c", {"data": "d", "checkpoint": "c"})


class Network(nn.Module):
    """Everything that makes exact resuming hard: batch norm buffers, dropout and two learning rates."""

    def __init__(self, dropout: float = 0.2, norm: bool = True) -> None:
        super().__init__()
        self.unet = nn.Conv2d(3, 6, 3, padding=1)
        between = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Sequential(between, nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(6, 3, 1))

    def forward(self, batch: dict) -> torch.Tensor:
        return self.head(self.unet(batch["image"]))

    def trained_state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in self.state_dict().items()}

    def load_trained_state(self, state: dict[str, torch.Tensor]) -> None:
        self.load_state_dict(state)


class Samples:
    """Random images and labels drawn from (seed, epoch, index) alone; remembers what was asked for."""

    classes = ("a", "b", "c")

    def __init__(self, length: int = 10, delay: float = 0.0) -> None:
        self.length, self.delay = length, delay
        self.seen: list[tuple[int, int]] = []
        self.before = {}

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, epoch: int = 0) -> dict:
        self.seen.append((index, epoch))
        self.before.get(len(self.seen), lambda: None)()
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        image = torch.randn(3, 6, 6, generator=generator)
        return {"image": image, "label": (image[0] > 0).long() + (image[1] > 1).long(), "id": f"{index}", "key": index}


def tiny_spec(**training) -> SegmentationSpec:
    """Twelve steps of batch 4; ``training`` overrides."""
    rules = (LearningRateRule(match="^unet", multiplier=0.1),)
    given = {
        "steps": 12,
        "batch_size": 4,
        "optimizer": OptimizerSpec(lr=1e-2, betas=(0.9, 0.999), weight_decay=1e-2, lr_rules=rules),
        "schedule": ScheduleSpec(kind="poly", warmup=0.25, warmup_ratio=0.1),
        "loss": LossSpec(kind="cross-entropy"),
        "milestones": {"half": 0.5, "final": 1.0},
        "log_every": 5,
        "save_every": 4,
    }
    return SegmentationSpec(
        name="tiny", scale="test", protocol="official", schedule="fast", task="segmentation", method="vpd", dataset="squares",
        checkpoint="none", seeds=(0,),
        model=VPDModel(
            kind="vpd",
            unet="random", timestep=1, latent_scale=1.0, attention=AttentionSpec(places=(), limit=0.5, gradient="detached"),
            prompt=PromptSpec(strategy="empty", templates="single", length=8), adapter=AdapterSpec(enabled=True, gamma=1e-4),
            head=HeadSpec(kind="semantic-fpn", channels=8),
        ),
        data=SegmentationData(
            short_side=6, long_side=6, ratio_range=(1, 1), crop=6, max_class_share=1.0, flip=0.0, photometric=False
        ),
        evaluation=SegmentationEvaluation(
            short_side=6, long_side=6, crop=6, stride=6, ratios=(1.0,), multi_scale=False, batch_size=1
        ),
        training=TrainingSpec(**given | training),
    )  # fmt: skip


def network(**options) -> Network:
    """The network with the weights that every test starts from."""
    torch.manual_seed(7)
    return Network(**options)


def train_alone(where: Path, delay: float = 0.0, workers: int = 0) -> None:
    """Train in a process (and group) of its own."""
    os.setpgrp()
    torch.set_num_threads(1)
    from vpd.training.loop import fit

    fit(network(), Samples(delay=delay), tiny_spec(workers=workers), 0, where / "out", where / "state", MADE_FROM)

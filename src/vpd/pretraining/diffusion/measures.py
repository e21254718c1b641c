"""What each milestone has learnt, measured on scenes that no dataset shows.

Four questions, none of which is VPD: does it draw what it is asked (``oracle``), do its images look like real ones
(``frechet``), do words point at what they name (``pointing``), and does the text matter at all (``listening``).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpd.config.schema import MeasuresSpec, PretrainingSpec
from vpd.models.diffusion import load_vae
from vpd.pretraining.clip import encode, encode_texts
from vpd.pretraining.diffusion.autoencoder import CHUNK, as_bytes, encode_images
from vpd.pretraining.diffusion.drawing import draw, load_pipeline
from vpd.pretraining.diffusion.frechet import frechet_distance
from vpd.pretraining.diffusion.listening import listening
from vpd.pretraining.diffusion.oracle import Oracle, choose_threshold, share_found, train_oracle
from vpd.pretraining.diffusion.pointing import pointing
from vpd.pretraining.diffusion.scenes import Scenes, held_out
from vpd.pretraining.workdir import Workdir
from vpd.utils.files import atomic_path, read_json, write_json

REAL, DECODED, CHANCE = "real images", "reconstructions of real images", "real images of other prompts"
"""What milestones are compared with: the most that can be reached, the most that the autoencoder lets through, and the least."""
DIGITS = 4
Measures = dict[str, dict[str, float]]  # of each milestone, and of REAL, DECODED and CHANCE


@dataclass(frozen=True)
class Judge:
    """The oracle, what it counts as found, and its features of real images, which others are compared with."""

    oracle: Oracle
    threshold: float
    features: Tensor  # (N,C)

    def rate(self, images: Tensor, pairs: Tensor, rooms: Tensor) -> dict[str, float]:
        """Rate images (N,3,H,W) uint8 that should show the ``pairs`` (N,) and ``rooms`` (N,)."""
        verdict = self.oracle.judge(images)
        found = share_found(verdict, self.threshold, pairs, rooms)
        # In units of the real images' own variance, since features have no scale.
        distance = frechet_distance(verdict.features, self.features) / self.features.double().var(dim=0).sum().item()
        return found | {"frechet": distance}


def measure(spec: PretrainingSpec, size: tuple[int, int], workdir: Workdir) -> tuple[Measures, list[float]]:
    """Measure every milestone, whose pipelines are in ``workdir``; also return the losses of the oracle.

    What is measured already stays in ``workdir``, so that an interrupted run goes on with the next milestone.
    """
    wanted = spec.measures
    assert wanted is not None
    judge, losses = _judge(wanted, size, workdir)
    scenes = held_out("measure", wanted.scenes, size, workdir)
    measures: Measures = {}
    for name in spec.milestones:
        path = workdir.folder / f"measures-{name}.json"
        if not path.exists():
            write_json(path, _rounded(_measure(spec, wanted, name, scenes, judge, workdir)))
        measures[name] = read_json(path)
    decoded = _decoded(workdir.folder / name, scenes, workdir.device)
    for line, images in ((REAL, scenes.images), (DECODED, decoded)):
        measures[line] = _rounded(judge.rate(images, scenes.asked, scenes.rooms))
    other = judge.rate(scenes.images, scenes.asked.roll(1), scenes.rooms.roll(1))
    indifferent = dict.fromkeys(("class_auc", "word_auc", "text_matters"), 0.5)
    measures[CHANCE] = _rounded({key: other[key] for key in ("thing", "room")} | indifferent)
    return measures, losses


def _judge(spec: MeasuresSpec, size: tuple[int, int], workdir: Workdir) -> tuple[Judge, list[float]]:
    """Train the oracle; choose what it counts as found on scenes that are neither trained on nor measured with."""
    oracle, losses = train_oracle(spec.oracle, held_out("train", spec.oracle.scenes, size, workdir), workdir)
    scenes = held_out("choose", spec.scenes, size, workdir)
    verdict = oracle.judge(scenes.images)
    # As many real images as are drawn, and others than the drawn ones' prompts come from: real ones at best are as close.
    return Judge(oracle, choose_threshold(verdict.things, scenes), verdict.features), losses


def _measure(
    spec: PretrainingSpec, wanted: MeasuresSpec, name: str, scenes: Scenes, judge: Judge, workdir: Workdir
) -> dict[str, float]:
    folder, device = workdir.folder / name, workdir.device
    drawn = _drawn(spec, name, scenes, workdir)
    pipeline = load_pipeline(folder, device)
    means, _ = encode_images(pipeline.vae, scenes.captioned, device)
    latents = means * pipeline.vae.config.scaling_factor
    tokens = encode(pipeline.tokenizer, scenes.captioned.texts)
    contexts = encode_texts(pipeline.text_encoder, tokens.to(device)).cpu()

    def denoise(*given: Tensor) -> Tensor:
        return pipeline.unet(*(value.to(device) for value in given)).sample.cpu()

    return {
        **judge.rate(drawn, scenes.asked, scenes.rooms),
        **pointing(folder, latents, scenes, wanted.timestep, device),
        **listening(denoise, latents, contexts, wanted.times, spec.seed),
    }


def _drawn(spec: PretrainingSpec, name: str, scenes: Scenes, workdir: Workdir) -> Tensor:
    """An image (N,3,H,W) uint8 for the prompt of each scene; kept in ``workdir``."""
    path = workdir.folder / f"drawn-{name}.pt"
    if not path.exists():
        images = draw(workdir.folder / name, scenes.prompts, spec, scenes.captioned.size, workdir.device)
        with atomic_path(path) as temporary:
            torch.save(images, temporary)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def _decoded(folder: Path, scenes: Scenes, device: torch.device) -> Tensor:
    """The scenes' images (N,3,H,W) uint8 after a pipeline's autoencoder."""
    vae, decoded = load_vae(folder).to(device), list[Tensor]()
    for chunk in torch.arange(len(scenes)).split(CHUNK):
        posterior = vae.encode(scenes.captioned.pixels(chunk).to(device)).latent_dist
        decoded.append(as_bytes(vae.decode(posterior.mean).sample).cpu())
    return torch.cat(decoded)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, DIGITS) for key, value in values.items()}


def write_measures(measures: Measures, path: Path) -> None:
    """Write one line per milestone and one column per measure."""
    columns = dict.fromkeys(key for values in measures.values() for key in values)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["images", *columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"images": name, **values} for name, values in measures.items())

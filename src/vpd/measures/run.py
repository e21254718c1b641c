"""What each checkpoint of the small Stable Diffusion has learnt, measured on scenes that no dataset shows.

Four questions, none of which is VPD: does it draw what it is asked (``oracle``), do its images look like real ones
(``frechet``), do words point at what they name (``pointing``), and does the text matter at all (``listening``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpd.config.schema import MeasuresSpec
from vpd.measures.drawing import check_prompts, draw, image_size, load_pipeline
from vpd.measures.frechet import frechet_distance
from vpd.measures.listening import listening
from vpd.measures.oracle import Oracle, choose_threshold, share_found, train_oracle
from vpd.measures.pictures import plot_drawn
from vpd.measures.pointing import pointing
from vpd.measures.results import CHANCE, DECODED, PICTURE, REAL, TABLE, Measures, measures_fingerprint, write_measures
from vpd.measures.scenes import Scenes, held_out
from vpd.models.diffusion import load_vae
from vpd.pretraining.clip import encode, encode_texts
from vpd.pretraining.diffusion.autoencoder import CHUNK, as_bytes, encode_images
from vpd.pretraining.loop import complete
from vpd.pretraining.workdir import Workdir, open_workdir
from vpd.utils.errors import UserError
from vpd.utils.files import atomic_folder, atomic_path, read_json, write_json
from vpd.utils.fingerprint import is_finished

DIGITS = 4


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


def measure(
    spec: MeasuresSpec, checkpoints: Mapping[str, Path], out: Path, state: Path, *, save_every: int = 100
) -> None:
    """Measure checkpoints unless ``out`` is finished already; an interrupted run resumes to the bit.

    Args:
        spec: what to measure.
        checkpoints: name -> finished pipeline folder, all of the same image size.
        out: gets measures.csv, drawn.png, history.csv and the manifest, all at once at the end.
        state: keeps scenes, the oracle's state, saved every ``save_every`` steps, and of each checkpoint its images and
            measures; removed at the end.

    Raises:
        UserError: a checkpoint is missing or does not know a prompt's words, or another process works in ``state``.
    """
    if not checkpoints:
        raise UserError(
            "`measures` has no Stable Diffusion 1 to measure; add a checkpoint of that family, or set it to null"
        )
    made_from = measures_fingerprint(spec, checkpoints)
    if is_finished(out, made_from):
        return
    for checkpoint in checkpoints.values():
        check_prompts(spec.sample_prompts, checkpoint, "measures.sample_prompts")
    with open_workdir(state, made_from, spec, save_every) as workdir:
        *_, last = checkpoints.values()
        size = image_size(last)
        judge, losses = _judge(spec, size, workdir)
        scenes = held_out("measure", spec.scenes, size, workdir)
        measures = {name: _measured(spec, name, folder, scenes, judge, workdir) for name, folder in checkpoints.items()}
        decoded = _decoded(last, scenes, workdir.device)
        measures |= _bounds(judge, scenes, decoded)
        with atomic_folder(out) as folder:
            write_measures(measures, folder / TABLE)
            below = {REAL: scenes.images, DECODED: decoded}
            plot_drawn(spec, checkpoints, below, workdir.device, folder / PICTURE)
            complete(folder, made_from, {"oracle": losses}, {"scenes": spec.scenes})


def _judge(spec: MeasuresSpec, size: tuple[int, int], workdir: Workdir) -> tuple[Judge, list[float]]:
    """Train the oracle; choose what it counts as found on scenes that are neither trained on nor measured with."""
    oracle, losses = train_oracle(spec.oracle, held_out("train", spec.oracle.scenes, size, workdir), workdir)
    scenes = held_out("choose", spec.scenes, size, workdir)
    verdict = oracle.judge(scenes.images)
    # As many real images as are drawn, and others than the drawn ones' prompts come from: real ones at best are as close.
    return Judge(oracle, choose_threshold(verdict.things, scenes), verdict.features), losses


def _measured(
    spec: MeasuresSpec, name: str, checkpoint: Path, scenes: Scenes, judge: Judge, workdir: Workdir
) -> dict[str, float]:
    """Measures of a checkpoint, kept in ``workdir``."""
    path = workdir.folder / f"measures-{name}.json"
    if not path.exists():
        drawn = _drawn(spec, name, checkpoint, scenes, workdir)
        rated = judge.rate(drawn, scenes.asked, scenes.rooms)
        write_json(path, _rounded(rated | _texts(spec, checkpoint, scenes, workdir.device)))
    return read_json(path)


def _drawn(spec: MeasuresSpec, name: str, checkpoint: Path, scenes: Scenes, workdir: Workdir) -> Tensor:
    """An image (N,3,H,W) uint8 for the prompt of each scene; kept in ``workdir``."""
    path = workdir.folder / f"drawn-{name}.pt"
    if not path.exists():
        images = draw(checkpoint, scenes.prompts, spec, workdir.device, f"drawing with {name}")
        with atomic_path(path) as temporary:
            torch.save(images, temporary)
    return torch.load(path, weights_only=True)


def _texts(spec: MeasuresSpec, checkpoint: Path, scenes: Scenes, device: torch.device) -> dict[str, float]:
    """What the texts of scenes mean to a checkpoint: where its words point, and what the right caption is worth."""
    pipeline = load_pipeline(checkpoint, device)
    means, _ = encode_images(pipeline.vae, scenes.captioned, device)
    latents = means * pipeline.vae.config.scaling_factor
    tokens = encode(pipeline.tokenizer, scenes.captioned.texts)
    contexts = encode_texts(pipeline.text_encoder, tokens.to(device)).cpu()

    def denoise(*given: Tensor) -> Tensor:
        return pipeline.unet(*(value.to(device) for value in given)).sample.cpu()

    return {
        **pointing(checkpoint, latents, scenes, spec.timestep, device),
        **listening(denoise, latents, contexts, spec.times, spec.seed),
    }


def _bounds(judge: Judge, scenes: Scenes, decoded: Tensor) -> Measures:
    """What checkpoints are compared with, of the scenes' own images and of these ``decoded`` (N,3,H,W)."""
    real, passed = (judge.rate(images, scenes.asked, scenes.rooms) for images in (scenes.images, decoded))
    other = judge.rate(scenes.images, scenes.asked.roll(1), scenes.rooms.roll(1))
    chance = {key: other[key] for key in ("thing", "room")}
    chance |= dict.fromkeys(("class_auc", "word_auc", "text_matters"), 0.5)
    return {REAL: _rounded(real), DECODED: _rounded(passed), CHANCE: _rounded(chance)}


@torch.no_grad()
def _decoded(checkpoint: Path, scenes: Scenes, device: torch.device) -> Tensor:
    """The scenes' images (N,3,H,W) uint8 after a checkpoint's autoencoder."""
    vae, decoded = load_vae(checkpoint).to(device), list[Tensor]()
    for chunk in torch.arange(len(scenes)).split(CHUNK):
        posterior = vae.encode(scenes.captioned.pixels(chunk).to(device)).latent_dist
        decoded.append(as_bytes(vae.decode(posterior.mean).sample).cpu())
    return torch.cat(decoded)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, DIGITS) for key, value in values.items()}

"""What bf16 saves in evaluation at Stable Diffusion's real size: four sentences on one image, random weights, on a CPU.

    python benchmarks/precision.py [--rounds 3] [--threads 1]

Each round takes a new image, so that no latent is cached, through three copies of one network: in single precision, in bf16 with
the weights in their usual order, and in bf16 as an evaluation has it, with channels last.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from vpd.config.params import load_params
from vpd.config.schema import Spec
from vpd.evaluation.inference import refer
from vpd.evaluation.run import predictor
from vpd.planning.networks import CLASSES, FORMATS, build
from vpd.pretrained.stable_diffusion import configs
from vpd.utils.tensors import set_up_inference

SENTENCES = 4


def variants(spec: Spec) -> dict[str, nn.Module]:
    """Build the same network three times."""
    torch.manual_seed(0)
    model = build(spec, configs(), CLASSES[FORMATS[spec.task]]).eval()
    plain, last = copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model)
    set_up_inference(last, "cpu", "bf16")
    return {"fp32": model, "bf16": plain, "bf16, channels last": last}


def samples(size: int, number: int) -> Iterator[dict]:
    """Yield one image with several sentences; random tokens replace the text encoder."""
    image = torch.rand(3, size, size) * 2 - 1
    for sentence in range(SENTENCES):
        yield {"image": image, "id": str(sentence), "image_id": number, "text": ""}


@torch.inference_mode()
def seconds(spec: Spec, model: nn.Module, number: int) -> float:
    """Processor time of one evaluation."""
    settings = spec.evaluation.model_copy(update={"batch_size": SENTENCES})
    start = time.process_time()
    list(refer(predictor(spec, model), samples(spec.evaluation.size, number), settings))
    return time.process_time() - start


def main() -> None:
    """Print each round, and how many times as fast as single precision the others are."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    spec = load_params("params.yaml", "paper").resolve("refcoco-full")
    timed = {name: partial(seconds, spec, model) for name, model in variants(spec).items()}
    rounds = [{name: run(number) for name, run in timed.items()} for number in range(given.rounds + 1)][1:]
    for times in rounds:
        print("; ".join(f"{name} {value:.1f} s" for name, value in times.items()))
    for name in timed:
        ratios = sorted(times["fp32"] / times[name] for times in rounds)
        print(f"{name}: {statistics.median(ratios):.2f} times as fast [{ratios[0]:.2f}..{ratios[-1]:.2f}]")


if __name__ == "__main__":
    main()

"""How an objective is trained: AdamW with warm-up and decay, by the loop that Stable Diffusion's phases have too."""

from __future__ import annotations

from torch import Generator, Tensor, nn

from vpd.config.schema import ObjectiveSpec
from vpd.pretraining.backbones.objective import Objective
from vpd.pretraining.loop import Phase, rise_and_fall, trained_parameters
from vpd.pretraining.workdir import Workplace

LARGEST_GRADIENT = 3.0
"""As DINO clips it; SAM clips at 0.1, and several of the others not at all."""


def train_objective(
    name: str, settings: str, objective: Objective, spec: ObjectiveSpec, place: Workplace
) -> list[float]:
    """Train ``objective`` as the phase ``name`` and return the loss of every step.

    ``settings`` is where params.yaml has ``spec``, for messages. UserError if the loss is not finite.
    """

    def loss_of(generator: Generator) -> Tensor:
        return objective.loss(objective.draw(spec.batch_size, generator), generator)

    phase = Phase(
        name,
        settings,
        objective,
        spec.steps,
        spec.lr,
        rise_and_fall(spec.steps),
        groups=parameter_groups(objective, spec.weight_decay),
        largest_gradient=LARGEST_GRADIENT,
    )
    return phase.train(place, loss_of, after=lambda step: objective.after(step / spec.steps))


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels are decayed; vectors (biases, norms, tokens) are not."""
    matrices = [parameter for parameter in trained_parameters(network) if parameter.ndim > 1]
    vectors = [parameter for parameter in trained_parameters(network) if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]

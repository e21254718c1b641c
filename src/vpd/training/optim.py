"""AdamW with a learning rate and a weight decay per parameter, both decided by rules on parameter names."""

from __future__ import annotations

import re
from typing import TypeVar

from torch import nn, optim

from vpd.config.schema import OptimizerSpec
from vpd.utils.errors import UserError, nearest

Value = TypeVar("Value")


def parameter_groups(model: nn.Module, spec: OptimizerSpec) -> list[dict]:
    """AdamW parameter groups of all trainable parameters, merged by (multiplier, decay) and named after both.

    Per parameter the first matching rule wins. Each group carries ``initial_lr``, the rate before the schedule.
    Raises UserError for a rule that decides no parameter, since it would be a setting that does nothing.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    multipliers = _decide(parameters, [(rule.match, rule.multiplier) for rule in spec.lr_rules], "lr_rules")
    decays = _decide(parameters, [(rule.match, rule.weight_decay) for rule in spec.decay_rules], "decay_rules")
    groups: dict[tuple[float, float], dict] = {}
    for name, value in parameters.items():
        multiplier = multipliers.get(name, 1.0)
        decay = decays.get(name, _default_decay(name, value, spec))
        group = groups.setdefault((multiplier, decay), _group(multiplier, decay, spec.lr))
        group["params"].append((name, value))
    return list(groups.values())


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> optim.AdamW:
    """AdamW over ``parameter_groups``; the model must already be on its device."""
    # The fused step took a third of the default's time on a CPU with 700 small tensors, and is as deterministic.
    return optim.AdamW(parameter_groups(model, spec), lr=spec.lr, betas=spec.betas, fused=True)


def set_rates(optimizer: optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its initial rate times the schedule's ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


PRETRAINED = ("unet.", "backbone.")


def pretrained_multiplier(optimizer: optim.Optimizer) -> float:
    """Multiplier that most weights of the U-Net (or backbone) have (its norms may differ, G2); 0 if none is trained."""
    weights: dict[float, int] = {0.0: 0}
    for group in optimizer.param_groups:
        inside = [
            p.numel() for n, p in zip(group["param_names"], group["params"], strict=True) if n.startswith(PRETRAINED)
        ]
        weights[group["multiplier"]] = weights.get(group["multiplier"], 0) + sum(inside)
    return max(weights, key=lambda multiplier: weights[multiplier])


def _group(multiplier: float, decay: float, lr: float) -> dict:
    rate = lr * multiplier
    name = f"lr x {multiplier:g}, decay {decay:g}"
    return {
        "params": [], "name": name, "multiplier": multiplier, "lr": rate, "initial_lr": rate, "weight_decay": decay
    }  # fmt: skip


def _default_decay(name: str, value: nn.Parameter, spec: OptimizerSpec) -> float:
    is_vector = value.ndim <= 1 or name.endswith(".bias")
    return 0.0 if is_vector and not spec.decay_vectors else spec.weight_decay


def _decide(parameters: dict[str, nn.Parameter], rules: list[tuple[str, Value]], setting: str) -> dict[str, Value]:
    """Give each parameter the value of the first rule that matches its name."""
    decided: dict[str, Value] = {}
    for match, value in rules:
        found = [name for name in parameters if name not in decided and _search(match, name, setting)]
        if not found:
            parts = {part for name in parameters for part in name.split(".") if not part.isdigit()}
            raise UserError(
                f"training.optimizer.{setting}: '{match}' decides no parameter that an earlier rule has left; "
                f"correct or remove it, {nearest(match, parts)}"
            )
        decided |= dict.fromkeys(found, value)
    return decided


def _search(match: str, name: str, setting: str) -> bool:
    try:
        return re.search(match, name) is not None
    except re.error as error:
        raise UserError(f"training.optimizer.{setting}: '{match}' is not a regular expression ({error})") from None

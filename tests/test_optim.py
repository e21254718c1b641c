"""Optimizer groups and schedules against the released code's figures (parity measurements) and hand values."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from vpd.config.params import load_params
from vpd.config.schema import DecayRule, LearningRateRule, OptimizerSpec, ScheduleSpec
from vpd.training.optim import build_optimizer, factor, parameter_groups, pretrained_multiplier
from vpd.utils.errors import UserError

PARAMS = Path(__file__).parents[1] / "params.yaml"
NORMS = r"^unet\..*attentions\.\d+\.(norm|transformer_blocks\.\d+\.norm\d)\."
SEGMENTATION = OptimizerSpec(
    lr=8e-5,
    betas=(0.9, 0.999),
    weight_decay=1e-3,
    lr_rules=(LearningRateRule(match=NORMS, multiplier=1.0), LearningRateRule(match=r"^unet\.", multiplier=0.1)),
    decay_rules=(DecayRule(match=NORMS, weight_decay=0.0),),
)
TRIANGULAR = ScheduleSpec(kind="triangular", power=0.9, min_ratio=0.06, peak=0.48)


class Network(nn.Module):
    """A U-Net beside an adapter and a head, named as VPD names them."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.adapter = nn.Module()
        self.adapter.gamma = nn.Parameter(torch.full((8,), 1e-4))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.vae = nn.Linear(2, 2).requires_grad_(False)


def small() -> Network:
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, down_block_types=blocks[0], up_block_types=blocks[1],
        cross_attention_dim=8, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    return Network(unet)


@pytest.fixture(scope="module")
def true_size() -> Network:
    """Stable Diffusion 1.x without memory."""
    with torch.device("meta"):
        return Network(UNet2DConditionModel(cross_attention_dim=768))


def official(experiment: str) -> OptimizerSpec:
    return load_params(PARAMS, "paper", "official").resolve(experiment).training.optimizer


# ----------------------------------------------------------------------------------------------------------------- groups
def test_segmentation_has_the_released_groups(true_size):
    """128 norms of the transformers at the full rate, undecayed; the 558 other U-Net tensors at a tenth (G2)."""
    groups = {group["name"]: group for group in parameter_groups(true_size, official("seg-full"))}
    assert sorted(groups) == ["lr x 0.1, decay 0.001", "lr x 1, decay 0", "lr x 1, decay 0.001"]
    norms, rest = groups["lr x 1, decay 0"], groups["lr x 0.1, decay 0.001"]
    assert (len(norms["params"]), sum(p.numel() for _, p in norms["params"])) == (128, 99_840)
    assert len(rest["params"]) == 558
    assert norms["lr"] == pytest.approx(8e-5)
    assert rest["lr"] == pytest.approx(8e-6)
    assert {name for name, _ in groups["lr x 1, decay 0.001"]["params"]} == {
        "adapter.gamma", "head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"
    }  # fmt: skip


def test_biases_of_any_shape_are_vectors():
    model = nn.Module()
    model.bias, model.weight = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    spec = OptimizerSpec(lr=1.0, betas=(0.9, 0.999), weight_decay=0.1, decay_vectors=False)
    inner = nn.ModuleDict({"layer": model})
    decays = {name: group["weight_decay"] for group in parameter_groups(inner, spec) for name, _ in group["params"]}
    assert decays == {"layer.bias": 0.0, "layer.weight": 0.1}


def test_the_unet_rate_is_that_of_most_of_its_weights():
    assert pretrained_multiplier(build_optimizer(small(), SEGMENTATION)) == 0.1
    without_unet = OptimizerSpec(lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)
    assert pretrained_multiplier(build_optimizer(nn.Linear(2, 2), without_unet)) == 0.0


@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"lr_rules": (LearningRateRule(match="^unett", multiplier=0.1),)}, r"lr_rules: '\^unett' decides no parameter"),
        ({"decay_rules": (DecayRule(match="gama", weight_decay=0.0),)}, "did you mean 'gamma'"),
        ({"lr_rules": (LearningRateRule(match=".", multiplier=1), LearningRateRule(match="unet", multiplier=0.1))},
         "'unet' decides no parameter that an earlier rule has left"),
        ({"lr_rules": (LearningRateRule(match="(", multiplier=1.0),)}, "not a regular expression"),
    ],
)  # fmt: skip
def test_a_rule_without_effect_is_an_error(update, sentence):
    with pytest.raises(UserError, match=sentence):
        parameter_groups(small(), SEGMENTATION.model_copy(update=update))


# -------------------------------------------------------------------------------------------------------------- schedules
def test_triangular_agrees_with_the_released_formula_at_every_step():
    per_epoch, high, low = 40, 5e-4, 3e-5
    for g in range(1, 25 * per_epoch + 1):
        if g < 12 * per_epoch:
            rate = (high - low) * (g / (12 * per_epoch)) ** 0.9 + low
        else:
            rate = max(low, (low - high) * min(1, g / (12 * per_epoch) - 1) ** 0.9 + high)
        assert 5e-4 * factor(g - 1, 25 * per_epoch, TRIANGULAR) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_triangular_is_defined_for_the_shortest_runs(total):
    """The released code divides by zero in one epoch (D9)."""
    rates = [factor(step, total, TRIANGULAR) for step in range(total)]
    assert max(rates) == 1.0
    assert min(rates) >= 0.06


# ------------------------------------------------------------------------------------------------------------- both, used
def test_adamw_equals_its_definition():
    """Five steps in float64 by Loshchilov and Hutter's equations, two groups of different rate and decay."""
    spec = OptimizerSpec(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, decay_vectors=False,
                         lr_rules=(LearningRateRule(match="weight", multiplier=0.5),))  # fmt: skip
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, spec)
    expected = {name: value.detach().double().clone() for name, value in model.named_parameters()}
    first, second = ({name: torch.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for step in range(1, 6):
        for name, value in model.named_parameters():
            value.grad = torch.randn_like(value)
            grad, (lr, decay) = value.grad.double(), {"weight": (5e-3, 0.1), "bias": (1e-2, 0.0)}[name]
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.99 * second[name] + 0.01 * grad**2
            update = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.99**step)).sqrt() + 1e-8)
            expected[name] -= lr * (update + decay * expected[name])
        optimizer.step()
    for name, value in model.named_parameters():
        assert torch.allclose(value.detach().double(), expected[name], rtol=1e-6, atol=1e-7), name

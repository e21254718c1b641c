"""Optimizer groups and schedules against the released code's figures (parity measurements) and hand values."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from vpd.config.params import load_params
from vpd.config.schema import DecayRule, LearningRateRule, OptimizerSpec, ScheduleSpec
from vpd.training.optim import build_optimizer, factor, parameter_groups, pretrained_multiplier, set_rates
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
POLY = ScheduleSpec(kind="poly", warmup=0.01875)
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


def per_parameter(optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    return {name: group[key] for group in optimizer.param_groups for name in group["param_names"]}


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


def test_referring_trains_everything_at_one_rate(true_size):
    """The released multiplier has no effect: 5e-5 everywhere, the 128 norms undecayed (R1)."""
    groups = parameter_groups(true_size, official("refcoco-full"))
    assert {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups} == {
        (5e-5, 0.0): 128, (5e-5, 1e-2): 558 + 5
    }  # fmt: skip


def test_depth_trains_the_unet_at_a_hundredth_without_decay_of_vectors(true_size):
    """U-Net peak 5e-6; vectors and biases, gamma included, are not decayed (D6, D7)."""
    for group in parameter_groups(true_size, official("depth-full")):
        for name, value in group["params"]:
            assert group["lr"] == pytest.approx(5e-6 if name.startswith("unet.") else 5e-4), name
            assert group["weight_decay"] == (0.0 if value.ndim == 1 else 0.1), name


def test_biases_of_any_shape_are_vectors():
    model = nn.Module()
    model.bias, model.weight = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    spec = OptimizerSpec(lr=1.0, betas=(0.9, 0.999), weight_decay=0.1, decay_vectors=False)
    inner = nn.ModuleDict({"layer": model})
    decays = {name: group["weight_decay"] for group in parameter_groups(inner, spec) for name, _ in group["params"]}
    assert decays == {"layer.bias": 0.0, "layer.weight": 0.1}


def test_frozen_parameters_are_in_no_group():
    names = per_parameter(build_optimizer(small(), SEGMENTATION), "lr")
    assert not any(name.startswith("vae.") for name in names)


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
@pytest.mark.parametrize(
    ("step", "rate"), [(0, 8.0e-11), (1, 5.34e-8), (1499, 7.845e-5), (1500, 7.85e-5), (40_000, 4e-5), (79_999, 1e-9)]
)
def test_poly_with_warm_up_is_mmcvs(step, rate):
    """Rates measured on mmcv's own hook at 80k steps and a base rate of 8e-5 (G11)."""
    assert 8e-5 * factor(step, 80_000, POLY) == pytest.approx(rate, rel=1e-3)


def test_warm_up_scales_with_the_training_length():
    """150 of 8,000 steps (G4)."""
    assert factor(149, 8000, POLY) == pytest.approx((1 - 149 / 8000) * (1 - (1 / 150) * (1 - 1e-6)))
    assert factor(150, 8000, POLY) == 1 - 150 / 8000


def test_poly_without_warm_up_is_the_referring_schedule():
    spec = ScheduleSpec(kind="poly", power=0.9)
    assert [5e-5 * factor(step, 100, spec) for step in (0, 50, 99)] == pytest.approx(
        [5e-5, 2.67943e-5, 7.92447e-7], rel=1e-5
    )


@pytest.mark.parametrize(
    ("epoch", "rate"), [(6, 2.81867e-4), (12, 5e-4), (18, 2.48133e-4), (24, 3e-5), (24.5, 3e-5), (25, 3e-5)]
)
def test_triangular_is_the_released_depth_schedule(epoch, rate):
    """Hand values at the ends of epochs, 1009 iterations each (D2, D6)."""
    assert 5e-4 * factor(int(epoch * 1009) - 1, 25 * 1009, TRIANGULAR) == pytest.approx(rate, rel=1e-5)


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


def test_constant_is_constant():
    assert {factor(step, 7, ScheduleSpec(kind="constant")) for step in range(7)} == {1.0}


# ------------------------------------------------------------------------------------------------------------- both, used
TASKS = {
    "segmentation": (SEGMENTATION, POLY, {"norm": 1.0, "unet": 0.1, "rest": 1.0}),
    "referring": (SEGMENTATION.model_copy(update={"lr": 5e-5, "lr_rules": ()}), ScheduleSpec(kind="poly", power=0.9),
                  {"norm": 1.0, "unet": 1.0, "rest": 1.0}),
    "depth": (OptimizerSpec(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1, decay_vectors=False,
                            lr_rules=(LearningRateRule(match="^unet", multiplier=0.01),)), TRIANGULAR,
              {"norm": 0.01, "unet": 0.01, "rest": 1.0}),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_parameters_rate_is_base_times_multiplier_times_schedule(task):
    """After five real optimizer steps, for every single parameter (the released referring code fails this, R1)."""
    spec, schedule, multipliers = TASKS[task]
    model = small()
    optimizer = build_optimizer(model, spec)
    for step in range(5):
        for value in model.parameters():
            value.grad = torch.ones_like(value)
        set_rates(optimizer, factor(step, 200, schedule))
        optimizer.step()
    rates = per_parameter(optimizer, "lr")
    assert set(rates) == {name for name, value in model.named_parameters() if value.requires_grad}
    for name, rate in rates.items():
        is_norm = "attentions" in name and "norm" in name
        kind = "norm" if is_norm else "unet" if name.startswith("unet.") else "rest"
        assert rate == pytest.approx(spec.lr * multipliers[kind] * factor(4, 200, schedule), rel=1e-12), name


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

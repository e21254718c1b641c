"""Ids of docs/fidelity.md about training (schedules, batches, losses), from params.yaml's settings to their effect."""

import math

import pytest
import torch
import torch.nn.functional as F

from fidelity_fakes import experiment, shows
from training_fakes import MADE_FROM, Samples, network, tiny_spec
from vpd.training.loader import plan_batches
from vpd.training.loop import fit, gradient, milestone_steps, start_accelerator
from vpd.training.losses import loss
from vpd.training.optim import build_optimizer, factor

PAIRS = 24_231
"""Training pairs of NYUv2 (D2)."""


def rate(spec, step, length=PAIRS):
    """Learning rate of a 0-based step on a dataset of ``length`` samples."""
    total = plan_batches(spec.training, length, seed=0).total_steps(spec.training)
    return spec.training.optimizer.lr * factor(step, total, spec.training.schedule)


# ------------------------------------------------------------------------------------------------------------- schedules
RATES = {
    # experiment, schedule, changes -> rates by step
    "G11": ("seg-full", None, {}, {0: 8.0e-11, 1: 5.34e-8, 1499: 7.845e-5, 1500: 7.85e-5, 40_000: 4e-5, 79_999: 1e-9}),
    "G11 power": ("seg-full", None, {"training.schedule.power": 2.0}, {40_000: 2e-5, 60_000: 5e-6}),
    "G11 minimum": ("seg-full", None, {"training.schedule.min_ratio": 0.1}, {40_000: 4.4e-5, 79_999: 8e-6}),
    "G11 warm-up": ("seg-full", None, {"training.schedule.warmup": 0.0}, {0: 8e-5, 40_000: 4e-5}),
    "G11 first": ("seg-full", None, {"training.schedule.warmup_ratio": 0.1}, {0: 8e-6, 750: 4.35875e-5, 1500: 7.85e-5}),
    "G11 kind": ("seg-full", None, {"training.schedule.kind": "constant"}, {1500: 8e-5, 79_999: 8e-5}),
    "G4": ("seg-fast", None, {}, {0: 8e-11, 75: 3.9625e-5, 150: 7.85e-5, 4000: 4e-5, 7999: 1e-8}),
    "G5": ("seg-fast", "fast-4k", {}, {75: 3.925e-5, 150: 7.7e-5, 2000: 4e-5, 3999: 2e-8}),
    "G4 TADP": ("seg-fast", "fast-scaled", {}, {75: 7.925e-5, 150: 1.57e-4, 4000: 8e-5, 7999: 2e-8}),
    "G5 TADP": ("seg-fast", "fast-scaled-4k", {}, {37: 7.82032e-5, 75: 1.57e-4, 2000: 8e-5, 3999: 4e-8}),
    "R5": ("refcoco-full", None, {}, {0: 5e-5, 26_500: 2.67943e-5, 52_999: 5e-5 / 53_000**0.9}),
    "R5 power": ("refcoco-full", None, {"training.schedule.power": 1.0}, {26_500: 2.5e-5}),
    "R5 warm-up": ("refcoco-full", None, {"training.schedule.warmup": 0.5}, {0: 5e-11, 13_250: 1.92972e-5}),
    "R11": ("refcoco-fast", None, {}, {0: 5e-5, 1324: 5e-5 / 1325**0.9}),
    "D6": ("depth-full", None, {}, {6053: 2.81867e-4, 12_107: 5e-4, 18_161: 2.48133e-4, 24_215: 3e-5, 25_224: 3e-5}),
    "D6 power": ("depth-full", None, {"training.schedule.power": 1.0}, {6053: 2.65e-4, 18_161: 2.65e-4}),
    "D6 minimum": ("depth-full", None, {"training.schedule.min_ratio": 0.5}, {12_107: 5e-4, 24_215: 2.5e-4}),
    "D6 peak": ("depth-full", None, {"training.schedule.peak": 0.4}, {10_089: 5e-4, 20_179: 3e-5}),
    "D6 kind": ("depth-full", None, {"training.schedule.kind": "poly", "training.schedule.min_ratio": 0.0}, {0: 5e-4}),
    "D9": ("depth-fast", None, {}, {0: 5e-4, 500: 5e-4, 1008: 5e-4}),
    "D9 triangular": ("depth-fast", None, {"training.schedule.kind": "triangular"}, {483: 5e-4, 967: 3e-5}),
}


@shows(
    G4="training.schedule.warmup training.steps training.optimizer.lr",
    G11="training.schedule.kind training.schedule.power training.schedule.min_ratio training.schedule.warmup "
    "training.schedule.warmup_ratio",
    R5="training.epochs training.schedule.power training.schedule.warmup",
    R11="training.epochs",
    D6="training.schedule.kind training.schedule.min_ratio training.schedule.peak training.schedule.power",
    D9="training.schedule.kind",
)
@pytest.mark.parametrize("case", RATES)
def test_rates_at_these_steps(case):
    """RefCOCO trains on 42,404 objects, hence 1325 steps an epoch."""
    name, schedule, changes, expected = RATES[case]
    spec = experiment(name, changes, schedule=schedule)
    length = {"segmentation": 20_210, "referring": 42_404, "depth": PAIRS}[spec.task]
    assert {step: rate(spec, step, length) for step in expected} == pytest.approx(expected, rel=1e-3)


@shows(G4="training.optimizer.weight_decay", G5="training.milestones training.steps")
@pytest.mark.parametrize(("schedule", "steps", "decay"), [
    ("fast", {"half": 4000, "final": 8000}, 1e-3), ("fast-4k", {"final": 4000}, 1e-3),
    ("fast-scaled", {"final": 8000}, 5e-3), ("fast-scaled-4k", {"final": 4000}, 5e-3),
])  # fmt: skip
def test_the_fast_schedule_is_one_run_measured_twice_or_two_runs(schedule, steps, decay):
    training = experiment("seg-fast", schedule=schedule).training
    assert milestone_steps(training.milestones, training.steps) == steps
    assert training.optimizer.weight_decay == decay


@shows(D6="training.optimizer.betas")
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99)])
def test_betas_weigh_the_past(betas):
    model = torch.nn.Module()
    model.unet = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, experiment("depth-full", {"training.optimizer.betas": betas}).training.optimizer)
    for slope in (1.0, 0.0):
        for value in model.parameters():
            value.grad = torch.full_like(value, slope)
        optimizer.step()
    state = optimizer.state[model.unet.weight]
    assert state["exp_avg"][0, 0].item() == pytest.approx(betas[0] * (1 - betas[0]))
    assert state["exp_avg_sq"][0, 0].item() == pytest.approx(betas[1] * (1 - betas[1]))


# --------------------------------------------------------------------------------------------------------------- batches
@shows(G6="training.batch_size", R5="training.batch_size", D10="training.batch_size", D2="training.drop_last")
@pytest.mark.parametrize(("name", "changes", "batch", "steps"), [
    ("seg-full", {}, 16, 1263), ("refcoco-full", {}, 32, 1325), ("depth-full", {}, 24, 1009),
    ("depth-full", {"training.drop_last": False}, 24, 1010), ("depth-full", {"training.batch_size": 8}, 8, 3028),
])  # fmt: skip
def test_an_epoch_has_so_many_batches(name, changes, batch, steps):
    spec = experiment(name, changes)
    length = {"segmentation": 20_210, "referring": 42_404, "depth": PAIRS}[spec.task]
    plan = plan_batches(spec.training, length, seed=0)
    assert (len(plan.batch(0)), plan.steps_per_epoch) == (batch, steps)
    last = length - batch * (steps - 1)
    assert len(plan.batch(steps - 1)) == min(batch, last)


@shows(G6="training.accumulate")
@pytest.mark.parametrize("accumulate", [1, 2, 8])
def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole(accumulate):
    training = experiment("seg-full", {"training.accumulate": accumulate}).training
    plan, data, model = plan_batches(training, 40, seed=3), Samples(40), network(dropout=0.0, norm=False)
    samples = [[data.sample(*position) for position in share] for share in plan.shares(0)]
    parts = [{key: torch.stack([one[key] for one in part]) for key in ("image", "label")} for part in samples]
    assert [len(part["image"]) for part in parts] == [16 // accumulate] * accumulate
    whole = {key: torch.cat([part[key] for part in parts]) for key in ("image", "label")}
    (expected,) = torch.autograd.grad(F.cross_entropy(model(whole), whole["label"]), model.unet.weight)
    value = gradient(start_accelerator(training.precision), model, iter(parts), plan, 0, training.loss)
    torch.testing.assert_close(model.unet.weight.grad, expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(value, F.cross_entropy(model(whole), whole["label"]).detach())


@shows(D15="training.save_every")
@pytest.mark.parametrize(("save_every", "saved"), [(2, [4, 6]), (5, [5])])
def test_a_dead_run_goes_on_from_its_last_state_to_the_bit(tmp_path, save_every, saved):
    assert experiment("depth-full").training.save_every == 500
    spec, dying = tiny_spec(save_every=save_every), Samples()

    def die():
        raise MemoryError

    dying.before = {4 * 7 + 1: die}  # the first sample of the eighth step of four
    places = {name: tmp_path / name for name in ("whole", "out", "state", "other")}
    fit(network(), Samples(), spec, 0, places["whole"], places["other"], MADE_FROM)
    with pytest.raises(MemoryError):
        fit(network(), dying, spec, 0, places["out"], places["state"], MADE_FROM)
    assert [int(path.stem.split("-")[1]) for path in sorted(places["state"].rglob("step-*.pt"))] == saved
    resumed = Samples()
    fit(network(), resumed, spec, 0, places["out"], places["state"], MADE_FROM)
    assert len(resumed.seen) == 4 * (12 - saved[-1])
    for name in ("final.safetensors", "half.safetensors", "history.csv"):
        assert (places["out"] / name).read_bytes() == (places["whole"] / name).read_bytes()


# ---------------------------------------------------------------------------------------------------------------- losses
@shows(G12="training.loss.average")
def test_ignoring_half_of_the_pixels_halves_the_released_loss():
    """Logits whose cross-entropy is 2.1022 at every pixel."""
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 1] = math.log(math.exp(2.1022) - 1)
    label = torch.zeros(1, 8, 8, dtype=torch.int64)
    label[:, :4] = 255
    for protocol, expected in (("official", 1.0511), ("paper", 2.1022)):
        settings = experiment("seg-full", protocol=protocol).training.loss
        assert loss(settings, logits, {"label": label}).item() == pytest.approx(expected, rel=1e-5)


@shows(R3="training.loss.class_weights")
def test_the_object_weighs_more_than_the_rest_and_under_paper_as_much():
    logits, label = torch.randn(2, 2, 8, 8), torch.randint(0, 2, (2, 8, 8))
    for protocol, weights in (("official", torch.tensor([0.9, 1.1])), ("paper", None)):
        settings = experiment("refcoco-full", protocol=protocol).training.loss
        torch.testing.assert_close(loss(settings, logits, {"label": label}), F.cross_entropy(logits, label, weights))


def silog(metres, truth, **changes):
    settings = experiment("depth-full", {f"training.loss.{key}": value for key, value in changes.items()}).training.loss
    shape = (1, 1, 1, len(metres))
    return loss(settings, torch.tensor(metres).view(shape), {"depth": torch.tensor(truth).view(shape[1:])}).item()


@shows(D16="training.loss.variance_focus")
@pytest.mark.parametrize(("focus", "expected"), [(0.5, math.sqrt(3 / 8)), (0.0, math.sqrt(1 / 2)), (1.0, 1 / 2)])
def test_the_depth_loss_by_hand(focus, expected):
    """d = (ln 2, 0): the mean square is ln2^2 / 2, the squared mean ln2^2 / 4, and nothing is multiplied by 10."""
    assert silog([2.0, 3.0], [1.0, 3.0], variance_focus=focus) == pytest.approx(math.log(2) * expected)


@shows(D16="training.loss.kind")
def test_the_kind_of_loss_decides_what_is_compared():
    output, label = torch.rand(1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    batch = {"depth": torch.ones(1, 2, 2), "label": label}
    change = {"training.loss.kind": "cross-entropy"}
    found, other = (loss(experiment("depth-full", x).training.loss, output, batch) for x in ({}, change))
    logs = output.log()
    torch.testing.assert_close(found, (logs.square().mean() - 0.5 * logs.mean().square()).sqrt())
    torch.testing.assert_close(other, F.cross_entropy(output, label))


@shows(D18="training.loss.clamp")
@pytest.mark.parametrize(("changes", "smallest"), [({}, 1e-6), ({"clamp": 1e-3}, 1e-3)])
def test_a_prediction_of_zero_metres_counts_as_the_smallest(changes, smallest):
    assert silog([0.0], [1.0], **changes) == pytest.approx(-math.log(smallest) / math.sqrt(2))

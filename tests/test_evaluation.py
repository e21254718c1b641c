"""Scores against independent implementations, and whole evaluations: resumable, refused, reproducible."""

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torchmetrics import JaccardIndex

from evaluation_fakes import CLASSES, COLOURS, Drawings, Experiment, SmallModel, made_from, make_spec
from vpd.config.paths import evaluated
from vpd.evaluation.results import check_run, is_evaluated, read_metrics, read_provenance
from vpd.evaluation.run import load_samples
from vpd.evaluation.scores import (
    DepthScores,
    ReferringScores,
    SegmentationScores,
    depth_errors,
    evaluate_depth,
    evaluate_referring,
    evaluate_segmentation,
)
from vpd.training.runs import gather
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json
from vpd.utils.fingerprint import Fingerprint, fingerprint
from vpd.utils.progress import Progress
from vpd.utils.tensors import PRECISIONS

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


# --------------------------------------------------------------------------------------------------------- segmentation
def test_confusion_is_sklearns_and_miou_torchmetrics():
    """Labels with some ignored pixels, and predictions that are often right."""
    reference = JaccardIndex("multiclass", num_classes=5, average="macro", ignore_index=255)
    truths, predictions, scores = [], [], SegmentationScores(5)
    for _ in range(6):
        truth = torch.randint(5, (13, 17))
        prediction = torch.where(torch.rand(13, 17) < 0.6, truth, torch.randint(5, (13, 17)))
        truth = truth.masked_fill(torch.rand(13, 17) < 0.1, 255)
        scores.add(truth, prediction)
        reference.update(prediction, truth)
        truths.append(truth[truth != 255])
        predictions.append(prediction[truth != 255])
    expected = confusion_matrix(torch.cat(truths), torch.cat(predictions), labels=range(5))
    assert np.array_equal(scores.confusion, expected)
    assert dict(scores.values("ss"))["miou_ss"] == pytest.approx(100 * reference.compute().item(), rel=1e-5)


def test_classes_without_pixels_are_nan_and_left_out_but_false_alarms_count_as_zero():
    scores = SegmentationScores(4)
    scores.add(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 2]]))
    assert scores.iou().tolist() == pytest.approx([1.0, 0.5, 0.0, math.nan], nan_ok=True)
    assert scores.recall().tolist() == pytest.approx([1.0, 0.5, math.nan, math.nan], nan_ok=True)
    assert dict(scores.values("ss")) == pytest.approx({"miou_ss": 50.0, "macc_ss": 75.0, "aacc_ss": 75.0})


def test_a_split_without_labels_is_refused():
    with pytest.raises(UserError, match="no pixel of the validation split is labelled"):
        dict(SegmentationScores(3).values("ss"))


def distances(batch: dict) -> Tensor:
    """How far each pixel's colour is from that of each class of the drawings."""
    colours = COLOURS / 127.5 - 1
    return (batch["image"][:, None] - colours.view(1, 5, 3, 1, 1)).square().sum(2)


@pytest.mark.parametrize(("multi_scale", "names"), [(True, ["miou_ms"]), (False, [])])
def test_a_network_that_sees_the_classes_scores_100_percent(multi_scale, names):
    settings = {"short_side": 40, "long_side": 160, "multi_scale": multi_scale}
    samples = map(Drawings("segmentation").sample, range(5))
    spec = make_spec("segmentation", settings)
    values = dict(evaluate_segmentation(lambda batch: -50 * distances(batch), samples, spec, len(CLASSES)))
    assert values["miou_ss"] == pytest.approx(100.0)
    assert values["aacc_ss"] == pytest.approx(100.0)
    assert list(values) == ["miou_ss", "macc_ss", "aacc_ss", *names]


# ----------------------------------------------------------------------------------------------------------- referring
def test_overall_iou_is_torchmetrics_and_mean_iou_its_mean_over_sentences():
    scores, overall, each = ReferringScores(), JaccardIndex("binary"), []
    for _ in range(7):
        truth, prediction = torch.rand(9, 11) < 0.4, torch.rand(9, 11) < 0.5
        scores.add(truth, prediction)
        overall.update(prediction, truth)
        each.append(JaccardIndex("binary")(prediction, truth).item())
    values = dict(scores.values(THRESHOLDS))
    assert values["oiou"] == pytest.approx(100 * overall.compute().item(), rel=1e-5)
    assert values["miou"] == pytest.approx(100 * np.mean(each), rel=1e-5)


def test_every_sentence_is_scored_once():
    asked = []

    def predict(batch: dict) -> Tensor:
        asked.extend(batch["id"])
        distance = distances(batch)
        return -torch.stack([distance[:, [0, 1, 3, 4]].amin(1), distance[:, 2]], 1)

    samples = map(Drawings("referring", 7).sample, range(7))
    values = dict(evaluate_referring(predict, samples, make_spec("referring"), 0))
    assert asked == [f"drawing-{index}" for index in range(7)]
    assert values["oiou"] == values["miou"] == values["p90"] == 100.0
    assert "oiou_native" not in values


def test_masks_at_the_original_size_are_scored_where_samples_carry_them():
    """The right half of the image at 32x32 and at 50x80: exact at both sizes."""

    def right_half(height: int, width: int) -> Tensor:
        return (torch.arange(width) >= width // 2).long().expand(height, width)

    def predict(batch: dict) -> Tensor:
        half = right_half(32, 32).float().expand(len(batch["image"]), 1, 32, 32)
        return torch.cat([0.5 - half, half - 0.5], 1)

    masks = {"label": right_half(32, 32), "native_label": right_half(50, 80)}
    samples = (Drawings("referring").sample(index) | masks for index in range(3))
    values = dict(evaluate_referring(predict, samples, make_spec("referring"), 0))
    assert values["oiou"] == values["oiou_native"] == 100.0


# --------------------------------------------------------------------------------------------------------------- depth
def test_depth_errors_by_hand():
    truth, prediction = torch.tensor([1.0, 2.0, 4.0, 10.0]), torch.tensor([1.2, 1.4, 4.0, 5.1])
    expected = {
        "rmse": math.sqrt((0.2**2 + 0.6**2 + 0 + 4.9**2) / 4),
        "delta1": 0.5,  # ratios 1.2, 1.43, 1, 1.96; bounds 1.25, 1.5625, 1.953
        "delta2": 0.75,
        "delta3": 0.75,
        "rel": (0.2 + 0.3 + 0 + 0.49) / 4,
        "log10": (math.log10(1.2) + math.log10(2 / 1.4) + math.log10(10 / 5.1)) / 4,
    }
    assert depth_errors(truth, prediction) == pytest.approx(expected, rel=1e-6)


def test_every_image_counts_the_same_and_predictions_are_clamped():
    """One image with one valid pixel and one with many: a mean of image errors, not of pixels."""
    scores = DepthScores(make_spec("depth", {"crop": [0, 4, 0, 4], "max_depth": 8.0}).evaluation)
    lone = torch.zeros(4, 4)
    lone[0, 0] = 5.0
    scores.add("a", lone, torch.full((4, 4), 99.0))  # clamped to 8: error 3
    scores.add("b", torch.full((4, 4), 2.0), torch.full((4, 4), -1.0))  # clamped to 0.001: error 1.999
    values = dict(scores.values())
    assert values["rmse"] == pytest.approx((3.0 + 1.999) / 2, rel=1e-6)
    assert values["rel"] == pytest.approx((3 / 5 + 1.999 / 2) / 2, rel=1e-6)
    with pytest.raises(UserError, match="sample bathroom_3 has no depth between"):
        scores.add("bathroom_3", torch.zeros(4, 4), torch.ones(4, 4))


# --------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.parametrize("task", ["segmentation", "referring", "depth"])
def test_metrics_hold_every_seed_and_milestone(tmp_path, task):
    experiment = Experiment(tmp_path, task)
    content = json.loads(experiment.evaluate())
    out = evaluated(tmp_path / "out", experiment.spec.name)
    made = read_provenance(out.provenance)
    assert {seed: run.files for seed, run in made.runs.items()} == {
        f"seed{seed}": read_json(experiment.runs / f"seed{seed}/manifest.json")["files"]
        for seed in experiment.spec.seeds
    }
    assert (made.spec, made.metrics) == (experiment.spec.digest(), sha256(out.metrics))
    decisive = {"segmentation": "miou_ss", "referring": "oiou", "depth": "rmse"}[task]
    assert read_json(out.headline) == {decisive: content["final"][decisive]["mean"]}
    for metrics in content.values():
        for numbers in (dict(metrics[name]) for name in metrics.keys() - {"step"}):
            mean, sd, seeds = numbers.pop("mean"), numbers.pop("sd"), list(numbers.values())
            assert (mean, sd) == pytest.approx((np.mean(seeds), np.std(seeds, ddof=1)), abs=1e-6)
    results = read_metrics(out.metrics)
    keys = [(result["seed"], result["milestone"], result["step"]) for result in results]
    assert keys == [(0, "half", 5), (0, "final", 10), (1, "half", 5), (1, "final", 10)]
    numbers = [number for result in results for number in result["metrics"].values()]
    assert all(math.isfinite(number) and number == round(number, 6) for number in numbers)
    assert (out.panels / "predictions.png").exists()
    assert not [path for path in (tmp_path / "state").iterdir() if path.is_dir()]


CHANGES = {
    "nothing": (lambda out: None, True),
    "a file of somebody else": (lambda out: (out.panels / "Thumbs.db").touch(), True),
    "metrics": (lambda out: out.metrics.write_text("{}"), False),
    "no metrics": (lambda out: out.metrics.unlink(), False),
    "headline": (lambda out: out.headline.write_text("{}"), False),
    "no headline": (lambda out: out.headline.unlink(), False),
    "picture": (lambda out: (out.panels / "predictions.png").write_bytes(b""), False),
    "no picture": (lambda out: (out.panels / "predictions.png").unlink(), False),
    "a picture of other settings": (lambda out: (out.panels / "attention.png").touch(), False),
    "no provenance": (lambda out: out.provenance.unlink(), False),
}


def test_results_that_are_not_as_they_were_written_are_not_current(tmp_path):
    experiment = Experiment(tmp_path, "depth")
    experiment.evaluate()
    out = evaluated(tmp_path / "out", experiment.spec.name)
    made = read_provenance(out.provenance).fingerprint
    files = [out.metrics, out.headline, out.provenance, out.panels / "predictions.png"]
    before = {path: path.read_bytes() for path in files}
    found = {}
    for name, (change, _) in CHANGES.items():
        change(out)
        found[name] = is_evaluated(out, made)
        for path, content in before.items():
            path.write_bytes(content)
        (out.panels / "attention.png").unlink(missing_ok=True)
    assert found == {name: current for name, (_, current) in CHANGES.items()}


def test_each_result_is_that_of_its_own_weights(tmp_path):
    experiment = Experiment(tmp_path, "depth")
    experiment.evaluate()
    for result in read_metrics(evaluated(tmp_path / "out", experiment.spec.name).metrics):
        model = SmallModel("depth")
        model.load_state_dict(load_file(tmp_path / f"runs/seed{result['seed']}/{result['milestone']}.safetensors"))
        with torch.inference_mode():
            expected = dict(evaluate_depth(model, map(experiment.data.sample, range(5)), experiment.spec, 0))
        assert result["metrics"] == pytest.approx(expected, abs=1e-6)


def test_bf16_is_used_only_if_asked_for_and_scores_nearly_the_same(tmp_path):
    scores = {}
    for precision in ("fp32", "bf16"):
        experiment = Experiment(tmp_path / precision, "depth", evaluation={"precision": precision})
        types = set()
        experiment.model.register_forward_hook(lambda _, given, made, types=types: types.add(made.dtype))
        experiment.evaluate()
        assert types == {PRECISIONS[precision]}
        results = read_metrics(evaluated(tmp_path / precision / "out", experiment.spec.name).metrics)
        scores[precision] = [result["metrics"]["rmse"] for result in results]
    assert scores["bf16"] == pytest.approx(scores["fp32"], rel=0.02)
    assert scores["bf16"] != scores["fp32"]


def test_evaluating_twice_gives_the_same_bytes_since_dropout_is_off(tmp_path):
    experiment = Experiment(tmp_path)
    experiment.model.head.register_forward_hook(
        lambda module, _, output: nn.functional.dropout(output, 0.5, module.training)
    )
    experiment.model.train()
    assert experiment.evaluate("one") == experiment.evaluate("two")
    one, two = ((tmp_path / name / "panels/referring-small/predictions.png").read_bytes() for name in ("one", "two"))
    assert one == two


def evaluate_slowly(folder: Path) -> None:
    """Half a second per batch, so that there is time to be killed."""
    experiment = Experiment(folder)
    forward = experiment.model.forward
    experiment.model.forward = lambda batch: time.sleep(0.5) or forward(batch)
    experiment.evaluate()


def test_a_killed_evaluation_goes_on_where_it_stopped_and_ends_with_the_same_bytes(tmp_path):
    whole = Experiment(tmp_path / "whole").evaluate()
    experiment = Experiment(tmp_path / "killed")
    victim = multiprocessing.get_context("fork").Process(target=evaluate_slowly, args=(tmp_path / "killed",))
    victim.start()

    def partial() -> list[Path]:
        return sorted((tmp_path / "killed/state").glob("*/seed*.json"))

    while len(partial()) < 2 and victim.is_alive():
        time.sleep(0.05)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    finished = partial()
    assert 2 <= len(finished) < 4
    assert not (tmp_path / "killed/out/provenance").exists()

    asked = []
    forward = experiment.model.forward
    experiment.model.forward = lambda batch: asked.append(batch["id"]) or forward(batch)
    assert experiment.evaluate() == whole
    batches = 2  # of five sentences, four at a time
    panels = 1
    assert len(asked) == (4 - len(finished)) * batches + panels


def test_results_of_other_runs_are_not_taken_up(tmp_path):
    """New weights give another key, so what an interrupted evaluation of the old ones left behind is not used."""
    experiment = Experiment(tmp_path)
    runs = experiment.runs
    old = tmp_path / "state" / fingerprint(experiment.spec.model_dump(mode="json"), [], {"runs": runs}).key
    wrong = {"seed": 0, "milestone": "half", "step": 5, "metrics": {"oiou": -1.0, "miou": -1.0}}
    write_json(old / "seed0-half.json", wrong)
    path = runs / "seed0/half.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    manifest = read_json(path.parent / "manifest.json")
    write_json(path.parent / "manifest.json", {**manifest, "files": {**manifest["files"], path.name: sha256(path)}})
    gather(runs, experiment.spec.seeds, tmp_path / "history.csv")
    assert json.loads(experiment.evaluate())["half"]["oiou"]["seed0"] >= 0


# ------------------------------------------------------------------------------------------------------------ mistakes
def test_a_missing_run_and_one_trained_with_another_spec_are_refused(tmp_path):
    experiment = Experiment(tmp_path)
    expected = made_from(experiment.spec, 0)
    check_run(tmp_path / "runs/seed0", expected, "referring-small")
    other = replace(expected, settings="another", inputs={"data": "another"})
    message = "seed0 was trained with other settings and data than there are now; run train for referring-small again"
    with pytest.raises(UserError, match=message):
        check_run(tmp_path / "runs/seed0", other, "referring-small")
    with pytest.raises(UserError, match=r"seed7/fingerprint\.json does not exist"):
        check_run(tmp_path / "seed7", Fingerprint("s", "c"), "referring-small")


@pytest.mark.parametrize("damage", ["cut", "removed", "exchanged"])
def test_damaged_weights_are_refused(tmp_path, damage):
    experiment = Experiment(tmp_path)
    path = tmp_path / "runs/seed1/half.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "removed":
        path.unlink()
    else:
        path.write_bytes((tmp_path / "runs/seed0/half.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"seed1/half\.safetensors is missing or not the file .* run train again"):
        experiment.evaluate()
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_not_finite_name_the_experiment_and_the_sample(tmp_path, value):
    experiment = Experiment(tmp_path)
    forward = experiment.model.forward

    def broken(batch: dict) -> Tensor:
        output = forward(batch)
        output[[name == "drawing-3" for name in batch["id"]], 0, 5, 5] = value
        return output

    experiment.model.forward = broken
    with pytest.raises(UserError, match="referring-small: the prediction for sample drawing-3 is not finite"):
        experiment.evaluate()


def test_an_empty_split_is_refused(tmp_path):
    experiment = Experiment(tmp_path)
    experiment.data = Drawings("referring", 0)
    with pytest.raises(UserError, match="the validation split of drawn is empty"):
        experiment.evaluate()


def refuse(index: int) -> dict:
    raise UserError(f"image {index} is damaged")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_reported_in_one_sentence_from_any_process(workers):
    drawings = Drawings("referring")
    drawings.sample = refuse
    with pytest.raises(UserError, match=r"^image 0 is damaged$"):
        list(load_samples(drawings, workers, Progress(5, "test"), ""))


def test_samples_and_their_native_labels_do_not_depend_on_the_number_of_workers():
    drawings = Drawings("referring")
    drawings.native_label = lambda index: drawings.labels(index)[:7]
    alone, together = (list(load_samples(drawings, workers, Progress(5, "test"), "")) for workers in (0, 2))
    assert [sample["id"] for sample in together] == [f"drawing-{index}" for index in range(5)]
    for one, other, index in zip(alone, together, range(5), strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["native_label"], drawings.labels(index)[:7])
        assert torch.equal(one["native_label"], other["native_label"])

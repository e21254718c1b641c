"""Ids of docs/fidelity.md about both kinds of segmentation (G, R), from params.yaml's settings to their effect."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_fakes import Experiment
from fidelity_fakes import checkpoint_of_factor_8, experiment, params, rng, shows
from fixtures.parity.narrow import build, make_batch
from vpd.config.paths import evaluated
from vpd.config.schema import DatasetSpec
from vpd.datasets import build_dataset, nyuv2, refcoco
from vpd.datasets.manifest import check_counts
from vpd.datasets.transforms import augment_segmentation
from vpd.evaluation.inference import segment
from vpd.evaluation.results import best_of, read_metrics
from vpd.evaluation.scores import evaluate_referring
from vpd.models.prompts import encode_prompts, imagenet_templates
from vpd.models.text import load_text_encoder
from vpd.stages.data import prepare_dataset
from vpd.utils.errors import UserError
from vpd.utils.files import read_json


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_of_factor_8(tmp_path_factory.mktemp("checkpoint"))


# ------------------------------------------------------------------------------------------------ ADE20K: data and tests
@pytest.fixture
def ade20k(tmp_path):
    """One image of 96x64 with labels 0, 1 and 2 in columns of 32, and classes with several names."""
    root = tmp_path / "ADEChallengeData2016"
    columns = np.repeat(np.array([0, 1, 2], np.uint8), 32)[None].repeat(64, 0)
    for split in ("training", "validation"):
        for kind, array, suffix in (
            ("images", np.zeros((64, 96, 3), np.uint8), "jpg"),
            ("annotations", columns, "png"),
        ):
            (root / kind / split).mkdir(parents=True)
            Image.fromarray(array).save(root / kind / split / f"ADE_1.{suffix}")
    lines = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1\t1\t1\tball, sphere", "2\t0.1\t1\t1\tbox, chest, crate"]
    (root / "objectInfo150.txt").write_text("\n".join(lines))
    return tmp_path


@shows(G3="model.prompt.templates", D5="model.prompt.templates model.prompt.length")
@pytest.mark.parametrize(
    ("name", "protocol", "changes", "many", "length"),
    [
        ("seg-full", "official", {}, False, 77),
        ("seg-full", "official", {"model.prompt.templates": "imagenet-80"}, True, 77),
        ("depth-full", "official", {}, True, 20),
        ("depth-full", "paper", {}, False, 20),
        ("depth-full", "paper", {"model.prompt.length": 6}, False, 6),
    ],
)
def test_classes_are_one_sentence_or_the_mean_of_eighty(ade20k, checkpoint, name, protocol, changes, many, length):
    spec = experiment(name, changes, protocol=protocol)
    classes = build_dataset(spec, ade20k, "val").classes if spec.task == "segmentation" else ["dining_room", "study"]
    assert classes[0] in ("ball", "dining_room")
    encoder = load_text_encoder(checkpoint, spec.model.prompt.length)
    ids = encoder.tokenizer("a photo of a dining room", padding="max_length", truncation=True, max_length=length)
    found = encode_prompts(spec.model.prompt, encoder, classes)
    sentences = imagenet_templates() if many else ("a photo of a {}",)
    words = classes[0].replace("_", " ")
    expected = torch.cat([encoder.pooled([sentence.format(words)]) for sentence in sentences]).mean(0)
    torch.testing.assert_close(found[0], expected)
    assert encoder([""]).shape[1] == len(ids.input_ids) == length
    assert len(found) == len(classes) == 2
    assert list(nyuv2.SCENES) == sorted(nyuv2.SCENES)


@shows(G9="data.crop")
def test_label_0_is_ignored_and_the_others_count_from_0(ade20k):
    sizes = {"short_side": 64, "long_side": 96, "ratio_range": [1.0, 1.0], "crop": 96}
    changes = {**sizes, "flip": 0, "photometric": False}
    spec = experiment("seg-full", {f"data.{key}": value for key, value in changes.items()})
    sample = build_dataset(spec, ade20k, "train").sample(0)
    assert sample["label"].shape == (96, 96)
    assert sample["label"][0].tolist() == [255] * 32 + [0] * 32 + [1] * 32
    assert (sample["label"][64:] == 255).all()
    assert (sample["image"][:, :64] == -1).all()


def augmented(changes, image=None, labels=None, seed=0):
    """A sample of 96x64, all of class 1 where not given, with nothing left to chance but what ``changes`` say."""
    plain = {"ratio_range": [1.0, 1.0], "max_class_share": 1.0, "flip": 0.0, "photometric": False} | changes
    data = experiment("seg-full", {f"data.{key}": value for key, value in plain.items()}).data
    image = np.full((64, 96, 3), 120, np.uint8) if image is None else image
    return augment_segmentation(
        image, np.ones(image.shape[:2], np.uint8) if labels is None else labels, data, rng(seed)
    )


@shows(G9="data.short_side data.long_side data.ratio_range data.crop")
@pytest.mark.parametrize(("changes", "size"), [
    ({}, (512, 512)), ({"short_side": 256}, (256, 384)), ({"long_side": 576}, (384, 512)),
    ({"ratio_range": [0.5, 0.5]}, (256, 384)), ({"crop": 128}, (128, 128)),
])  # fmt: skip
def test_images_are_resized_and_cropped_to_these_pixels(changes, size):
    image, labels = augmented(changes)
    side = changes.get("crop", 512)
    assert (image.shape, labels.shape) == ((side, side, 3), (side, side))
    rows, columns = np.nonzero(labels == 1)
    assert (rows.max() + 1, columns.max() + 1, len(rows)) == (*size, size[0] * size[1])
    assert image[0, 0, 0] == pytest.approx((120 - 127.5) / 127.5)


@shows(G9="data.ratio_range")
def test_images_are_scaled_by_any_ratio_of_the_range():
    heights = [(augmented({"ratio_range": [0.5, 1.0]}, seed=seed)[1] == 1).any(1).sum() for seed in range(40)]
    assert 256 <= min(heights) < 300 < 460 < max(heights) <= 512
    assert experiment("seg-full").data.ratio_range == (0.5, 2.0)


@shows(G9="data.flip data.photometric")
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_images_are_mirrored_with_their_probability_and_distorted_if_asked(share):
    """Distortion changes colours in all but the 1 of 16 cases in which none of its four parts is drawn."""
    image, labels = np.zeros((512, 512, 3), np.uint8), np.zeros((512, 512), np.uint8)
    image[:, :256], labels[:, :256] = (40, 100, 160), 1
    colour, found = (image[0, 0] - 127.5) / 127.5, []
    for seed in range(80):
        x, y = augmented({"flip": share, "photometric": share > 0}, image, labels, seed)
        found.append((y[0, -1] == 1, not np.allclose(x[y == 1], colour, atol=1e-3)))
    mirrored, distorted = np.mean(found, axis=0)
    assert mirrored == pytest.approx(share, abs=0.15)
    assert distorted == (0 if share == 0 else pytest.approx(15 / 16, abs=0.08))


@shows(G9="data.max_class_share")
@pytest.mark.parametrize(("share", "low", "high"), [(0.75, 0, 5), (1.0, 20, 40)])
def test_a_crop_that_one_class_fills_is_drawn_again(share, low, high):
    """A quarter of the windows shows both halves to at least a quarter; eleven draws miss all of them in 1 of 24."""
    image, labels = np.zeros((512, 1536, 3), np.uint8), np.zeros((512, 1536), np.uint8)
    labels[:, 768:] = 1
    crops = [augmented({"max_class_share": share}, image, labels, seed)[1] for seed in range(40)]
    assert low <= sum(np.bincount(crop.ravel()).max() >= 0.75 * crop.size for crop in crops) <= high


@shows(G7="evaluation.ratios evaluation.multi_scale", G8="evaluation.crop evaluation.stride")
@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, {1.0: 2, 1.125: 4, 1.25: 6, 1.375: 6, 1.5: 6}),
        ({"evaluation.multi_scale": False}, {1.0: 2}),
        ({"evaluation.ratios": [1.0, 1.5]}, {1.0: 2, 1.5: 6}),
        ({"evaluation.ratios": [1.0], "evaluation.stride": 100}, {1.0: 3}),
        ({"evaluation.ratios": [1.0], "evaluation.crop": 384, "evaluation.stride": 341}, {1.0: 4}),
    ],
)
def test_a_test_image_of_683_by_512_is_seen_in_these_windows(changes, windows):
    settings, seen = experiment("seg-full", changes).evaluation, []

    def predict(batch):
        assert batch["image"].shape[2:] == (settings.crop, settings.crop)
        seen.extend(key.split("/")[1:] for key in batch["key"])
        return torch.zeros(len(batch["image"]), 2, 8, 8)

    list(segment(predict, [{"id": "x", "image": torch.zeros(3, 512, 683, dtype=torch.uint8)}], settings))
    for view in ("plain", "mirrored") if settings.multi_scale else ("plain",):
        found = [float(ratio) for ratio, _, mirrored in seen if mirrored == view]
        assert {ratio: found.count(ratio) for ratio in found} == windows
    assert len(seen) == sum(windows.values()) * (2 if settings.multi_scale else 1)


@shows(G8="evaluation.stride")
def test_probabilities_are_taken_after_the_mean_of_the_windows_logits():
    """Where the two windows meet, mean logits are (2, 1, -7.5); mean probabilities would prefer the second class."""
    settings = experiment("seg-full", {"evaluation.multi_scale": False}).evaluation
    logits = {"0,0": [2.0, 6.0, -20.0], "0,171": [2.0, -4.0, 5.0]}

    def predict(batch):
        values = [logits[key.split("/")[2]] for key in batch["key"]]
        return torch.tensor(values)[:, :, None, None].expand(-1, -1, 64, 64)

    image = {"id": "x", "image": torch.zeros(3, 512, 683, dtype=torch.uint8)}
    ((_, labels),) = segment(predict, [image], settings)
    assert labels["ss"][7].tolist() == [1] * 171 + [0] * (512 - 171) + [2] * 171
    both = torch.tensor(list(logits.values())).softmax(1).mean(0)
    assert both.argmax() == 1


@shows(G10="model.head.kind model.head.channels model.head.dropout")
@pytest.mark.parametrize(("channels", "dropout"), [(256, 0.1), (128, 0.6)])
def test_the_segmentation_head_is_an_fpn_with_dropout_of_whole_channels(checkpoint, channels, dropout):
    model = build(experiment("seg-full", {"model.head.channels": channels, "model.head.dropout": dropout}), checkpoint)
    assert (experiment("seg-full").model.head.channels, experiment("seg-full").model.head.dropout) == (256, 0.1)
    assert {conv.out_channels for conv in model.head.neck.fpn_convs} == {channels}
    assert model.features(make_batch()).strides == [8, 16, 32, 64]
    seen = []
    model.head.conv_seg.register_forward_pre_hook(lambda _, given: seen.append((given[0] == 0).all((2, 3))))
    assert model(make_batch(128, 64)).shape[2:] == (16, 8)
    other = build(experiment("seg-full", {"model.head.kind": "simple-decoding", "model.head.channels": 8}), checkpoint)
    assert other(make_batch(128, 64)).shape[2:] == (128, 64)
    with torch.no_grad():
        for _ in range(10):
            model.train()(make_batch())
    assert seen[0].shape == (2, channels)
    assert not seen[0].any()
    assert torch.cat(seen[1:]).float().mean().item() == pytest.approx(dropout, abs=0.03)


# --------------------------------------------------------------------------------------------------------- RefCOCO family
@pytest.fixture(scope="module")
def referring(tmp_path_factory):
    """A drawn dataset whose images have 80x64 pixels."""
    root = tmp_path_factory.mktemp("referring")
    draw = {"train": 6, "val": 3, "testA": 1, "testB": 1}
    prepare_dataset(
        "refcoco", DatasetSpec(format="refcoco", source="synthetic", images=draw, size=(80, 64)), root / "refcoco"
    )
    return root / "refcoco"


@shows(R2="data.size evaluation.size", R7="data.size evaluation.size")
@pytest.mark.parametrize("side", [512, 96])
def test_images_and_masks_have_the_size_of_the_data_or_of_the_evaluation(referring, side):
    for key, split in (("data.size", "train"), ("evaluation.size", "val")):
        dataset = build_dataset(experiment("refcoco-full", {key: side}), referring, split)
        sample = dataset.sample(0)
        assert (sample["image"].shape, sample["label"].shape) == ((3, side, side), (side, side))
    assert dataset.native_label(0).shape == (64, 80)
    assert experiment("refcoco-full").data.size == 512


@shows(R12="sentences")
def test_an_epoch_takes_one_sentence_of_each_object(referring):
    train, val = (build_dataset(experiment("refcoco-full"), referring, split) for split in ("train", "val"))
    counts = read_json(referring / "manifest.json")["counts"]
    assert len(train) == counts["refcoco/train/objects"] < counts["refcoco/train"]
    assert len(val) == counts["refcoco/val"]
    for index, reference in enumerate(train.references[:3]):
        said = {train.sample(index, epoch)["text"] for epoch in range(25)}
        assert said == {text for _, text in reference.sentences}


@shows(R9="datasets.refcoco.expect")
def test_refcocog_has_the_umd_split_and_its_4896_sentences(tmp_path):
    for author in ("google", "umd"):
        path = tmp_path / f"refcocog/refs({author}).p"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps([]))
    assert refcoco.refs_path(tmp_path, "refcocog").name == "refs(umd).p"
    (tmp_path / "refcocog/refs(umd).p").unlink()
    with pytest.raises(UserError, match="no RefCOCO variant 'refcocog'"):
        refcoco.refs_path(tmp_path, "refcocog")
    spec = params().dataset("refcoco")
    counts = {"refcoco/val": 10834, "refcoco+/val": 10758, "refcocog/val": 4896}
    check_counts(tmp_path, spec, counts)
    with pytest.raises(UserError, match=r"9536 refcocog/val, expected 4896"):
        check_counts(tmp_path, spec, counts | {"refcocog/val": 9536})


@shows(R8="evaluation.thresholds", R7="oiou_native")
def test_referring_scores_over_all_sentences():
    """IoUs 1/2, 1 and 0 (two empty masks) with unions 4, 8 and 0: overall 10/12; every mask fills half of the native."""
    rows = [([1] * 4 + [0] * 4, [1] * 2 + [0] * 6), ([1] * 8, [1] * 8), ([0] * 8, [0] * 8)]

    def samples():
        for number, (truth, said) in enumerate(rows):
            image, label = torch.tensor(said).view(1, 2, 4).float(), torch.tensor(truth).view(2, 4)
            native = torch.cat([label.repeat_interleave(2, 0), torch.ones(4, 4, dtype=torch.int64)], 1)
            common = {"image": image, "label": label, "native_label": native}
            yield {**common, "text": "", "id": str(number), "image_id": str(number)}

    def predict(batch):
        return torch.cat([0.5 - batch["image"], batch["image"] - 0.5], 1)

    spec = experiment("refcoco-full")
    found = dict(evaluate_referring(predict, samples(), spec, 0))
    assert found.pop("oiou_native") != found["oiou"]
    thirds = {"p50": 200 / 3, "p60": 100 / 3, "p70": 100 / 3, "p80": 100 / 3, "p90": 100 / 3}
    assert found == pytest.approx({"oiou": 100 * 10 / 12, "miou": 50.0, **thirds})
    few = evaluate_referring(predict, samples(), experiment("refcoco-full", {"evaluation.thresholds": [0.25, 0.75]}), 0)
    assert {name: value for name, value in few if name[0] == "p"} == pytest.approx({"p25": 200 / 3, "p75": 100 / 3})


# ------------------------------------------------------------------------------------------------------------ best epoch
@shows(R6="evaluation.best", D14="evaluation.best")
@pytest.mark.parametrize(("name", "metric", "best"), [("seg-full", "miou_ss", "late"), ("refcoco-full", "oiou", "late"),
                                                      ("depth-full", "rmse", "early")])  # fmt: skip
def test_the_best_milestone_has_the_highest_overlap_or_the_lowest_error(name, metric, best):
    values = {"early": 0.25, "late": 0.31, "final": 0.29}
    results = [{"seed": 0, "milestone": key, "step": 1, "metrics": {metric: value}} for key, value in values.items()]
    others = [{**result, "seed": 1, "metrics": {metric: 0.3}} for result in results]
    found = best_of(experiment(name, {"evaluation.best": True}), [*others, *results], seed=0)
    assert (found["milestone"], found["metrics"][metric]) == ("best", values[best])


@shows(R6="evaluation.best training.milestones", D14="evaluation.best")
@pytest.mark.parametrize("task", ["referring", "depth"])
def test_the_best_milestone_is_reported_only_if_asked(tmp_path, task):
    assert not experiment("refcoco-full").evaluation.best
    reported = {}
    for best in (False, True):
        run = Experiment(tmp_path, task)
        settings = run.spec.evaluation.model_copy(update={"best": best})
        run.spec = run.spec.model_copy(update={"evaluation": settings})
        run.evaluate(f"{best}")
        reported[best] = read_metrics(evaluated(tmp_path / f"{best}", run.spec.name).metrics)
    assert {result["milestone"] for result in reported[False]} == set(run.spec.training.milestones) == {"half", "final"}
    name, choose = {"referring": ("oiou", max), "depth": ("rmse", min)}[task]
    for seed in run.spec.seeds:
        both = [result["metrics"][name] for result in reported[False] if result["seed"] == seed]
        (found,) = (result for result in reported[True] if (result["seed"], result["milestone"]) == (seed, "best"))
        assert found["metrics"][name] == choose(both)

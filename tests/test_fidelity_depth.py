"""Ids of docs/fidelity.md about depth (D), from params.yaml's settings to their effect."""

import numpy as np
import pytest
import torch

from fidelity_fakes import checkpoint_of_factor_8, experiment, params, rng, shows
from fixtures.parity.narrow import build, make_batch
from vpd.datasets import build_dataset, nyuv2
from vpd.datasets.manifest import check_counts
from vpd.datasets.transforms import augment_depth, cut_depth
from vpd.evaluation.inference import estimate_depth
from vpd.evaluation.scores import evaluate_depth, scored_pixels
from vpd.utils.errors import UserError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_of_factor_8(tmp_path_factory.mktemp("checkpoint"))


# ------------------------------------------------------------------------------------------------------------- NYUv2: data
@shows(D1="datasets.nyuv2.expect", D2="datasets.nyuv2.expect")
@pytest.mark.parametrize(("split", "count"), [("test", 645), ("test", 652), ("train", 24_000)])
def test_other_numbers_of_images_are_refused(tmp_path, split, count):
    spec, whole = params().dataset("nyuv2"), {"train": 24_231, "test": 654}
    check_counts(tmp_path, spec, whole)
    with pytest.raises(UserError, match=rf"has {count} {split}, expected {whole[split]}"):
        check_counts(tmp_path, spec, whole | {split: count})


@shows(D4="model.prompt.class_source")
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("first-match", ["kitchen", "study", "office", "living_room", "home_office"]),
        ("exact", ["office_kitchen", "study_room", "office", "living_room", "home_office"]),
        ("mean", None),
    ],
)
def test_a_scene_folder_selects_the_class(tmp_path, checkpoint, source, expected):
    folders = ["office_kitchen_0001", "study_room_0005b", "nyu_office_0", "living_room_0012", "nyu_home_office_0028a"]
    (tmp_path / "test_list.txt").write_text("".join(f"{folder}/a.jpg {folder}/a.png\n" for folder in folders))
    changes = {"model.prompt.class_source": source, "model.prompt.templates": "single", "model.adapter.enabled": False}
    spec = experiment("depth-full", changes)
    dataset, model = build_dataset(spec, tmp_path, "val"), build(spec, checkpoint)
    assert len(dataset.classes) == 27
    model.class_embeddings = table = torch.randn(27, 32)
    found = model.context({"image": torch.zeros(5, 3, 8, 8), "class_id": torch.tensor(dataset.class_ids)})[:, 0]
    if expected is None:
        torch.testing.assert_close(found, table.mean(0).expand(5, -1))
    else:
        assert torch.equal(found, table[[nyuv2.SCENES.index(name) for name in expected]])


def strips(changes, seeds, depth):
    """Columns of the strip pasted into a black image of 400 columns, by seed."""
    changes = {f"data.{key}": value for key, value in changes.items()}
    data = experiment("depth-full", changes | {"data.flip": 0.0, "data.photometric": 0.0, "data.crop": 400}).data
    image = np.zeros((400, 400, 3), np.uint8)
    for seed in range(seeds):
        yield (augment_depth(image, depth, data, rng(seed))[0][0, :, 0] > -1).sum()


@shows(D17="data.cutdepth data.cutdepth_width")
@pytest.mark.parametrize(
    ("changes", "share", "width"), [({}, 0.25, 0.75), ({"cutdepth": 1.0, "cutdepth_width": 0.5}, 1.0, 0.5)]
)
def test_strips_are_pasted_with_their_probability_and_are_at_most_so_wide(changes, share, width):
    """Expected width of a strip: a quarter of the largest."""
    found = np.array(list(strips(changes, 240, np.ones((400, 400), np.float32))))
    pasted = found[found > 0]
    assert len(pasted) / 240 == pytest.approx(share, abs=0.08)
    assert width * 400 * 0.6 < pasted.max() <= width * 400
    assert pasted.mean() == pytest.approx(width * 400 / 4, rel=0.3)


@shows(D17="data.cutdepth_values")
@pytest.mark.parametrize(("values", "expected"), [("wrapped", 2500 % 256), ("ramp", int(2.5 / 10 * 255))])
def test_a_strip_shows_wrapped_millimetres_or_a_ramp(values, expected):
    data = experiment("depth-full", {"data.cutdepth_values": values}).data
    image = cut_depth(np.full((4, 400, 3), 255, np.uint8), np.full((4, 400), 2.5, np.float32), data, rng(1))
    assert set(np.unique(image)) == {expected, 255}
    assert experiment("depth-full").data.cutdepth_values == "wrapped"


@shows(D17="data.flip data.photometric")
@pytest.mark.parametrize(("flip", "photometric"), [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_depth_images_are_mirrored_and_changed_with_their_probabilities(flip, photometric):
    """Brightness, gamma and colour are drawn one by one; a uniform grey can only hide a change that rounds to none."""
    data = experiment("depth-full", {"data.flip": flip, "data.photometric": photometric, "data.cutdepth": 0.0}).data
    depth = np.repeat(np.linspace(1, 9, 480, dtype=np.float32)[None], 480, 0)
    image, found = np.full((480, 480, 3), (40, 100, 160), np.uint8), []
    for seed in range(150):
        x, moved = augment_depth(image, depth, data, rng(seed))
        found.append((moved[0, 0] > moved[0, -1], not np.allclose(x[0, 0], (image[0, 0] - 127.5) / 127.5, atol=1e-3)))
    mirrored, changed = np.mean(found, axis=0)
    assert mirrored == pytest.approx(flip, abs=0.12)
    assert changed == pytest.approx(1 - (1 - photometric) ** 3, abs=0.08)
    assert (experiment("depth-full").data.flip, experiment("depth-full").data.photometric) == (0.5, 0.5)


# ---------------------------------------------------------------------------------------------------- NYUv2: network, test
@shows(D3="model.attention.places")
def test_depth_records_no_maps_and_under_paper_maps_of_ones(checkpoint):
    for protocol in ("official", "paper"):
        changes = {"model.canvas": 64, "model.prompt.templates": "single", "model.head.channels": 16}
        features = build(experiment("depth-full", changes, protocol=protocol), checkpoint).features(make_batch())
        maps = [found for found in features.attention if found is not None]
        assert [found.shape for found in maps] == {"official": [], "paper": [(2, 1, 4, 4), (2, 1, 2, 2)]}[protocol]
        assert all((found == 1).all() for found in maps)


@shows(D10="model.canvas data.crop")
@pytest.mark.parametrize(("canvas", "crop"), [(512, 480), (384, 352)])
def test_crops_lie_top_left_on_the_canvas_and_come_back_in_their_size(checkpoint, canvas, crop):
    changes = {"model.canvas": canvas, "data.crop": crop, "model.prompt.templates": "single"}
    spec = experiment("depth-full", changes | {"model.head.channels": 16, "model.head.final_channels": 2})
    assert (experiment("depth-full").model.canvas, experiment("depth-full").data.crop) == (512, 480)
    frame, depth = np.full((480, 640, 3), 200, np.uint8), np.ones((480, 640), np.float32)
    image, _ = augment_depth(frame, depth, spec.data, rng())
    assert image.shape == (crop, crop, 3)
    model, seen = build(spec, checkpoint), []
    model.vae.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    batch = {"image": torch.from_numpy(image.transpose(2, 0, 1)[None]) + 2, "class_id": torch.tensor([0])}
    with torch.no_grad():
        assert model(batch).shape == (1, 1, crop, crop)
    assert seen[0].shape == (1, 3, canvas, canvas)
    assert torch.equal(seen[0][..., :crop, :crop], batch["image"])
    assert not seen[0][..., crop:, :].any()
    assert not seen[0][..., crop:].any()


@shows(D11="evaluation.windows evaluation.window evaluation.flip")
@pytest.mark.parametrize(
    ("changes", "height", "starts", "views"),
    [
        ({}, 480, [0, 160], ["plain", "mirrored"]),
        ({"evaluation.windows": 3}, 480, [0, 80, 160], ["plain", "mirrored"]),
        ({"evaluation.flip": False}, 480, [0, 160], ["plain"]),
        ({"evaluation.window": 352}, 352, [0, 288], ["plain", "mirrored"]),
    ],
)
def test_depth_is_the_mean_over_these_windows_and_their_mirror_images(changes, height, starts, views):
    """The network says how far right in its input a pixel lies; mirror images make that the input's middle."""
    settings, seen = experiment("depth-full", changes).evaluation, []

    def predict(batch):
        seen.extend(tuple(key.split("/")[1:]) for key in batch["key"])
        return torch.arange(height).float().expand(len(batch["image"]), 1, height, height)

    sample = {"id": "x", "image": torch.zeros(3, height, 640), "class_id": torch.tensor(0)}
    ((_, metres),) = estimate_depth(predict, [sample], settings)
    assert seen == [(str(start), view) for start in starts for view in views]
    columns = torch.arange(640.0)
    said = torch.zeros(len(starts), 640)
    for row, start in zip(said, starts, strict=True):
        row[start : start + height] = (height - 1) / 2 if len(views) == 2 else columns[:height]
    covered = sum(((columns >= start) & (columns < start + height)).float() for start in starts)
    torch.testing.assert_close(metres[5], said.sum(0) / covered)


@shows(D12="evaluation.crop evaluation.min_depth evaluation.max_depth")
def test_pixels_of_the_eigen_crop_between_the_limits_are_scored():
    settings, depth = experiment("depth-full").evaluation, torch.full((480, 640), 5.0)
    rows, columns = torch.nonzero(scored_pixels(depth, settings), as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    assert len(rows) == (471 - 45) * (601 - 41) == 238_560
    depth[100, 100:105] = torch.tensor([1e-3, 1.1e-3, 9.99, 10.0, 0.0])
    assert scored_pixels(depth, settings)[100, 100:105].tolist() == [False, True, True, False, False]
    changes = {"evaluation.crop": [0, 480, 0, 640], "evaluation.min_depth": 2.0, "evaluation.max_depth": 4.0}
    depth[100, 100:105] = torch.tensor([1.9, 2.0, 3.0, 3.9, 4.0])
    assert int(scored_pixels(depth, experiment("depth-full", changes).evaluation).sum()) == 2


@shows(D12="evaluation.min_depth evaluation.max_depth")
@pytest.mark.parametrize(("highest", "expected"), [(10.0, (1 + 5) / 2), (9.0, (1 + 4) / 2)])
def test_rmse_is_the_mean_over_images_of_clamped_predictions(highest, expected):
    """Images with errors of 1 m and of 20 m, which clamping leaves at 5 m (to 10 m) or 4 m (to 9 m)."""
    spec = experiment("depth-full", {"evaluation.max_depth": highest})
    samples = (
        {"id": str(said), "image": torch.full((3, 480, 640), said), "depth": torch.full((480, 640), 5.0),
         "class_id": torch.tensor(0)} for said in (6.0, 25.0)
    )  # fmt: skip
    found = dict(evaluate_depth(lambda batch: batch["image"][:, :1], samples, spec, 27))
    assert found["rmse"] == pytest.approx(expected)

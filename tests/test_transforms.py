"""Transforms against hand values and the rules of the toolboxes they stand for."""

import cv2
import numpy as np
import pytest

from vpd.config.schema import DepthData, SegmentationData
from vpd.datasets import transforms as t

SEGMENTATION = SegmentationData(
    short_side=64, long_side=256, ratio_range=(0.5, 2.0), crop=64, max_class_share=0.75, flip=0.5, photometric=True
)
DEPTH = DepthData(
    crop=48, flip=0.0, photometric=0.0, cutdepth=0.0, cutdepth_width=0.75, cutdepth_values="wrapped",
    min_depth=1e-3, max_depth=10.0,
)  # fmt: skip


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def augment(image: np.ndarray, depth: np.ndarray, seed: int, **changes) -> tuple[np.ndarray, np.ndarray]:
    return t.augment_depth(image, depth, DEPTH.model_copy(update=changes), rng(seed))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize(
    ("height", "width", "ratio", "expected"),
    [
        (512, 683, 1.0, (512, 683)),  # already at size
        (500, 2100, 1.0, (488, 2048)),  # the long side limits: 500 * 2048 / 2100 = 487.6
        (512, 683, 0.5, (256, 342)),  # 341.5 rounds up
        (683, 512, 1.125, (768, 576)),  # 768.4
        (100, 300, 2.0, (1024, 3072)),
        (600, 800, 1.25, (640, 853)),
        (96, 64, 1.5, (1152, 768)),
        (300, 400, 1.001, (512, 683)),  # int(512 * 1.001) is 512
    ],
)
def test_resized_size_follows_mmsegmentation(height, width, ratio, expected):
    assert t.resized_size(height, width, 512, 2048, ratio) == expected


def test_image_is_interpolated_and_labels_are_picked():
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 100
    assert t.resize_image(image, 2, 4)[0, :, 0].tolist() == [0, 25, 75, 100]
    labels = np.array([[1, 7], [200, 255]], np.uint8)
    assert t.resize_labels(labels, 4, 4).tolist() == np.repeat(np.repeat(labels, 2, 0), 2, 1).tolist()


def test_square_resize_smooths_the_image_and_picks_mask_pixels():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, ::2] = 200
    mask = np.zeros((4, 8), np.uint8)
    mask[:, 5:] = 1
    small, label = t.resize_square(image, mask, 4)
    assert small.shape == (4, 4, 3)
    assert np.abs(small[:, 1:3].astype(int) - 100).max() <= 1  # two columns share a pixel: their mean
    assert label.tolist() == [[0, 0, 1, 1]] * 4  # the pixel under each new centre: columns 1, 3, 5, 7


def test_values_are_mapped_by_hand():
    values = t.normalise(np.array([[[0, 51, 255]]], np.uint8))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [[[-1.0, -0.6, 1.0]]], rtol=1e-6)
    assert t.reduce_zero_label(np.array([[0, 1, 2, 150]], np.uint8)).tolist() == [[255, 0, 1, 149]]
    values = np.array([[10, 100, 250]], np.uint8)
    assert t._scale(values, 1.0, -30.5).tolist() == [[0, 69, 219]]
    assert t._scale(values, 1.5, 0.0).tolist() == [[15, 150, 255]]


def test_padding_goes_to_the_bottom_and_right():
    padded = t.pad(np.ones((2, 3, 3), np.float32), 4, 0.0)
    assert padded.shape == (4, 4, 3)
    assert padded[:2, :3].min() == 1.0
    assert padded[2:].max() == padded[:, 3:].max() == 0.0
    assert t.pad(np.ones((2, 4), np.uint8), 4, 255)[2:].tolist() == [[255] * 4] * 2


def test_windows_reach_every_offset_and_stay_inside():
    offsets = {(w[0].start, w[1].start) for w in (t.draw_window((6, 5), 4, rng(seed)) for seed in range(200))}
    assert offsets == {(top, left) for top in range(3) for left in range(2)}
    window = t.draw_window((3, 9), 4, rng())
    assert np.zeros((3, 9))[window].shape == (3, 4)


# ----------------------------------------------------------------------------------------------------------------- crop
class CountingRng:
    """A generator that counts its draws and always returns offset zero."""

    draws = 0

    def integers(self, high: int) -> int:
        self.draws += 1
        return 0


@pytest.mark.parametrize(
    ("labels", "windows"),
    [
        (np.zeros((8, 8), np.uint8), 11),  # a single class: one draw and ten more
        (np.repeat([[0, 1]], 8, 0).repeat(4, 1).astype(np.uint8), 1),  # half and half
        (np.repeat([[0, 255]], 8, 0).repeat(4, 1).astype(np.uint8), 11),  # ignored pixels are no second class
        (np.repeat([[0, 0, 0, 1]], 8, 0).repeat(2, 1).astype(np.uint8), 11),  # exactly three quarters is too much
    ],
)
def test_number_of_redraws(labels, windows):
    counting = CountingRng()
    t.random_crop(labels, 8, 0.75, counting)
    assert counting.draws == 2 * windows


def test_segmentation_pipeline_keeps_pixels_and_labels_together():
    labels = np.zeros((70, 90), np.uint8)
    labels[20:50, 30:60], labels[:, :10] = 1, 255
    image = np.where((labels == 1)[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)
    data = SEGMENTATION.model_copy(update={"photometric": False})
    for seed in range(30):
        x, y = t.augment_segmentation(image, labels, data, rng(seed))
        assert x.shape == (64, 64, 3)
        assert y.shape == (64, 64)
        known = (y != 255) & (np.abs(x[..., 0]) > 0.99)
        assert ((x[..., 0] > 0) == (y == 1))[known].all()


def test_segmentation_pads_after_normalising():
    data = SEGMENTATION.model_copy(update={"ratio_range": (0.5, 0.5), "photometric": False})
    x, y = t.augment_segmentation(np.full((64, 64, 3), 255, np.uint8), np.ones((64, 64), np.uint8), data, rng())
    assert (x[:32, :32] == 1.0).all()
    assert (x[32:] == 0.0).all()
    assert (y[:32, :32] == 1).all()
    assert (y[:, 32:] == 255).all()


# ---------------------------------------------------------------------------------------------------------- photometric
def test_distortion_is_one_of_the_chains_of_its_parts():
    image = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    hue, saturation, value = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[0, 0].astype(int)
    seen = []
    for seed in range(400):
        result = t.distort(image, rng(seed))
        assert (result == result[0, 0]).all()
        seen.append(cv2.cvtColor(np.ascontiguousarray(result), cv2.COLOR_RGB2HSV)[0, 0].astype(int))
    seen = np.array(seen)
    unchanged = (seen == (hue, saturation, value)).all(axis=1).mean()
    assert unchanged == pytest.approx(1 / 16, abs=0.04)
    turn = (seen[:, 0] - hue + 90) % 180 - 90
    assert np.abs(turn).max() <= 22  # 18, and what rounding to bytes adds
    assert turn.min() < -12
    assert turn.max() > 12


# ---------------------------------------------------------------------------------------------------------------- depth
def ramp_depth(height: int = 48, width: int = 64) -> np.ndarray:
    return np.linspace(0.5, 9.5, height * width, dtype=np.float32).reshape(height, width)


def test_cutdepth_pastes_millimetres_modulo_256():
    image, depth = noise(48, 64), ramp_depth()
    result = t.cut_depth(image, depth, DEPTH, rng(1))
    columns = np.nonzero((result != image).any(axis=(0, 2)))[0]
    assert len(columns)
    assert (np.diff(columns) == 1).all()
    wrapped = np.rint(depth.astype(np.float64) * 1000).astype(int) % 256
    assert (result[:, columns] == wrapped[:, columns, None]).all()
    untouched = np.delete(np.arange(64), columns)
    assert (result[:, untouched] == image[:, untouched]).all()


def test_colour_changes_keep_the_range_and_leave_depth_alone():
    image, depth = noise(48, 48), ramp_depth(48, 48)
    for seed in range(20):
        x, d = augment(image, depth, seed, photometric=1.0)
        assert np.abs(x).max() <= 1.0
        assert (d == depth).all()
        assert (x != t.normalise(image)).mean() > 0.5


def test_inputs_are_never_written_to():
    image, depth, labels = noise(48, 64), ramp_depth(), rng(1).integers(0, 3, (48, 64), dtype=np.uint8)
    for array in (image, depth, labels):
        array.setflags(write=False)
    for seed in range(10):
        augment(image, depth, seed, cutdepth=1.0, photometric=1.0, flip=0.5)
        t.augment_segmentation(image, labels, SEGMENTATION, rng(seed))

"""Predictions for any picture: those of the evaluation protocol, for files of every kind, and sentences for the others."""

import re
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy import ndarray
from PIL import Image
from safetensors.torch import load_file, save_file

from fixtures.parity.narrow import make_spec
from trained import KEYS, TASKS, World, arrays
from vpd.datasets.images import read_image
from vpd.datasets.nyuv2 import SCENES
from vpd.evaluation.drawing import palette
from vpd.evaluation.inference import estimate_depth, refer, segment
from vpd.evaluation.run import predictor
from vpd.evaluation.scores import native_mask
from vpd.predict import class_names, predict
from vpd.predict.pictures import find_pictures, plan_outputs
from vpd.predict.tasks import Depth, largest, window_starts
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.fingerprint import Fingerprint, write_manifest


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    torch.manual_seed(0)
    return World(tmp_path_factory.mktemp("world"))


def scene(height: int = 64, width: int = 88) -> ndarray:
    """A smooth colourful RGB picture that no mirroring or turning leaves as it is."""
    noise = np.random.default_rng(7).uniform(0, 255, (height // 16 + 2, width // 16 + 2, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, values: ndarray | Image.Image, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = values if isinstance(values, Image.Image) else Image.fromarray(values)
    picture.save(path, **options)
    return path


def fake_png(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


# ------------------------------------------------------------------------------------------- the evaluation's protocol
def test_labels_are_those_of_evaluation(world, tmp_path):
    dataset, spec = world.reader("segmentation"), world.specs["segmentation"]
    samples = [dataset.sample(index) for index in range(2)]
    with torch.inference_mode():
        answers = segment(predictor(spec, world.models[spec.task]), samples, spec.evaluation)
        expected = [found["ss"] for _, found in answers]
    names = class_names(spec, world.data["segmentation"])
    for (image, _), labels in zip(dataset.pairs, expected, strict=True):
        assert labels.unique().numel() > 2
        found = world.result("segmentation", image, tmp_path, names=names)
        assert found.dtype == np.uint8
        assert np.array_equal(found, labels.numpy())
        stored = arrays(tmp_path / f"{image.stem}.npz")
        assert stored["names"].tolist() == names == dataset.classes
        with Image.open(tmp_path / f"{image.stem}.png") as picture:
            assert picture.mode == "P"
            assert np.array_equal(np.array(picture), labels.numpy())
            colours = np.array(picture.getpalette()).reshape(-1, 3)[: len(names)]
            assert np.array_equal(colours, np.rint(255 * palette(len(names))))


def test_masks_are_those_of_evaluation_at_the_pictures_size(world, tmp_path):
    dataset, spec = world.reader("referring"), world.specs["referring"]
    sample = dataset.sample(0)
    with torch.inference_mode():
        ((_, logits),) = refer(predictor(spec, world.models["referring"]), [sample], spec.evaluation)
    image = dataset.references[dataset.sentences[0][0]].image
    found = world.result("referring", image, tmp_path, text=sample["text"])
    native = F.interpolate(logits[None], (64, 80), mode="bilinear", align_corners=False)[0].softmax(0)[1]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, native, atol=1e-3)
    mask = native_mask(logits, 64, 80)
    assert 0 < mask.sum() < mask.numel()
    assert not np.allclose(found, world.result("referring", image, tmp_path / "other", text="wall"), atol=1e-2)
    with Image.open(tmp_path / f"{image.stem}.png") as picture:
        assert np.array_equal(np.array(picture), 255 * mask.numpy().astype(np.uint8))


def test_metres_are_those_of_evaluation(world, tmp_path):
    dataset, spec = world.reader("depth"), world.specs["depth"]
    sample = dataset.sample(0)
    with torch.inference_mode():
        ((_, metres),) = estimate_depth(predictor(spec, world.models["depth"]), [sample], spec.evaluation)
    image = dataset.frames[0].image
    found = world.result("depth", image, tmp_path, scene=SCENES[sample["class_id"]].replace("_", " "))
    assert found.std() > 0.05
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, metres, rtol=1e-5)
    with Image.open(tmp_path / f"{image.stem}.png") as picture:
        np.testing.assert_allclose(np.array(picture) / 1000, metres, atol=6e-4)


def test_scenes_differ_and_without_one_their_mean_is_used_and_said_once(world, tmp_path, capsys):
    images = [write(tmp_path / f"{number}.png", scene()) for number in range(2)]
    kitchen, bedroom = (world.result("depth", images[0], tmp_path / s, scene=s) for s in ("kitchen", "bedroom"))
    assert not np.array_equal(kitchen, bedroom)
    assert "no scene" not in capsys.readouterr().err
    assert world.predict("depth", images, tmp_path / "mean", scene=None) == 0
    assert capsys.readouterr().err.count("the prompt is the mean of all 27 scene classes") == 1
    spec, sample = world.specs["depth"], {"id": "x", "image": torch.from_numpy(scene()).permute(2, 0, 1) / 127.5 - 1}
    with torch.inference_mode():
        guess = predictor(spec, world.models["depth"])
        ((_, metres),) = estimate_depth(guess, [{**sample, "class_id": torch.tensor(-1)}], spec.evaluation)
    np.testing.assert_allclose(arrays(tmp_path / "mean/0.npz")["depth"], metres, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- sizes and maps
@pytest.mark.parametrize("task", TASKS)
def test_every_size_has_a_prediction_of_its_own_size(world, tmp_path, task):
    sizes = {"dot": (1, 1), "line": (1, 6), "wide": (12, 240), "tall": (90, 12), "large": (611, 407), "odd": (65, 63)}
    images = [write(tmp_path / f"{name}.png", scene(*size)) for name, size in sizes.items()]
    assert world.predict(task, images, tmp_path / "out") == 0
    for name, size in sizes.items():
        assert arrays(tmp_path / f"out/{name}.npz")[KEYS[task]].shape == size
        assert Image.open(tmp_path / f"out/{name}.png").size == size[::-1]
        assert max(Image.open(tmp_path / f"out/{name}.panel.png").size) < 2000


@pytest.mark.parametrize("size", [(40, 50), (5, 9), (13, 17), (1, 1), (301, 17)])
def test_the_largest_of_resized_maps_is_found_one_map_at_a_time(size):
    maps = torch.randn(7, 13, 17)
    resized = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.equal(largest(maps, *size).long(), resized.argmax(0))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96), (96, 64), (64, 300), (300, 64), (65, 64)])
@pytest.mark.parametrize("flip", [False, True])
def test_depth_windows_put_every_pixel_in_its_place(height, width, flip):
    """A network that sees single pixels has to give the same map however the picture is cut and mirrored."""
    settings = make_spec("depth").evaluation.model_copy(update={"flip": flip, "batch_size": 3})
    image = scene(height, width)
    found = Depth(lambda batch: batch["image"][:, :1] + 2, settings, -1, "").infer(image, "x")
    np.testing.assert_allclose(found.values, image[..., 0] / 127.5 + 1, atol=1e-5)


def test_depth_windows_overlap_by_half_and_are_no_fewer_than_in_evaluation():
    settings = make_spec("depth").evaluation.model_copy(update={"window": 480})
    assert window_starts(640, settings) == [0, 160]
    assert window_starts(480, settings) == [0]
    starts = window_starts(9600, settings)
    assert (starts[0], starts[-1]) == (0, 9600 - 480)
    assert max(np.diff(starts)) <= 240


# ---------------------------------------------------------------------------------------------------------- picture files
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.jp2", "colour.png", "colour.tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    eight = scene() if name.startswith("colour") else np.repeat(scene()[..., :1], 3, -1)
    assert cv2.imwrite(str(tmp_path / name), (eight[..., ::-1] if "colour" in name else eight[..., 0]) * np.uint16(257))
    assert np.abs(read_image(tmp_path / name).astype(int) - eight).max() <= 1


def test_floating_point_from_0_to_1_is_read_and_other_ranges_are_refused(tmp_path):
    grey = scene()[..., 0]
    pixels = read_image(write(tmp_path / "x.tif", grey.astype(np.float32) / 255))
    assert np.array_equal(pixels[..., 0], grey)
    for values in (grey.astype(np.float32), np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(UserError, match=r"bad\.tif has float32 values .* only 0 to 1 has a known"):
            read_image(write(tmp_path / "bad.tif", values))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_lie_on_white(tmp_path, mode):
    picture = Image.fromarray(np.dstack([scene()[..., 0]] * 3 + [np.full((64, 88), 255, np.uint8)]), "RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 88, 20))
    if mode == "P":
        picture = Image.fromarray(np.minimum(scene()[..., 0], 254)).convert("P")
        picture.paste(255, (0, 0, 88, 20))
    options = {"transparency": 255} if mode == "P" else {}
    pixels = read_image(write(tmp_path / "x.png", picture.convert(mode) if mode != "P" else picture, **options))
    assert (pixels[:20] == 255).all()
    assert np.abs(pixels[20:, :, 0].astype(int) - scene()[20:, :, 0]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_exif_orientation_is_applied(tmp_path, orientation, suffix):
    """A camera stores the picture as its sensor lies; the inverse of what viewers do to it."""
    turns, mirrored = [(0, 0), (0, 1), (2, 0), (2, 1), (1, 1), (1, 0), (3, 1), (3, 0)][orientation - 1]
    stored = np.rot90(np.fliplr(scene()) if mirrored else scene(), turns)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"x.{suffix}", np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(read_image(path), scene())


@pytest.mark.parametrize("task", TASKS)
def test_a_turned_grey_and_a_sixteen_bit_copy_have_the_same_prediction(world, tmp_path, task):
    grey = scene()[..., 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = world.result(task, write(tmp_path / "plain.png", np.repeat(grey[..., None], 3, -1)), tmp_path / "out")
    turned = write(tmp_path / "turned.png", np.ascontiguousarray(np.rot90(grey)), exif=exif)
    sixteen = write(tmp_path / "sixteen.png", grey.astype(np.uint16) * 257)
    for path in (write(tmp_path / "grey.png", grey), turned, sixteen):
        assert np.array_equal(world.result(task, path, tmp_path / "out"), plain)


def bad_files(folder: Path) -> dict[Path, str]:
    """Files that cannot be predicted, and what has to be said of each."""
    whole = write(folder / "whole.jpg", scene(300, 300)).read_bytes()
    contents = {
        "cut.jpg": (whole[: len(whole) // 2], r"cannot be read as an image \(image file is truncated.*\); replace it"),
        "text.jpg": (b"no picture", "cannot be read as an image"),
        "empty.png": (b"", "cannot be read as an image"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", "cannot be read as an image"),
    }
    (folder / "whole.jpg").unlink()
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    faults = {folder / name: fault for name, (_, fault) in contents.items()}
    sizes = {
        "bomb.png": (60_000, 60_000, "cannot be read as an image .*exceeds limit"),
        "large.png": (10_000, 9_000, "has 10000x9000 pixels, more than 80,000,000; make it smaller"),
        "strip.png": (9, 10_000, "has a side of more than 100 times the other; crop it"),
        "broken.png": (100, 100, r"cannot be read as an image \(.+\); replace it"),
    }
    for name, (width, height, fault) in sizes.items():
        faults[fake_png(folder / name, width, height)] = fault
    write(folder / "strip.png", np.zeros((10_000, 9), np.uint8))  # a whole one
    return {**faults, folder / "gone.png": "does not exist; check its name"}


def test_bad_files_are_a_sentence_each_and_do_not_stop_the_others(world, tmp_path, capsys):
    faults = bad_files(tmp_path)
    good = [write(tmp_path / f"good{number}.png", scene()) for number in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert world.predict("segmentation", [good[0], *faults, good[1]], tmp_path / "out") == len(faults) == 9
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vpd: ")]
    assert len(lines) == len(faults)
    for path, fault in faults.items():
        (line,) = [line for line in lines if f"{path} " in line]
        assert re.search(fault, line), line
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"good{number}.{kind}" for number in range(2) for kind in ("png", "npz", "panel.png")}


def test_a_folder_is_announced_only_if_predictions_are_in_it(world, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "bad.png").write_text("no picture")
    for pictures, announced in (
        ([tmp_path / "gone"], False),
        ([tmp_path / "bad.png"], False),
        ([write(tmp_path / "x.png", scene())], True),
    ):
        world.predict("depth", pictures, tmp_path / "out", scene="kitchen")
        assert ("predictions are in" in capsys.readouterr().out) == announced


# ------------------------------------------------------------------------------------------------------ names of files
def test_folders_are_searched_and_other_files_are_skipped(tmp_path, capsys):
    for name in ("b.JPG", "a/x.png", "a/deep/x.gif", "predictions/old.png"):
        write(tmp_path / "all" / name, Image.fromarray(scene(8, 8)), format="PNG")
    (tmp_path / "all/readme.txt").write_text("no picture")
    given = [tmp_path / "all", tmp_path / "all/b.JPG"]
    pictures, faults = find_pictures(given, tmp_path / "all/predictions")
    names = [path.relative_to(tmp_path / "all").as_posix() for path in pictures]
    assert (names, faults) == (["a/deep/x.gif", "a/x.png", "b.JPG"], [])
    assert capsys.readouterr().err == f"vpd: {tmp_path / 'all'}: skipped 1 files that are not pictures\n"
    assert [job.picture.name for job in plan_outputs(pictures, tmp_path / "out")] == ["x.png", "x-2.png", "b.png"]


def test_no_two_pictures_share_a_file(tmp_path):
    names = ["a/x.png", "b/X.jpg", "x.panel.png", "x-2.png", "c/x.gif", f"{'é' * 120}.png", f"{'é' * 121}.png"]
    jobs = plan_outputs([tmp_path / name for name in names], tmp_path / "out")
    outputs = [path.name.casefold() for job in jobs for path in job[1:]]
    assert len(set(outputs)) == len(outputs) == 3 * len(names)
    assert jobs[0].picture.name == "x.png"
    assert all(len(path.name.encode()) < 230 for job in jobs for path in job[1:])


def test_pictures_are_never_overwritten(world, tmp_path):
    image = write(tmp_path / "x.png", scene())
    before = image.read_bytes()
    with pytest.raises(UserError, match=r"would overwrite the picture .*x\.png; name another --out"):
        world.predict("depth", [image], tmp_path)
    with pytest.raises(UserError, match="is both the folder of pictures and that of predictions"):
        world.predict("depth", [tmp_path], tmp_path)
    with pytest.raises(UserError, match="is a file, but predictions need a folder"):
        world.predict("depth", [image], image)
    assert image.read_bytes() == before
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("name", ["x.png", "x.panel.png", "x.npz"])
def test_files_of_somebody_else_are_never_replaced(world, tmp_path, name):
    image = write(tmp_path / "in/x.bmp", scene())
    (tmp_path / "out").mkdir()
    if name == "x.npz":
        np.savez(tmp_path / "out" / name, mine=np.zeros(3))
    else:
        write(tmp_path / "out" / name, scene())
    before = (tmp_path / "out" / name).read_bytes()
    with pytest.raises(UserError, match=rf"{name} is no prediction of vpd and would be replaced; name another --out"):
        world.predict("depth", [image], tmp_path / "out")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [(name, before)]


@pytest.mark.parametrize("task", TASKS)
def test_a_rerun_gives_the_same_bytes_whatever_else_is_predicted(world, tmp_path, task):
    pictures = [write(tmp_path / f"in/{name}.png", scene(*size)) for name, size in (("a", (30, 70)), ("b", (64, 64)))]
    assert world.predict(task, [tmp_path / "in"], tmp_path / "out") == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert world.predict(task, [pictures[1]], tmp_path / "out") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    assert len(first) == 6


@pytest.mark.parametrize("task", TASKS)
def test_any_name_and_text_can_be_drawn(world, tmp_path, task):
    path = write(tmp_path / "5$ or $x_^{ 客厅 🪑\n.png", scene())
    options = {"text": "the $5 note and the $ sign, 椅子"} if task == "referring" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert world.predict(task, [path], tmp_path / "out", **options) == 0
    assert (tmp_path / "out" / f"{path.stem}.panel.png").stat().st_size > 1000


# --------------------------------------------------------------------------------------------------- options and weights
@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("referring", {"text": None}, "looks for what a text describes; give a text, such as 'the red chair'"),
        ("referring", {"text": "  "}, "looks for what a text describes"),
        ("referring", {"scene": "kitchen"}, "scene is for depth only, but test is referring; leave it out"),
        ("segmentation", {"text": "chair"}, "text is for referring only, but test is segmentation"),
        ("depth", {"scene": "kitchn"}, r"unknown scene 'kitchn'; did you mean 'kitchen'\?"),
        ("segmentation", {"names": ["wall"]}, r"names 1 classes, but the weights distinguish \d+; use its own --data"),
    ],
)
def test_options_that_do_not_fit_are_named(world, tmp_path, task, options, message):
    with pytest.raises(UserError, match=message):
        world.predict(task, [write(tmp_path / "x.png", scene())], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_long_text_and_unnamed_classes(world, tmp_path, capsys):
    image = write(tmp_path / "x.png", scene())
    world.result("referring", image, tmp_path / "out", text="the red ball " * 9)
    assert "tokens, of which the network sees 12; shorten it" in capsys.readouterr().err
    world.result("segmentation", image, tmp_path / "out")
    assert arrays(tmp_path / "out/x.npz")["names"][:2].tolist() == ["class 0", "class 1"]


def test_class_prompts_come_with_the_weights_and_need_no_text_encoder(world, tmp_path):
    shutil.copytree(world.checkpoint, tmp_path / "cut", ignore=shutil.ignore_patterns("text_encoder"))
    image, spec = write(tmp_path / "x.png", scene()), world.specs["depth"]
    whole = world.result("depth", image, tmp_path / "out")
    assert predict(spec, world.weights["depth"], tmp_path / "cut", [image], tmp_path / "other", scene="kitchen") == 0
    assert np.array_equal(arrays(tmp_path / "other/x.npz")["depth"], whole)


def test_weights_alone_are_enough_but_those_of_another_spec_are_said(world, tmp_path, capsys):
    image, spec, path = write(tmp_path / "x.png", scene()), world.specs["segmentation"], tmp_path / "run/w.safetensors"
    path.parent.mkdir()
    shutil.copyfile(world.weights["segmentation"], path)
    assert predict(spec, path, world.checkpoint, [image], tmp_path / "out") == 0
    assert "other settings" not in capsys.readouterr().err
    write_manifest(path.parent, Fingerprint("another", ""), {}, {path.name: sha256(path)})
    assert predict(spec, path, world.checkpoint, [image], tmp_path / "out") == 0
    assert "was trained with other settings than those of test" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"w\.safetensors does not exist; name the final\.safetensors of a finished run"),
        ("exchanged", r"w\.safetensors is not the file that .*manifest\.json lists"),
        ("cut", r"w\.safetensors is damaged or cut off"),
        ("other task", "the weights have no tensor 'head.conv_seg.bias', so they are not those of test"),
        ("other shape", r"the weights do not fit this model \(.*of another shape, first"),
    ],
)
def test_weights_that_cannot_be_used_are_named(world, tmp_path, damage, message):
    image, path = write(tmp_path / "x.png", scene()), tmp_path / "w.safetensors"
    if damage != "missing":
        shutil.copyfile(world.weights["depth" if damage == "other task" else "segmentation"], path)
    if damage == "exchanged":
        write_json(tmp_path / "manifest.json", {"schema": 1, "files": {path.name: "0" * 64}})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    if damage == "other shape":
        state = load_file(path)
        save_file({**state, "adapter.gamma": state["adapter.gamma"][:3].clone()}, path)
    with pytest.raises(UserError, match=message):
        predict(world.specs["segmentation"], path, world.checkpoint, [image], tmp_path / "out")
    assert not (tmp_path / "out").exists()

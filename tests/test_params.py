"""params.yaml resolves to specs, and every mistake in it ends in one sentence that names the key and the cure."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vpd
from vpd.cli import main
from vpd.config.params import load_params, merge
from vpd.utils.errors import UserError

ROOT = Path(__file__).parent.parent
SCALES = ("smoke", "mini", "paper")


def read(path):
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)


@pytest.fixture
def edited(tmp_path):
    """A function that writes a changed copy of params.yaml and returns its path."""

    def edit(change):
        document = read(ROOT / "params.yaml")
        change(document)
        path = tmp_path / "params.yaml"
        path.write_text(json.dumps(document))  # JSON is YAML, and quick to read
        return path

    return edit


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_every_experiment_resolves(scale, protocol):
    params = load_params(ROOT / "params.yaml", scale, protocol)
    params.check_all()
    specs = [params.resolve(name) for name in params.experiments]
    assert len({spec.digest() for spec in specs}) == len(specs)


def test_paper_scale_has_the_papers_numbers():
    spec = load_params(ROOT / "params.yaml", "paper").resolve("seg-full")
    assert (spec.training.steps, spec.training.batch_size, spec.training.optimizer.lr) == (80000, 16, 8e-5)
    assert spec.training.schedule.warmup * 80000 == 1500
    depth = load_params(ROOT / "params.yaml", "paper").resolve("depth-full").training
    assert depth.optimizer.lr * depth.schedule.min_ratio == pytest.approx(3e-5)
    assert depth.epochs * depth.schedule.peak == pytest.approx(12)


def test_protocols_differ_where_fidelity_says():
    both = (load_params(ROOT / "params.yaml", "paper", name) for name in ("official", "paper"))
    official, paper = (params.resolve("seg-full") for params in both)
    assert (official.model.timestep, paper.model.timestep) == (1, 0)
    assert (official.training.loss.average, paper.training.loss.average) == ("all-pixels", "valid-pixels")
    assert (len(official.training.optimizer.lr_rules), len(paper.training.optimizer.lr_rules)) == (2, 1)


def test_table5_rows_differ_only_in_what_they_ablate():
    params = load_params(ROOT / "params.yaml", "mini")
    full, mid = params.resolve("seg-fast"), params.resolve("seg-mid")
    assert mid.model.attention.places == ("mid",)
    # seg-fast also measures multi-scale, for Table 2; training is the same.
    assert mid.training == full.training
    assert mid.model.model_copy(update={"attention": full.model.attention}) == full.model


def test_merge_replaces_lists_and_keeps_neighbours():
    base = {"a": {"x": [1, 2], "y": 1}, "b": 1}
    assert merge(base, {"a": {"x": [3]}}) == {"a": {"x": [3], "y": 1}, "b": 1}
    assert base["a"]["x"] == [1, 2]


def _set(path, value):
    """A change of the value at a dotted path."""

    def change(document):
        *parents, last = path.split("/")
        for key in parents:
            document = document[int(key) if key.isdigit() else key]
        document[last] = value

    return change


MISTAKES = [
    ("protcols", {}, r"params\.yaml: protcols is not a known key; did you mean 'protocols'"),
    ("experiments/seg-up/schedul", "x", r"experiments\.seg-up\.schedul is not .* 'schedule'"),
    ("experiments/seg-up/model", {"attention": {"plases": ["up"]}},
     r"experiments\.seg-up: model\.attention\.plases is not a known key; did you mean 'places'"),
    ("scales/mini/tasks/depth/training/batchsize", 1,
     r"experiments\.depth-full: training\.batchsize is not a known key; did you mean 'batch_size'"),
    ("experiments/seg-up/checkpoint", "sd-1-6",
     r"experiments\.seg-up: unknown checkpoint 'sd-1-6'; did you mean 'sd-1-[1-5]'"),
    ("scales/mini/tasks/referring/methods/vpd/variants/refcocog/model/prompt/length", 77,
     r"refcocog-full: model\.prompt\.length is 77, but the text encoder of sd-1-5 reads 28 tokens \(scales\.scratch\."),
    ("scales/scratch/pretraining/text/length", 27,
     r"seg-full: model\.prompt\.length is 28, but the text encoder of sd-1-5 reads 27 tokens"),
    ("experiments/depth-fast/dataset", "nyu", r"unknown dataset 'nyu'; did you mean 'nyuv2'"),
    ("experiments/depth-fast/schedule", "fats", r"unknown schedule 'fats'; did you mean 'fast'"),
    ("experiments/depth-fast/seeds", "claim", r"unknown seeds 'claim'; did you mean 'claims'"),
    ("scale", "minni", r"unknown scale 'minni'; did you mean 'mini'"),
    ("protocol", "offical", r"unknown protocol 'offical'; did you mean 'official'"),
    ("experiments/seg-up/model/attention/places", ["upp"],
     r"model\.attention\.places\.0: .*'down', 'mid' or 'up'.*found 'upp'"),
    ("scales/mini/datasets/ade20k/images/training", "many", r"images\.training: .*found 'many'"),
    ("scales/mini/tasks/depth/training/steps", 5,
     r"training needs either steps or epochs, found steps=5 and epochs=10"),
    ("scales/scratch/pretraining/milestones", {"sd-1-1": 204800}, r"unknown pre-training milestone 'sd-1-2'"),
    ("scales/scratch/pretraining/images_seen", 64000, "milestone sd-1-5 is at 204800 images, but images_seen is 64000"),
    ("scales/scratch/pretraining/milestones/sd-1-1", 100, "milestone sd-1-1 is at 100 images, which batches of 32 never"),
    ("scales/scratch/backbones/images_seen", 31, "images_seen is 31, less than one batch of 32"),
    ("scales/mini/shipped", "scrach", "unknown scale 'scrach'; did you mean 'scratch'"),
    ("scales/mini/shipped", None,
     r"checkpoints\.sd-1-1 has source 'shipped', but the scale names no scale"),
    ("scales/mini/tasks/depth/schedules", {"quick": {}},
     r"scales\.mini\.tasks\.depth\.schedules: unknown schedule 'quick'"),
    ("scales/mini/seeds/claims", [], "claims: .* at least 1 item"),
    ("scales/mini/seeds/claims", [-1], r"claims\.0: .* greater than or equal to 0, found -1"),
    ("scales/mini/seeds/claims", [2**32], "less than 4294967296"),
    ("scales/mini/seeds/claims", [True], "should be a valid integer, found True"),
    ("scales/mini/tasks/segmentation/training/workers", -1, "workers: .* greater than or equal to 0, found -1"),
    ("scales/mini/tasks/segmentation/training/log_every", True, "log_every takes neither true nor false"),
    ("scales/mini/tasks/segmentation/schedules/full/training/steps", True, "steps takes neither true nor false"),
    ("tasks/segmentation/schedules/full/training/milestones/half", 1.5, "milestones.half: .* less than or equal to 1"),
    ("tasks/segmentation/training/optimizer/betas", [0.9, 1.0], "less than 1, found 1.0"),
    ("tasks/segmentation/training/optimizer/weight_decay", -0.1, "weight_decay: .* greater than or equal to 0"),
    ("scales/mini/tasks/segmentation/data/ratio_range", [2.0, 0.5], "ratio_range runs from 2.0 down to 0.5; put the"),
    ("scales/mini/tasks/segmentation/data/short_side", 512, "short_side is 512, more than long_side, 256"),
    ("scales/mini/tasks/segmentation/data/crop", 10**9, "crop: .* less than or equal to 16384"),
    ("scales/mini/tasks/segmentation/evaluation/stride", 65, "stride is 65, more than crop, 64: pixels between windows"),
    ("scales/mini/tasks/segmentation/evaluation/ratios", [], "ratios: .* at least 1 item"),
    ("tasks/segmentation/methods/vpd/model/timestep", 1000, "timestep: .* less than or equal to 999, found 1000"),
    ("tasks/segmentation/methods/vpd/model/timestep", -1, "timestep: .* greater than or equal to 0, found -1"),
    ("tasks/segmentation/methods/vpd/model/head/dropout", 1, "dropout: .* less than 1, found 1"),
    ("scales/mini/tasks/segmentation/model/head/channels", 10**12, "channels: .* less than or equal to 65536"),
    ("scales/mini/tasks/segmentation/methods/upernet/model/drop_path", 1, "drop_path: .* less than 1, found 1"),
    ("scales/mini/tasks/depth/model/head/channels", 100, "norm_groups is 16, which does not divide channels, 100"),
    ("scales/mini/tasks/depth/evaluation/crop", [62, 6, 6, 90], r"crop is \[62, 6, 6, 90\], which holds no pixel"),
    ("scales/mini/tasks/depth/evaluation/crop", [-1, 6, 6, 90], "greater than or equal to 0, found -1"),
    ("tasks/depth/evaluation/min_depth", 10.0, "min_depth is 10.0, not below max_depth, 10.0"),
    ("tasks/referring/evaluation/thresholds", [1.5], "less than or equal to 1"),
    ("scales/mini/datasets/ade20k/images/training", -1, "training: .* greater than or equal to 0, found -1"),
    ("scales/mini/datasets/ade20k/size", [0, 64], "greater than or equal to 1, found 0"),
    ("scales/mini/datasets/ade20k/seed", -1, "seed: .* greater than or equal to 0"),
    ("scales/scratch/pretraining/denoiser/norm_groups", 7, "norm_groups is 7, which does not divide a width of channels, 32"),
    ("scales/scratch/pretraining/denoiser/heads", 3, "heads is 3, which does not divide a width of channels, 32"),
    ("scales/scratch/pretraining/denoiser/ema_decay", 1.0, "ema_decay: .* less than 1"),
    ("scales/scratch/measures/guidance", -1.0, "guidance: .* greater than or equal to 0"),
    ("scales/scratch/measures/scenes", 0, r"measures\.scenes: .* greater than or equal to 2, found 0"),
    ("scales/scratch/measures/scenes", 1, r"measures\.scenes: .* greater than or equal to 2, found 1"),
    ("scales/scratch/measures/sample_steps", 0, r"measures\.sample_steps: .* greater than 0, found 0"),
    ("scales/scratch/measures/sample_prompts", [], r"measures\.sample_prompts: .* at least 1 item"),
    ("scales/scratch/measures/times", [], r"measures\.times: .* at least 1 item"),
    ("scales/scratch/measures/times", [1000], "times.0: .* less than or equal to 999, found 1000"),
    ("scales/scratch/measures/oracle/steps", 0, r"measures\.oracle\.steps: .* greater than 0"),
    ("scales/scratch/pretraining/measures", {}, "measures is not a known key"),
    ("tolerances/rmse", -0.1, "rmse: .* greater than or equal to 0"),
    ("tables/table3/tolerances/refcocog", -3.0, "refcocog: .* greater than or equal to 0"),
    ("tables/table1/rows/0/experiment", "seg-fulll", r"unknown experiment 'seg-fulll'; did you mean 'seg-full'"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "sentence"), MISTAKES)
def test_mistake_is_one_sentence(edited, path, value, sentence):
    params = edited(_set(path, value))
    with pytest.raises(UserError, match=sentence) as caught:
        load_params(params).check_all()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ each checks what it uses
def test_a_mistake_in_a_table_stops_the_report_and_no_training(edited):
    path = edited(lambda document: document["tables"]["table1"]["rows"][0].update(match={"method": "Swin-XL"}))
    params = load_params(path)
    assert params.resolve("seg-full").task == "segmentation"
    assert params.milestones
    with pytest.raises(UserError, match="no row of the paper has method=Swin-XL; did you mean 'method=Swin-L'"):
        params.check_tables()


BAD_NAMES = ["`id`", "$(id)", "a;b", "a b", "a|b", "a&b", "a>b", "../../evil", "/etc", "..", ".hidden", "-rf", "", "a\nb",
             "a'b", 'a"b', "a.b", "ä", "a" * 65, "<b>", "=1", "%2e", "~", "a\\b", "x\x1b[31m", "{name}"]  # fmt: skip
NAMED = ["experiments/{}", "backbones/{}", "protocols/{}", "scales/{}", "tables/{}", "figures/{}", "scales/mini/datasets/{}",
         "scales/mini/checkpoints/{}", "scales/mini/seeds/{}", "scales/paper/released/{}", "tasks/depth/schedules/{}",
         "tasks/depth/methods/{}", "scales/scratch/pretraining/milestones/{}", "scales/mini/datasets/ade20k/images/{}",
         "tasks/referring/methods/vpd/variants/{}"]  # fmt: skip


@pytest.mark.parametrize("place", NAMED)
@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_a_name_that_a_shell_or_a_path_would_take_for_something_else_is_refused(edited, place, name):
    keys, like = place.split("/")[:-1], {}

    def add(document):
        section = document
        for key in keys:
            section = section[key]
        section[name] = next(iter(section.values()), like)

    with pytest.raises(UserError, match="a name has letters, digits") as caught:
        load_params(edited(add))
    assert not set("\n\x1b") & set(str(caught.value))


@pytest.mark.parametrize("section", ["scales/mini/tasks/depth/schedules/quick", "scales/mini/tasks/depth/methods/vdp",
                                     "protocols/official/depth/methods/vdp"])  # fmt: skip
def test_a_setting_without_effect_stops_the_experiments_of_its_task_only(edited, section):
    params = load_params(edited(_set(section, {})), "mini", "official")
    params.resolve("seg-full")
    with pytest.raises(UserError, match=r"unknown (schedule 'quick'|method 'vdp')"):
        params.resolve("depth-full")


@pytest.mark.parametrize("variant", ["refcoco", "refcoco+", "refcocog"])
def test_experiments_of_one_variant_may_go(edited, variant):
    def drop(document):
        lines = document["experiments"].items()
        document["experiments"] = {name: line for name, line in lines if line.get("variant") != variant}

    params = load_params(edited(drop))
    assert {params.resolve(name).variant for name in params.experiments} == {
        None,
        "refcoco",
        "refcoco+",
        "refcocog",
    } - {variant}


def test_show_checks_everything_and_says_a_mistake_without_a_traceback(edited, capsys):
    path = edited(_set("registered/depth", "seg-full"))
    assert main(["show", "seg-fast", "--params", str(path)]) == 2
    stderr = capsys.readouterr().err
    assert "registered.depth is 'seg-full', an experiment of segmentation; choose one of depth" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(("version", "found"), [(2, "schema 2"), (None, "no schema version")])
def test_another_schema_version_is_one_sentence(edited, version, found):
    change = _set("schema", version) if version else lambda document: document.pop("schema")
    with pytest.raises(UserError, match=rf"params\.yaml has {found}, but this vpd reads schema 1; .*CHANGELOG\.md"):
        load_params(edited(change))


# ---------------------------------------------------------------------------------------------------------------- origins
def split(line):
    """Key, value and layer of one line of ``vpd show --origin``."""
    (key, rest), (_, origin) = line.split(maxsplit=1), line.rsplit(maxsplit=1)
    return key, rest.removesuffix(origin).strip(), origin


def at(document, key):
    for part in key.split("."):
        document = document[part]
    return document


def test_origin_names_the_layer_of_every_value():
    lines = load_params(ROOT / "params.yaml", "mini", "official").origins("seg-fast")
    rows = {key: (value, origin) for key, value, origin in map(split, lines)}
    assert {key: rows[key] for key in (
        "training.optimizer.betas", "model.timestep", "data.crop", "model.prompt.length", "training.milestones.half",
        "training.steps", "evaluation.multi_scale", "seeds", "training.precision", "checkpoint",
    )} == {
        "training.optimizer.betas": ("[0.9, 0.999]", "tasks.segmentation"),
        "model.timestep": ("1", "tasks.segmentation.methods.vpd"),
        "data.crop": ("64", "scales.mini.tasks.segmentation"),
        "model.prompt.length": ("28", "scales.mini.tasks.segmentation.methods.vpd"),
        "training.milestones.half": ("0.5", "tasks.segmentation.schedules.fast"),
        "training.steps": ("300", "scales.mini.tasks.segmentation.schedules.fast"),
        "evaluation.multi_scale": ("true", "experiments.seg-fast"),
        "seeds": ("[0]", "scales.mini.seeds.ablations"),
        "training.precision": ('"fp32"', "default"),
        "checkpoint": ('"sd-1-5"', "experiments.seg-fast"),
    }  # fmt: skip
    assert rows["training.optimizer.lr_rules"][1] == "protocols.official.segmentation.methods.vpd"


@pytest.mark.parametrize("scale", SCALES)
def test_origins_are_of_all_values_and_name_sections_of_the_file(scale):
    params, document = load_params(ROOT / "params.yaml", scale), read(ROOT / "params.yaml")
    for name in params.experiments:
        spec = params.resolve(name).model_dump(mode="json")
        for key, value, origin in map(split, params.origins(name)):
            assert json.loads(value) == at(spec, key)
            assert origin in ("default", "--scale") or at(document, origin) is not None


def test_key_written_twice_is_refused(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text + "\nscale: smoke\n")
    with pytest.raises(UserError, match="the key 'scale' stands twice"):
        load_params(tmp_path / "params.yaml")


def test_the_matrix_is_listed_in_columns_under_their_names(capsys):
    assert main(["show", "--params", str(ROOT / "params.yaml")]) == 0
    title, _, header, *lines = capsys.readouterr().out.splitlines()
    params = load_params(ROOT / "params.yaml")
    assert title == f"scale mini, protocol official: {len(params.experiments)} experiments"
    columns = ("experiment", "task", "method", "dataset", "checkpoint", "schedule", "seeds")
    starts = [header.index(name) for name in columns]
    assert header.split() == list(columns)
    for line, (name, experiment) in zip(lines, params.experiments.items(), strict=True):
        cells = [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        wanted = experiment.variant or experiment.dataset
        shown = [name, experiment.task, experiment.method, wanted, experiment.checkpoint, experiment.schedule]
        assert cells == [*shown, "0"]


@pytest.mark.parametrize(
    ("seeds", "shown"), [("[0, 1, 2, 3]", "0-3"), ("[4, 5]", "4,5"), ("[0, 2, 3]", "0,2,3"), ("[7]", "7")]
)
def test_the_matrix_shows_seeds(tmp_path, capsys, seeds, shown):
    text = (ROOT / "params.yaml").read_text()
    changed = text.replace(
        "{ablations: [0], claims: [0], single: [0]}", f"{{ablations: {seeds}, claims: [0], single: [0]}}"
    )
    (tmp_path / "params.yaml").write_text(changed)
    assert main(["show", "--params", str(tmp_path / "params.yaml")]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("seg-prompt "))
    assert line.split()[-1] == shown


def test_the_version_names_the_commit_that_runs(tmp_path):
    """Of the clone that the code belongs to, and not of one that it merely lies in."""

    def version(source: Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(source)}
        command = [sys.executable, "-m", "vpd", "--version"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *author, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    shutil.copytree(ROOT / "src/vpd", tmp_path / "src/vpd", ignore=shutil.ignore_patterns("__pycache__"))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "another project")
    assert version(tmp_path / "src") == f"vpd {vpd.__version__}"
    git("add", "src")
    git("commit", "-q", "-m", "this one")
    assert version(tmp_path / "src") == f"vpd {vpd.__version__} (commit {git('rev-parse', 'HEAD')[:12]})"
    (tmp_path / "src/vpd/new.py").write_text("")
    assert version(tmp_path / "src").endswith(" and uncommitted changes)")


def test_closed_pipe_is_neither_success_nor_a_traceback():
    """The job of a workflow whose log reader died must not count as done."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-u", "-m", "vpd", "show"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_imports_nothing_heavy():
    code = "import sys; from vpd.cli import parser; parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "mlflow", "diffusers", "transformers", "numpy", "pydantic"} & set(loaded)

"""Stable Diffusion checkpoints from a hub (a real server), and from original files, whose names test_parity.py proves."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from fixtures.parity.narrow import FOLDER, build, make_batch, make_spec, write_checkpoint
from hub_server import Hub, Repository, make
from vpd.config.schema import CheckpointSpec
from vpd.pretrained import stable_diffusion as sd
from vpd.pretrained.checkpoints import assemble
from vpd.pretrained.original import diffusers_names
from vpd.utils.digests import changed, sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
REPO = "owner/stable-diffusion"
COUNTS = {"unet": 859_520_964, "text_encoder": 123_060_480, "encoder": 34_163_664}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """A narrow Stable Diffusion folder of the original's depth."""
    wide = {"unet": (32, 64, 128, 128), "vae": (32, 64, 128, 128), "layers": 2, "heads": 8, "groups": 32}
    folder = write_pipeline(tmp_path_factory.mktemp("narrow"), **wide, width=64)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.num_attention_heads = 1
    config.hidden_act = "quick_gelu"
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A smaller one, as the hub has it: with files beside it that nobody needs."""
    folder = write_pipeline(tmp_path_factory.mktemp("small"), unet=(8, 8, 16, 16), vae=(8, 8, 8), heads=2, groups=4)
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "v1.ckpt"):
        (folder / name).write_bytes(b"unneeded")
    for name in ("unet/diffusion_pytorch_model.non_ema.safetensors", "safety_checker/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"unneeded")
    return folder


def write_pipeline(folder: Path, **sizes) -> Path:
    """A randomly initialised pipeline folder with scheduler and index."""
    torch.manual_seed(8)
    write_checkpoint(folder, **sizes)
    write_json(folder / "scheduler/scheduler_config.json", sd.configs()["scheduler"])
    parts = sd.CLASSES | {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **parts})
    return folder


def configurations(folder: Path) -> dict:
    return {part: read_json(folder / name) for part, name in sd.CONFIGS.items() if part in sd.CLASSES}


def intact(folder: Path) -> bool:
    return not changed(folder, read_json(folder / "manifest.json")["files"])


def tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {part: load_file(folder / name) for part, name in WEIGHTS.items()}


def test_true_configurations_have_stable_diffusion_1s_parameters():
    configs = sd.configs()
    networks = {part: sd.network_tensors(part, configs[part]) for part in ("unet", "text_encoder", "vae")}
    encoder = {name: x for name, x in networks.pop("vae").items() if name.startswith(("encoder.", "quant_conv."))}
    networks["encoder"] = encoder
    assert {name: sum(x.numel() for x in state.values()) for name, state in networks.items()} == COUNTS


def decoder_names() -> list[str]:
    """LDM's names of the VAE decoder's tensors at Stable Diffusion's depth, level 0 the finest."""
    norm_and_conv = [f"{layer}.{kind}" for layer in ("norm1", "conv1", "norm2", "conv2") for kind in ("weight", "bias")]
    names = [f"mid.block_{i}.{x}" for i in (1, 2) for x in norm_and_conv]
    names += [f"mid.attn_1.{layer}.{x}" for layer in ("norm", "q", "k", "v", "proj_out") for x in ("weight", "bias")]
    names += [f"up.{i}.block.{j}.{x}" for i in range(4) for j in range(3) for x in norm_and_conv]
    # The widths (32, 64, 128, 128) change where a level starts from a wider one.
    names += [f"up.{i}.block.0.nin_shortcut.{x}" for i in (0, 1) for x in ("weight", "bias")]
    names += [f"up.{i}.upsample.conv.{x}" for i in (1, 2, 3) for x in ("weight", "bias")]
    names += [f"{layer}.{x}" for layer in ("conv_in", "conv_out", "norm_out") for x in ("weight", "bias")]
    return [f"{VAE}decoder.{name}" for name in names] + [f"{VAE}post_quant_conv.{x}" for x in ("weight", "bias")]


def original_names() -> dict[str, str]:
    """Ours, after ``unet.`` or ``vae.`` -> LDM's."""
    known = [name for name, _, _ in json.loads((FOLDER / "seg.json").read_text())["parameters"]]
    names = [name.replace("unet.unet.diffusion_model.", UNET, 1).replace("encoder_vq.", VAE, 1) for name in known]
    names += [f"{UNET}out.{i}.{x}" for i in (0, 2) for x in ("weight", "bias")] + decoder_names()
    return {ours: name for name, ours in diffusers_names(dict.fromkeys(names)).items()}


@pytest.fixture(scope="module")
def original(pipeline) -> dict[str, Tensor]:
    """The pipeline's weights as an original file has them, attention of the VAE as 1x1 convolutions."""
    parts, names = tensors(pipeline), original_names()
    state = {names[f"unet.{name}"]: tensor for name, tensor in parts["unet"].items()}
    for name, tensor in parts["vae"].items():
        state[names[f"vae.{name}"]] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
    for name, tensor in parts["text_encoder"].items():
        state[f"{TEXT}text_model.{name.removeprefix('text_model.')}"] = tensor
    extras = {"betas": torch.zeros(1000), "posterior_mean_coef1": torch.zeros(1000), "logvar": torch.zeros(1000)}
    positions = {f"{TEXT}text_model.embeddings.position_ids": torch.arange(20)[None]}
    return state | extras | positions | {f"{VAE}loss.logvar": torch.zeros(())}


@pytest.fixture
def convert(tmp_path, pipeline, monkeypatch):
    """Write a state dict to a file and make a checkpoint of it, where the narrow pipeline stands for Stable Diffusion 1."""
    monkeypatch.setattr(sd, "configs", lambda _="": configurations(pipeline))

    def run(state: dict[str, Tensor], file: str = "sd.ckpt", **spec) -> Path:
        path, out = tmp_path / file, tmp_path / "checkpoint"
        if file.endswith(".safetensors"):
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        else:
            torch.save({"state_dict": state, "global_step": 470000}, path)
        given = {"source": "file", "path": str(path), "repo": str(pipeline)} | spec
        assemble("sd-1-4", CheckpointSpec.model_validate(given), tmp_path / "none", out)
        return out

    return run


@pytest.mark.parametrize("file", ["sd.ckpt", "sd.safetensors"])
def test_original_file_and_diffusers_folder_give_the_same_features(convert, original, pipeline, tmp_path, file):
    out = convert(original, file)
    assert intact(out)
    known = {"source": "file", "file": file, "sha256": sha256(tmp_path / file), "tokenizer": str(pipeline)}
    assert read_json(out / "origin.json") == known | {"ema": "only set in the file"}
    one = sd.FAMILIES["stable-diffusion-1"]
    assert sd.check_pipeline(out, one) == sd.check_pipeline(pipeline, one)
    spec, batch = make_spec("segmentation", head={"channels": 16}), make_batch()
    with torch.no_grad():
        expected, found = (build(spec, folder).features(batch) for folder in (pipeline, out))
    assert len(found.maps) == 4
    for a, b in zip(found.maps, expected.maps, strict=True):
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5
    # The decoder too, which no feature depends on.
    expected, found = tensors(pipeline), tensors(out)
    assert found["vae"].keys() == expected["vae"].keys()
    assert all(torch.equal(found["vae"][name], tensor) for name, tensor in expected["vae"].items())


def with_average(original: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
    """A full file: the last U-Net weights are other ones, and ``share`` of the average is there."""
    own = [name for name in original if name.startswith(UNET)]
    average = {
        f"model_ema.{name[len('model.') :].replace('.', '')}": original[name] for name in own[: round(share * len(own))]
    }
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3, dtype=torch.int32)}
    return original | {name: original[name] + 1 for name in own} | average | counters


def test_average_is_taken_and_announced(convert, original, pipeline, capsys):
    out = convert(with_average(original))
    assert "the moving average (EMA) is used" in capsys.readouterr().err
    assert read_json(out / "origin.json")["ema"] == "chosen over the last weights"
    expected, found = tensors(pipeline)["unet"], tensors(out)["unet"]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_half_precision_becomes_single(convert, original):
    out = convert({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in original.items()})
    assert {tensor.dtype for part in tensors(out).values() for tensor in part.values()} == {torch.float32}


def test_lightnings_bookkeeping_is_passed_over(convert, original, tmp_path, monkeypatch):
    """Original files carry the state of a Lightning callback, keyed by its class."""
    module = types.ModuleType("pytorch_lightning")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
    path = tmp_path / "lightning.ckpt"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", module)
        callbacks = {module.ModelCheckpoint: {"best": Path("/tmp/x"), "own": module.ModelCheckpoint()}}
        torch.save({"callbacks": callbacks, "state_dict": original}, path)
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(path, weights_only=True)
    plain = tensors(convert(original))
    spec = CheckpointSpec(source="file", path=str(path), repo=str(tmp_path / "checkpoint"))
    assemble("sd-1-4", spec, tmp_path, out := tmp_path / "second")
    found = tensors(out)["unet"]
    assert all(torch.equal(found[name], tensor) for name, tensor in plain["unet"].items())


FIRST = f"{UNET}input_blocks.0.0.weight"
KEYS = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{UNET}out.2.bias": None}, r"sd\.ckpt: the unet is not whole \(1 missing, first 'conv_out\.bias'\)"),
        (
            {f"{VAE}decoder.mid.attn_1.q.weight": None, f"{VAE}decoder.mid.attn_1.k.weight": None},
            r"the vae is not whole \(2 missing, first 'decoder\.mid_block\.attentions\.0\.to_k\.weight'\)",
        ),
        ({f"{UNET}out.2.bias": torch.zeros(7)}, r"1 of another shape, first 'conv_out\.bias' \(7,\) instead of \(4,\)"),
        ({"lora.up": torch.zeros(2)}, r"has 1 tensors that Stable Diffusion 1 does not have, first 'lora\.up'"),
        ({f"{UNET}input_blocks.4.0.extra": torch.zeros(2)}, r"1 unexpected, first 'down_blocks\.1\.resnets\.0\.extra'"),
        ({KEYS: torch.zeros(32, 1024)}, r"is a Stable Diffusion 2 U-Net \(cross-attention width 1024\)"),
        ({FIRST: torch.zeros(32, 9, 3, 3)}, r"takes 9 channels, .* inpainting"),
        ({FIRST: None}, r"has no U-Net under model\.diffusion_model\."),
        (lambda x: {n: t for n, t in x.items() if not n.startswith(TEXT)}, r"sd\.ckpt: the text_encoder is not whole"),
        (lambda x: with_average(x, 0.5), r"average of 343 of 686 U-Net tensors, first missing 'model_ema\.diffusion"),
    ],
)
def test_file_that_is_not_stable_diffusion_1_is_refused(convert, original, tmp_path, changes, message):
    state = changes(original) if callable(changes) else original | changes
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(UserError, match=message) as caught:
        convert(state)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"sha256": {"sd.ckpt": "00ff"}},
            r"sd-1-4: sd\.ckpt has sha256 .*, expected 00ff; .*correct checkpoints\.sd-1-4",
        ),
        ({"sha256": {"ss.ckpt": "00ff"}}, r"unknown file 'ss\.ckpt'; did you mean 'sd\.ckpt'"),
        ({"path": None}, r"source 'file' but no path"),
        ({"repo": None}, r"source 'file' but no repo; .*openai/clip-vit-large-patch14"),
        ({"repo": "tests"}, r"tests has no tokenizer\.json"),
    ],
)
def test_other_mistakes_with_files_are_named(convert, original, spec, message):
    with pytest.raises(UserError, match=message):
        convert(original, **spec)


@pytest.fixture
def hub(small):
    with Hub(**{REPO: Repository(small)}) as server:
        yield server


@pytest.fixture
def ask(hub, tmp_path):
    def run(*specs: dict, limit: int = 0, **environment: str) -> list[str]:
        jobs = [("sd-1-4", {"source": "hub", "repo": REPO} | spec, run.out) for spec in specs]
        return make(run.home, jobs, limit, **{"HF_ENDPOINT": hub.url} | environment)

    run.home, run.out = tmp_path / "home", tmp_path / "checkpoint"
    return run


def test_pinned_revision_comes_whole_and_alone_and_then_from_the_cache(hub, ask, small):
    commit = hub.repositories[REPO].commit
    digests = {name: sha256(small / name)[:16] for name in WEIGHTS.values()}
    assert ask({"revision": commit, "sha256": digests}) == ["made"]
    assert hub.served() == {str(path.relative_to(small)) for path in small.rglob("*")} & set(sd.FILES)
    manifest, origin = read_json(ask.out / "manifest.json"), read_json(ask.out / "origin.json")
    assert origin == {"source": "hub", "repo": REPO, "revision": commit}
    assert intact(ask.out)
    for name in WEIGHTS.values():
        assert sha256(ask.out / name) == sha256(small / name)

    shutil.rmtree(ask.out)
    hub.requests.clear()
    assert ask({"revision": commit}, HF_HUB_OFFLINE="1") == ["made"]
    assert not hub.requests
    assert read_json(ask.out / "manifest.json") == manifest


@pytest.mark.slow
def test_gated_repository_says_what_to_do_and_then_opens_with_the_token(hub, ask):
    hub.repositories[REPO].token = "hf_accepted"
    hub.repositories["owner/copy"] = Repository(hub.repositories[REPO].folder)
    for environment in ({}, {"HF_TOKEN": "hf_stranger"}):
        # A mirror is no way around a licence.
        (line,) = ask({"mirrors": ["owner/copy"]}, **environment)
        assert f"{REPO} is gated; open {hub.url}/{REPO}, accept its licence" in line
        assert "set HF_TOKEN" in line
    assert not ask.out.exists()
    assert ask({}, HF_TOKEN="hf_accepted") == ["made"]
    assert read_json(ask.out / "origin.json")["revision"] == hub.repositories[REPO].commit
    assert not hub.told


@pytest.mark.slow
def test_mirror_stands_in_for_what_is_gone(hub, ask, small, tmp_path):
    partial = tmp_path / "partial"
    shutil.copytree(small, partial)
    (partial / WEIGHTS["vae"]).unlink()
    hub.repositories |= {"owner/partial": Repository(partial), "owner/down": Repository(small, disabled=True)}
    commit = hub.repositories[REPO].commit
    lines = ask(
        {"repo": "owner/absent"},
        {"revision": "0" * 40},
        {"repo": "owner/partial"},
        {"repo": "owner/down", "mirrors": ["owner/absent"]},
        {"repo": "owner/absent", "mirrors": ["owner/down", "owner/partial", f"{REPO}@{commit}"]},
        {"repo": None},
        {"repo": "a/b/c"},
    )
    cure = "add a repository that has the files to mirrors, or set source: folder and the path of a copy"
    assert f"owner/absent is not at {hub.url}/owner/absent, or is private; {cure}" in lines[0]
    assert f"{REPO} has no revision {'0' * 40}; {cure}" in lines[1]
    assert f"owner/partial has no {WEIGHTS['vae']} at revision main; {cure}" in lines[2]
    assert "owner/down is not at" in lines[3]
    assert "; owner/absent is not at" in lines[3]
    assert lines[4] == "made"
    assert "checkpoints.sd-1-4 has source 'hub' but no repo" in lines[5]
    assert "'a/b/c' is no name of a hub repository; write owner/model" in lines[6]
    assert read_json(ask.out / "origin.json") == {"source": "hub", "repo": REPO, "revision": commit}


def test_wrong_bytes_are_named(hub, ask, small):
    lines = ask({"sha256": {WEIGHTS["unet"]: "abc"}}, {"sha256": {"unet/x.safetensors": "abc"}})
    digest = sha256(small / WEIGHTS["unet"])
    assert f"{WEIGHTS['unet']} has sha256 {digest}, expected abc" in lines[0]
    assert f"unknown file 'unet/x.safetensors'; did you mean '{WEIGHTS['unet']}'" in lines[1]
    shutil.rmtree(ask.home)
    hub.repositories[REPO].corrupt = {WEIGHTS["vae"]}
    (line,) = ask({})
    digest = sha256(small / WEIGHTS["vae"])
    assert f"expected {digest}; delete {ask.home}" in line
    assert line.endswith(f"{digest} and fetch it again")
    assert not ask.out.exists()


def test_broken_connections_are_resumed_or_reported(hub, ask, small):
    hub.repositories[REPO].drops = {WEIGHTS["unet"]: 2}
    assert ask({}) == ["made"]
    assert sha256(ask.out / WEIGHTS["unet"]) == sha256(small / WEIGHTS["unet"])
    shutil.rmtree(ask.home)
    shutil.rmtree(ask.out)
    hub.repositories[REPO].truncate = {WEIGHTS["unet"]}
    (line,) = ask({})
    assert f"the download of {REPO} broke off" in line
    assert "run it again" in line
    assert not ask.out.exists()


@pytest.mark.slow
def test_full_disk_offline_and_unreachable_hub_are_named(hub, ask):
    (line,) = ask({}, limit=20_000)
    assert f"cannot store {REPO} in {ask.home}" in line
    assert "set HF_HOME" in line
    shutil.rmtree(ask.home)
    (line,) = ask({}, HF_HUB_OFFLINE="1")
    assert f"{REPO} at main is not complete in {ask.home}" in line
    assert "HF_HUB_OFFLINE forbids downloads" in line
    hub.failing = 503
    (line,) = ask({})
    assert f"the hub answers {hub.url}/{REPO} with HTTP 503" in line
    with Hub() as closed:
        pass
    (line,) = ask({}, HF_ENDPOINT=closed.url)
    assert f"{closed.url} cannot be reached" in line
    assert "set HF_ENDPOINT" in line


def test_tokenizer_of_a_file_comes_from_the_hub(hub, ask, original, tmp_path, pipeline):
    words = tmp_path / "clip"
    shutil.copytree(pipeline / "tokenizer", words)
    hub.repositories["owner/clip"] = Repository(words)
    torch.save(original, tmp_path / "sd.ckpt")
    write_json(tmp_path / "configs.json", configurations(pipeline))
    spec = {"source": "file", "path": str(tmp_path / "sd.ckpt"), "repo": "owner/clip"}
    assert ask(spec, SD1_CONFIGS=str(tmp_path / "configs.json")) == ["made"]
    commit = hub.repositories["owner/clip"].commit
    assert read_json(ask.out / "origin.json")["tokenizer"] == f"owner/clip@{commit}"
    assert hub.served() == {"tokenizer.json", "tokenizer_config.json"} | (
        {"special_tokens_map.json"} & {path.name for path in words.iterdir()}
    )

"""The released stage: measures the authors' VPD weights, each as one experiment, and public depth models."""

import shutil
import sys
from pathlib import Path
from typing import Any, cast

from vpd.config.params import Params
from vpd.config.paths import Paths, evaluated
from vpd.config.schema import DepthSpec, ReleasedSpec, Spec, released_spec
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import exclusive, write_json, write_text
from vpd.utils.validation import read_as

INDEX, FACTS = "index.json", "facts"  # workflow engines remove the index, but not the facts, before the stage runs
Index = dict[str, dict[str, dict[str, Any]]]  # group -> name -> facts


def measure_released(
    params: Params, data: Path, checkpoints: Path, archives: Path, out: Path, state: Path
) -> list[str]:
    """Measure every released file that the scale lists; return the names of those that could not be had.

    These are reported and skipped, because a dead link must not stop a reproduction. ``out`` gets ``metrics/<name>.json``,
    of VPD also all else of an evaluation, and, last, ``index.json``: facts about each of the authors' files (``released``) and of
    others' depth models (``public``), or why it is ``missing``. What was measured with the same settings before a link died
    stays: its facts are also in ``facts/<name>.json``. ``archives`` are downloaded ones, ``state`` working files.
    """
    index: Index = {"released": {}, "public": {}}
    for name, released in params.released.items():
        group = "public" if released.model else "released"
        spec = params.resolve(released.experiment or name).model_copy(update={"name": name})
        settings = {"spec": spec.digest()}
        try:
            source, origin = _source(name, released, archives)
        except UserError as error:
            print(f"vpd: released weights of {name}: {error}", file=sys.stderr)
            before = _facts(out / FACTS / f"{name}.json")
            index[group][name] = before if settings.items() <= before.items() else {"missing": str(error)}
            continue
        if released.model:
            facts = _measure_public(cast(DepthSpec, spec), released.model, source, data, out)
        else:
            facts = _measure_vpd(spec, source, data, checkpoints, out, state / name)
        index[group][name] = settings | facts | origin
        write_json(out / FACTS / f"{name}.json", index[group][name])
    known = {**index["released"], **index["public"]}
    missing = [name for name in params.released if "missing" in known[name]]
    for path in out.glob("*/*"):  # of files that are no longer listed, or cannot be had
        name = path.name if path.is_dir() else path.stem
        if name not in known or name in missing:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(out / INDEX, index)
    return missing


def _facts(path: Path) -> dict[str, Any]:
    """What an earlier run found out; nothing if that is missing or damaged."""
    try:
        return read_as(dict[str, Any], path)
    except UserError:
        return {}


def _source(name: str, released: ReleasedSpec, archives: Path) -> tuple[Path, dict[str, str]]:
    """Return the file, or a repository's folder with its name and commit; downloaded if need be."""
    if released.path is None:
        from vpd.pretrained.monocular import fetch_monocular

        repository = fetch_monocular(name, released)
        return repository.folder, repository.origin
    path = Path(released.path)
    if released.model and path.is_dir():
        return path, {}
    if not path.is_file() and released.download:
        from vpd.download import fetch

        fetch(released.download, path.parent, archives)
    if not path.is_file():
        raise UserError(f"{path} does not exist; put it there, or remove {name} from the scale's released weights")
    return path, {}


def _measure_vpd(spec: Spec, file: Path, data: Path, checkpoints: Path, out: Path, state: Path) -> dict[str, Any]:
    from vpd.evaluation.run import evaluate
    from vpd.pretrained.released import import_weights
    from vpd.stages.training import check_inputs, plain_captions, use_threads
    from vpd.training.runs import gather

    spec = released_spec(spec)
    use_threads(spec)
    plain_captions()
    runs = state / "runs"
    data, checkpoint = data / spec.dataset, checkpoints / spec.checkpoint
    check_inputs(spec, data, checkpoint)
    facts = import_weights(spec, file, data, checkpoint, runs)
    gather(runs, spec.seeds, state / "history.csv")
    evaluate(spec, runs, data, checkpoint, evaluated(out, spec.name), state / "evaluate")
    shutil.rmtree(state)
    return facts


def _measure_public(spec: DepthSpec, model: str, source: Path, data: Path, out: Path) -> dict[str, Any]:
    from vpd.datasets.manifest import check_unchanged
    from vpd.evaluation.run import evaluate_monocular
    from vpd.pretrained.monocular import open_monocular, weights_file
    from vpd.stages.training import use_threads

    use_threads(spec)
    check_unchanged(data / spec.dataset)
    network, file = open_monocular(model, source), weights_file(source)
    evaluate_monocular(spec, network, data / spec.dataset, evaluated(out, spec.name).metrics)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"model": model, "file": file.name, "sha256": sha256(file), "parameters": parameters}


def import_experiment(spec: Spec, file: Path, paths: Paths) -> str:
    """Turn the authors' weights into the runs of an experiment, as if trained here; return what was found out, in words."""
    from vpd.pretrained.released import import_weights
    from vpd.stages.training import check_inputs
    from vpd.training.runs import gather

    spec = released_spec(spec)
    data, checkpoint, runs = paths.dataset(spec.dataset), paths.checkpoint(spec.checkpoint), paths.runs(spec.name)
    check_inputs(spec, data, checkpoint)
    with exclusive(runs, f"import of {spec.name}"):  # a training of the same experiment writes there, too
        facts = import_weights(spec, file, data, checkpoint, runs)
        gather(runs, spec.seeds, paths.history(spec.name))
        write_text(paths.spec(spec.name), spec.model_dump_json(indent=1) + "\n")
        write_json(runs / "released.json", facts)
    text = f"{file.name} is now a run in {runs}; its VAE differs by {facts['vae_difference']:.1e}"
    if "class_embeddings" in facts:
        found = facts["class_embeddings"]
        text += (
            f"\nclass embeddings agree with our prompts to a cosine of {found['mean']:.4f} in the mean, "
            f"{found['worst']:.4f} at worst ({found['worst_class']}); {found['in_order']} of {len(found['by_class'])} "
            "are nearest to ours of the same class (fewer than all: another order of classes)"
        )
    return text

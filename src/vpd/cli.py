"""The ``vpd`` command: one subcommand per stage of the workflow. It parses, calls and writes; paths come from the caller.

Heavy packages are imported inside the commands, so that ``vpd --help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
from pathlib import Path

from vpd.utils.errors import UserError

DESCRIPTION = (
    "VPD (ICCV 2023) as one workflow. The commands from `data` on are its stages, run by dvc repro or snakemake."
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 on success, 2 for a mistake the user can cure, 130 when interrupted, 141 on a closed pipe.

    ``vpd diff`` ends with 1 if there are differences.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it advises at import time against parts not used here
    # OpenMP threads that spin for long starve each other when anything else runs: a step of 0.3 s became one of 5 s.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    options = parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as mistake:
        print(f"vpd: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vpd: interrupted; run the same command again to go on from the last saved state", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone, such as head, or tee of a workflow: no success, but nothing to explain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"vpd: the disk is full while writing {error.filename or 'a file'}; free some space", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="vpd", description=DESCRIPTION, allow_abbrev=False)
    top.add_argument("--version", action="version", version=_version())
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _everyday(commands)
    _paper_scale(commands)
    _stages(commands)
    return top


def _everyday(commands) -> None:
    command = _command(commands, "show", _show, "print an experiment's resolved spec, or the matrix")
    command.add_argument("name", nargs="?", help="experiment; without it the matrix is listed")
    _params(command)

    command = _command(commands, "predict", _predict, "depth, segments or the object of a text in your own images")
    command.add_argument("name", help="experiment whose weights are used, or models:/NAME/VERSION of MLflow's registry")
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    command.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write (default: %(default)s)")
    command.add_argument("--text", help="what to look for (referring segmentation)")
    command.add_argument("--scene", help="kind of room, such as kitchen (depth)")
    _uri(command)
    _params(command)
    for name, text in PREDICT_PATHS.items():
        command.add_argument(f"--{name}", type=Path, metavar="PATH", help=f"{text} (default: that of the scale)")

    command = _command(commands, "diff", _diff, "compare two results folders cell by cell")
    command.add_argument("first", type=Path, help="results folder, or a cells.csv")
    command.add_argument("second", type=Path, help="another one")


def _paper_scale(commands) -> None:
    command = _command(commands, "fetch", _fetch, "download a dataset or released weights, or list what there is")
    command.add_argument("name", nargs="?", help="dataset or entry; without it all are listed")
    command.add_argument("--out", type=Path, help="folder to complete (default: that in params.yaml)")
    command.add_argument("--archives", type=Path, default=Path("downloads/archives"), help="where downloads are kept")
    command.add_argument("--accept-licence", action="store_true", help="agree to the terms that are shown without it")
    command.add_argument(
        "--from-archive",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files you already have",
    )
    command.add_argument("--sources", type=Path, help="catalogue of addresses instead of the one that comes with vpd")
    _params(command, protocol=False)

    command = _command(commands, "cost", _cost, "parameters, multiply-adds, memory and GPU-hours, before anything runs")
    command.add_argument("names", nargs="*", metavar="EXPERIMENT", help="experiments (default: the whole matrix)")
    command.add_argument(
        "--checkpoints", type=Path, help="folder of the scale's checkpoints, where it pre-trains its own"
    )
    command.add_argument("--out", type=Path, help="JSON file of figures and resources to write")
    _params(command)

    command = _command(commands, "plan", _plan, "jobs, hours, disk and what is done, before paying for them")
    command.add_argument(
        "words", nargs="*", metavar="WHAT", help="experiments, tasks, tables or figures (default: the whole matrix)"
    )
    command.add_argument("--gpus", type=_count, default=1, metavar="N", help="GPUs at hand (default: %(default)s)")
    command.add_argument("--jobs", action="store_true", help="list every job with what it needs, too")
    command.add_argument(
        "--annotate",
        action="store_true",
        help="instead, read what `dvc repro --dry` says and add what each stage needs",
    )
    command.add_argument(
        "--costs", type=Path, default=Path("workflow/costs.json"), help="file of vpd cost --out (default: %(default)s)"
    )
    _params(command)

    command = _command(commands, "import-weights", _import_weights, "turn the authors' released weights into a run")
    command.add_argument("name", help="experiment that the weights stand for")
    command.add_argument("file", type=Path, help="the authors' file")
    _params(command)
    _paths(command, "data", "checkpoint", "runs", "spec")


def _stages(commands) -> None:
    command = _command(commands, "data", _data, "draw a dataset of the miniature world, or fetch and check a real one")
    command.add_argument("name", help="dataset, as in params.yaml")
    _params(command, protocol=False)
    command.add_argument("--archives", type=Path, default=Path("downloads/archives"), help="where downloads are kept")
    _paths(command, "out", "timing")

    command = _command(commands, "pretrain", _pretrain, "pre-train the small Stable Diffusion")
    _params(command, protocol=False)
    _paths(command, "data", "out", "state", "timing")

    command = _command(commands, "checkpoint", _checkpoint, "take or check one Stable Diffusion checkpoint")
    command.add_argument("name", help="checkpoint, as in params.yaml")
    _params(command, protocol=False)
    _paths(command, "pretraining", "out", "timing")

    command = _command(commands, "backbone", _backbone, "fetch one backbone's public weights, or pre-train it small")
    command.add_argument("name", help="backbone, as in params.yaml")
    _params(command, protocol=False)
    _paths(command, "captions", "objects", "out", "facts", "state", "timing")

    command = _command(commands, "train", _train, "train one experiment, all its seeds")
    command.add_argument("name", help="experiment, as in params.yaml")
    command.add_argument(
        "--live", metavar="URI", default=os.environ.get("VPD_LIVE"), help="MLflow server to log to live"
    )
    _params(command)
    _paths(command, "data", "checkpoint", "runs", "spec", "history", "state", "timing")

    command = _command(commands, "evaluate", _evaluate, "measure one experiment, all its seeds")
    command.add_argument("name", help="experiment, for the progress display")
    _paths(command, "spec", "data", "checkpoint", "runs", "metrics", "panels", "state", "timing")

    command = _command(commands, "released", _released, "measure the weights that the authors released")
    _params(command)
    _paths(command, "data", "checkpoints", "archives", "out", "state", "timing")

    command = _command(commands, "report", _report, "write every table and figure beside the paper's numbers")
    _params(command)
    _paths(command, "results", "pretraining", "previews", "out")
    command.add_argument("--costs", type=Path, help="file of vpd cost --out, for sizes and multiply-adds")
    command.add_argument("--costs-scale", metavar="SCALE", help="whose networks it counts (default: this scale's)")

    command = _command(commands, "track", _track, "log all results to MLflow, without duplicates")
    _params(command)
    _paths(command, "results")
    command.add_argument("--data", type=Path, help="folder of the scale's datasets (default: data/SCALE)")
    command.add_argument("--checkpoints", type=Path, help="of its checkpoints (default: checkpoints/SCALE)")
    command.add_argument("--out", type=Path, help="JSON summary to write")
    _uri(command)
    command.add_argument("--if-reachable", action="store_true", help="succeed with a note when the server is down")


def _version() -> str:
    from vpd import __version__

    return __version__


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _params(command: argparse.ArgumentParser, protocol: bool = True) -> None:
    command.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="the parameters (default: %(default)s)"
    )
    command.add_argument("--scale", help="instead of the file's own")
    command.set_defaults(protocol=None)
    if protocol:
        command.add_argument("--protocol", help="instead of the file's own")


def _uri(command: argparse.ArgumentParser) -> None:
    usual = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    # The value itself may hold a password.
    command.add_argument(
        "--uri", default=usual, help="MLflow store (default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)"
    )


def _paths(command: argparse.ArgumentParser, *names: str) -> None:
    for name in names:
        command.add_argument(f"--{name}", type=Path, required=True, metavar="PATH")


def _load(options: argparse.Namespace):
    from vpd.config.params import load_params

    return load_params(options.params, options.scale, options.protocol)


def _show(options: argparse.Namespace) -> None:
    params = _load(options)
    if options.name:
        print(params.resolve(options.name).model_dump_json(indent=1))
        return
    for name, line in params.experiments.items():
        print(f"{name:20} {line.task:13} {line.variant or line.dataset:9} {line.checkpoint:8} {line.schedule}")


PREDICT_PATHS = {
    "spec": "resolved spec of the experiment",
    "weights": "its weights",
    "checkpoint": "its Stable Diffusion checkpoint",
    "data": "its dataset, for the names of classes",
}


def _predict(options: argparse.Namespace) -> int:
    from vpd.config.schema import load_spec
    from vpd.utils.errors import UserError

    registered = options.name.startswith("models:/")
    places = _registered_places(options) if registered else _places(options)
    if not places["spec"].is_file():
        raise UserError(
            f"{places['spec']} does not exist, so {options.name} has not been trained here; "
            f"run it first (dvc repro train@{options.name}), or give --spec, --weights and --checkpoint"
        )
    spec = load_spec(places["spec"])
    from vpd.datasets.manifest import located
    from vpd.predict import class_names, predict
    from vpd.utils.files import read_json

    if registered:
        names = read_json(places["classes"])["classes"]
    else:
        names = class_names(spec, located(places["data"])) if places["data"].is_dir() else None
    picked = {"text": options.text, "scene": options.scene, "names": names}
    failed = predict(spec, places["weights"], places["checkpoint"], options.images, options.out, **picked)
    print(f"predictions are in {options.out}; look at the files that end in .panel.png")
    return 2 if failed else 0


def _registered_places(options: argparse.Namespace) -> dict[str, Path]:
    """Where the parts of a model in MLflow's registry lie, fetched if need be."""
    from vpd.tracking import model_places

    found = model_places(options.name, options.uri)
    return {name: getattr(options, name, None) or path for name, path in found.items()}


def _places(options: argparse.Namespace) -> dict[str, Path]:
    """Where a trained experiment lies: what the options say, else where the workflow puts it."""
    params = _load(options)
    spec, scale = params.resolve(options.name), params.scale
    usual = {
        "spec": Path(f"results/{scale}/specs/{spec.name}.json"),
        "weights": Path(f"results/{scale}/runs/{spec.name}/seed{spec.seeds[0]}/final.safetensors"),
        "checkpoint": Path(f"checkpoints/{scale}/{spec.checkpoint}"),
        "data": Path(f"data/{scale}/{spec.dataset}"),
    }
    return {name: getattr(options, name) or path for name, path in usual.items()}


def _fetch(options: argparse.Namespace) -> None:
    from vpd.download import fetch, listing

    if options.name is None:
        print(listing(options.sources, options.archives))
        return
    entries = _load(options).downloads(options.name)
    for entry, out in entries.items():
        place = options.out or out
        accepted, given = options.accept_licence, options.from_archive
        fetch(entry, place, options.archives, sources=options.sources, accept=accepted, given=given)
        print(f"{entry} is complete in {place}")


def _cost(options: argparse.Namespace) -> None:
    from vpd.planning.cost import all_costs, write_costs
    from vpd.planning.costs import markdown, paper_gflops

    params = _load(options)
    costs = all_costs(params, options.checkpoints, options.names or None)
    if options.out:
        write_costs(params, costs, options.out)
    print(markdown(costs, paper_gflops(params)))


def _count(text: str) -> int:
    """A number of GPUs or cores, at least one."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


def _plan(options: argparse.Namespace) -> None:
    from vpd.planning.costs import read_entries
    from vpd.planning.graph import ancestors, read_graph
    from vpd.planning.plan import Computed, annotated, describe, estimates, listing, select

    params = _load(options)
    names, jobs = select(params, options.words), read_graph(params)
    if options.words:
        jobs = ancestors(jobs, [f"evaluate@{name}" for name in names])
    found = estimates(params, jobs, read_entries(options.costs, Computed))
    if options.annotate:
        for line in sys.stdin:
            print(annotated(line.rstrip("\n"), found), flush=True)
        return
    if options.jobs:
        print(listing(jobs, found), end="\n\n")
    title = f"scale {params.scale}, protocol {params.protocol}: {len(names)} of {len(params.experiments)} experiments"
    print(describe(title, jobs, found, options.gpus))


def _import_weights(options: argparse.Namespace) -> None:
    spec = _load(options).resolve(options.name)
    from vpd.pretrained.released import import_weights, released_spec
    from vpd.utils.files import write_json, write_text

    manifest = import_weights(spec, options.file, options.data, options.checkpoint, options.runs)
    write_text(options.spec, released_spec(spec).model_dump_json(indent=1) + "\n")
    facts = manifest["released"]
    write_json(options.runs / "released.json", facts)
    print(f"{options.file.name} is now a run in {options.runs}; its VAE differs by {facts['vae_difference']:.1e}")
    if "class_embeddings" in facts:
        found = facts["class_embeddings"]
        print(
            f"class embeddings agree with our prompts to a cosine of {found['mean']:.4f} in the mean, "
            f"{found['worst']:.4f} at worst ({found['worst_class']}); {found['in_order']} of {len(found['by_class'])} "
            "are nearest to ours of the same class (fewer than all: another order of classes)"
        )


def _timed(path: Path, stage: str, name: str, started: float, **more) -> None:
    """Record how long a stage took: ``{"stage", "name", "seconds", "peak_mb", ...}``."""
    import resource

    from vpd.utils.files import write_json

    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    seconds = round(time.monotonic() - started, 2)
    write_json(path, {"stage": stage, "name": name, "seconds": seconds, "peak_mb": round(peak), **more})


def _data(options: argparse.Namespace) -> None:
    started, spec = time.monotonic(), _load(options).dataset(options.name)
    from vpd.datasets import prepare
    from vpd.utils.files import exclusive

    with exclusive(options.out):
        prepare(options.name, spec, options.out, options.archives)
    _timed(options.timing, "data", options.name, started)
    print(f"{options.name} is ready; look at {options.out / 'preview.png'}")


def _pretrain(options: argparse.Namespace) -> None:
    started, spec = time.monotonic(), _load(options).pretraining
    from vpd.pretraining.diffusion.pretrain import pretrain
    from vpd.utils.files import exclusive

    with exclusive(options.out):
        pretrain(spec, options.data, options.out, options.state)
    _timed(options.timing, "pretrain", "pretraining", started, steps=max(spec.milestones.values(), default=0))


def _checkpoint(options: argparse.Namespace) -> None:
    started, spec = time.monotonic(), _load(options).checkpoint(options.name)
    from vpd.pretrained.assemble import assemble
    from vpd.utils.files import exclusive

    with exclusive(options.out):
        assemble(options.name, spec, options.pretraining, options.out)
    _timed(options.timing, "checkpoint", options.name, started)


def _backbone(options: argparse.Namespace) -> None:
    started, spec = time.monotonic(), _load(options).backbone(options.name)
    from vpd.utils.files import exclusive, read_json, write_json

    with exclusive(options.out):
        if spec.source == "pretrained":
            from vpd.pretraining.backbones.pretrain import pretrain_backbone

            pretrain_backbone(options.name, spec, options.captions, options.objects, options.out, options.state)
        else:
            from vpd.pretrained.backbones import fetch_backbone

            fetch_backbone(options.name, spec, options.out)
        facts = read_json(options.out / "manifest.json")
    write_json(options.facts, facts)
    _timed(options.timing, "backbone", options.name, started, steps=spec.training.steps if spec.training else 0)


def _train(options: argparse.Namespace) -> None:
    started, params = time.monotonic(), _load(options)
    spec, resources = params.resolve(options.name), params.resources(options.name)
    from vpd.stages.jobs import train_seeds

    steps = train_seeds(spec, options, resources.gpus)
    if steps is not None:
        _timed(options.timing, "train", options.name, started, steps=steps, seeds=len(spec.seeds))


def _evaluate(options: argparse.Namespace) -> None:
    from vpd.config.schema import load_spec

    started, spec = time.monotonic(), load_spec(options.spec)
    from vpd.stages.jobs import evaluate_seeds

    evaluate_seeds(spec, options)
    _timed(options.timing, "evaluate", options.name, started, seeds=len(spec.seeds))


def _released(options: argparse.Namespace) -> None:
    started, params = time.monotonic(), _load(options)
    from vpd.stages.released import measure_released

    missing = measure_released(params, options)
    _timed(options.timing, "released", "released", started, files=len(params.released) - len(missing))
    if missing:
        print(f"not measured, because their weights could not be had: {', '.join(missing)}")


def _report(options: argparse.Namespace) -> None:
    params = _load(options)
    from vpd.report.write import write_report

    previews = {name: options.previews / name / "preview.png" for name in params.datasets}
    counted = {"costs": options.costs, "costs_scale": options.costs_scale}
    write_report(params, options.results, options.pretraining, previews, options.out, **counted)
    print(f"the report is {options.out / 'REPORT.md'}, and as one page {options.out / 'report.html'}")


def _diff(options: argparse.Namespace) -> int:
    from vpd.report.diff import report

    text, count = report(options.first, options.second)
    print(text)
    return 1 if count else 0


def _track(options: argparse.Namespace) -> None:
    params = _load(options)
    from vpd.tracking import compare_links, sync, ui_command
    from vpd.tracking.store import shown
    from vpd.utils.files import write_json

    folders = {name: getattr(options, name) or Path(name, params.scale) for name in ("data", "checkpoints")}
    summary = sync(options.results, params, options.uri, strict=not options.if_reachable, **folders)
    print(summary)
    if not summary.missed:
        command = ui_command(options.uri)
        print(f"open the runs with: {command}" if command else f"the runs are at {shown(options.uri)}")
        for table, link in compare_links(options.uri, params).items():
            print(f"  {table} side by side: {link}")
    if options.out:
        write_json(options.out, summary.as_dict())


if __name__ == "__main__":
    sys.exit(main())

"""``vpd demo``: one picture of what the small Stable Diffusion draws and points at, and what VPD sees in it."""

from pathlib import Path
from typing import Any

from vpd.config.params import Params
from vpd.config.paths import shipped
from vpd.config.schema import load_spec
from vpd.stages.predict import class_names_of, shipped_checkpoint, trained_parts
from vpd.utils.errors import UserError

NETWORKS = ("seg-full", "refcoco-full", "depth-full")


def draw_demo(text: str | None, seed: int, out: Path, params: Params) -> None:
    """Draw ``text`` with the last milestone in git, and write the picture of it and of what is seen in it to ``out``.

    Without ``text``, the first of the measures' prompts is drawn.

    Raises:
        UserError: weights are missing or damaged, ``out`` is no name of a PNG, or ``text`` is not for these networks.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"{out} is not a file name that ends in .png; name another --out")
    maker = params.shipped("demo") if params.block.shipped else params
    if not params.milestones or maker.measures is None:
        raise UserError(f"scale {maker.scale} has no small Stable Diffusion with `measures`; use another --scale")
    folder = shipped_checkpoint(max(params.milestones, key=lambda name: params.milestones[name]), params)
    networks = {name: trained_parts(name, params) for name in NETWORKS}
    for name, parts in networks.items():
        if not parts["weights"].is_file():
            cure = f"restore it with git, or run `vpd train {name} --scale {params.scale}`"
            raise UserError(f"{name} is neither in {shipped(params.scale, name)} nor trained here; {cure}")
    text = " ".join((maker.measures.sample_prompts[0] if text is None else text).split())
    if not text.isprintable():
        raise UserError(f"--prompt has letters that cannot be printed ({text}); use words")
    from vpd.measures.drawing import check_prompts
    from vpd.predict.demo import demo, sharpest
    from vpd.predict.network import load_network
    from vpd.predict.panels import plain_text
    from vpd.predict.prompt import read_prompt
    from vpd.report.collect import read_measures

    check_prompts([text], folder, "--prompt")
    prompt, loaded = read_prompt(text), []
    for parts in networks.values():
        spec = load_spec(parts["spec"])
        loaded.append(load_network(spec, parts["weights"], parts["checkpoint"], class_names_of(spec, parts)))
    frame = read_measures(folder.parent)
    measured: dict[Any, dict] = {} if frame is None else frame.set_index("images").filter(like="_auc").to_dict("index")
    drawing = maker.measures.model_copy(update={"seed": seed})
    with plain_text():
        demo(folder, prompt, drawing, sharpest(measured.get(folder.name, {})), loaded).save(out)

"""The documentation keeps up with the specs, params.yaml and the code, and its Python runs."""

import ast
import importlib.util
import json
import re
import subprocess
import types
import typing
from pathlib import Path

import jsonschema
import pytest
import yaml

import vpd
from tracking_world import table5, write_results
from vpd.config.params import load_params
from vpd.config.schema import TASKS
from vpd.tracking import sync
from vpd.utils.validation import _models_in

ROOT = Path(__file__).parent.parent
FIDELITY, PARAMS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("fidelity.md", "params.md"))
DOCS = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")])
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *DOCS))
ID = re.compile(r"(?<![\w-])[SGRDU]\d{1,2}(?![\w-])")
"""S1 or D12, but not A32, SD-1-5, R2D or G-Ref."""
KEY = re.compile(r"(?:model|data|training|evaluation)(?:\.[a-z_]+)+")
ABSENT = "–"
_module = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
reference = importlib.util.module_from_spec(_module)
_module.loader.exec_module(reference)
SCHEMA = jsonschema.Draft202012Validator(json.loads((ROOT / "params.schema.json").read_text(encoding="utf-8")))


# --------------------------------------------------------------------------------------------------------------- readers
def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """Every table of a page: its rows, each a dict by column heading."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heads, _, *rows = map(cells, block.splitlines())
        yield [dict(zip(heads, row, strict=True)) for row in rows]


def code(text):
    """What stands in single backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def fields(model, prefix=""):
    """Dotted keys of a model and of all models inside it, with their annotations."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.annotation
        for inner in _models_in(field.annotation):
            yield from fields(inner, f"{prefix}{name}.")


def holds_names(annotation):
    """Whether the field is a mapping with keys of the user's choice."""
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(typing.get_origin(part) is dict for part in parts)


TASK_FIELDS = {task: dict(fields(model)) for task, model in TASKS.items()}


def known(key, task):
    """Whether a task's spec has the key; below a mapping, any name is one."""
    *parent, _ = key.split(".")
    return key in TASK_FIELDS[task] or holds_names(TASK_FIELDS[task].get(".".join(parent)))


def looked_up(spec, key):
    """The value of a key, or ABSENT in specs of a method that has no such key."""
    for part in key.split("."):
        spec = spec.get(part, ABSENT) if isinstance(spec, dict) else ABSENT
    return spec


def comments_and_docstrings():
    """(where, text) of params.yaml's comments, and of the docstrings and comments under src/vpd."""
    for number, line in enumerate((ROOT / "params.yaml").read_text(encoding="utf-8").splitlines(), 1):
        yield f"params.yaml:{number}", line.partition("#")[2]
    for path in sorted((ROOT / "src" / "vpd").rglob("*.py")):
        source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                yield f"{name}:{node.lineno}", str(node.value.value)
        for number, line in enumerate(source.splitlines(), 1):
            if line.lstrip().startswith("#"):
                yield f"{name}:{number}", line


@pytest.fixture(scope="module")
def paper_scale():
    """Resolved experiments at paper scale: protocol -> name -> spec as plain data."""
    found = {}
    for protocol in ("official", "paper"):
        params = load_params(ROOT / "params.yaml", "paper", protocol)
        found[protocol] = {name: params.resolve(name).model_dump(mode="json") for name in params.experiments}
    return found


@pytest.fixture
def document():
    """params.yaml as plain data."""
    return yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


# ---------------------------------------------------------------------------------------------------------- fidelity.md
def fidelity_rows():
    return {row["id"]: row for table in tables(FIDELITY) for row in table if "id" in row}


def test_ids_have_one_row_each_and_no_gaps():
    ids = [row["id"] for table in tables(FIDELITY) for row in table if "id" in row]
    assert ids == [
        f"{letter}{n}" for letter, last in zip("SGRDU", (14, 12, 13, 19, 9), strict=True) for n in range(1, last + 1)
    ]
    assert all(row["here"] and row["the released code"] and row["the paper"] for row in fidelity_rows().values())


def test_every_id_in_use_is_explained():
    rows = fidelity_rows()
    used = [(found, where) for where, text in comments_and_docstrings() for found in ID.findall(text)]
    assert len(used) > 50
    assert [f"{found} in {where}" for found, where in used if found not in rows] == []
    assert set(ID.findall(FIDELITY + PARAMS)) <= set(rows)


def test_settings_in_fidelity_exist():
    """A row of one task may only name settings of that task."""
    tasks = {"S": list(TASKS), "U": list(TASKS), "G": ["segmentation"], "R": ["referring"], "D": ["depth"]}
    named = [
        (row["id"], key[0])
        for row in fidelity_rows().values()
        for span in code(row["here"])
        if (key := KEY.match(span))
    ]
    assert len(named) > 60
    assert [(found, key) for found, key in named if not any(known(key, task) for task in tasks[found[0]])] == []
    everywhere = [key[0] for span in code(FIDELITY) if (key := KEY.match(span))]
    assert [key for key in everywhere if not any(known(key, task) for task in TASKS)] == []


def test_values_in_fidelity_are_those_of_the_default_protocol(paper_scale):
    """Each `key: value` is the value of at least one experiment of that task."""
    letters = {"segmentation": "SG", "referring": "SR", "depth": "SD"}
    wrong = []
    for name, row in fidelity_rows().items():
        specs = [spec for spec in paper_scale["official"].values() if name[0] in letters[spec["task"]]]
        for key, _, value in (span.partition(": ") for span in code(row["here"]) if KEY.match(span) and ": " in span):
            values = [looked_up(spec, key) for spec in specs if known(key, spec["task"])]
            if yaml.safe_load(value) not in values:
                wrong.append(f"{name}: {key} is never {value}")
    assert wrong == []


# ------------------------------------------------------------------------------------------------------------ reference
def test_reference_and_json_schema_are_fresh():
    """Run `make reference` if this fails."""
    stale = [path.name for path, text in reference.outputs().items() if path.read_text(encoding="utf-8") != text]
    assert stale == []


def test_params_yaml_fits_the_json_schema(document):
    assert [error.message for error in SCHEMA.iter_errors(document)] == []
    first = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=params.schema.json"


# ------------------------------------------------------------------------------------------------------------ all pages
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    files = {target.partition("#")[0] for target in targets} - {""}
    assert [name for name in files if not ((ROOT / page).parent / name).exists()] == []
    titles = [line.lower() for line in text.splitlines() if line[:1] == "#"]
    titles = {re.sub("[^a-z0-9- ]", "", title).strip().replace(" ", "-") for title in titles}
    assert {target[1:] for target in targets if target[:1] == "#"} <= titles


IN_A_FINISHED_PROJECT = {"README.md", "docs/library.md"}  # test_reproduce.py runs theirs


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "```python\n" in (ROOT / page).read_text("utf-8") and page not in IN_A_FINISHED_PROJECT],
)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch, uri):
    """All of it, in order, where there are the settings and weights of the project and the runs of Table 5."""
    for name in ("params.yaml", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    params = table5(experiments=2)
    sync(write_results(tmp_path / "results", params), params, uri, tmp_path / "data", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    exec(compile("\n".join(snippets), page, "exec"), {"__name__": "__main__"})


def test_make_help_lists_every_target():
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()
    assert [line.split()[0] for line in listed.splitlines()] == targets


def test_citation_and_changelog_have_the_version():
    assert f"\nversion: {vpd.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {vpd.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_index_names_every_page():
    pages = {path.name for path in DOCS} - {"README.md"}
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w[\w-]*\.(?:md|ipynb))\)", index)) == pages


# ------------------------------------------------------------------------------------------------------- paper-scale.md
def test_costs_shown_are_those_that_snakemake_reserves_and_known_of_every_experiment(paper_scale):
    costs = json.loads((ROOT / "workflow/costs.json").read_text(encoding="utf-8"))
    assert costs.keys() == paper_scale["official"].keys()
    text = (ROOT / "docs/paper-scale.md").read_text(encoding="utf-8")
    (shown,) = (table for table in tables(text) if "GFLOPs, paper" in table[0])
    assert len(shown) >= 3
    for row in shown:
        figures = costs[code(row["experiment"])[0]]["figures"]
        assert {name: float(row[name]) for name in figures} == figures

#!/usr/bin/env bash
# Run benchmarks/gpu.py where there are a GPU and PyTorch 2.8 or newer with Python 3.11 or newer, whatever else is missing:
#
#     benchmarks/gpu.sh [--minutes 9] [--out FOLDER] [--narrow]
#
# It keeps the machine's PyTorch (that of $PYTHON, default python3), and installs what is missing into benchmarks/.venv once: the
# wheels in benchmarks/wheels if there are any, and otherwise from the package index. For a machine without a network,
# fetch what it lacks elsewhere and carry the folder along; without names, this is what usually comes with no PyTorch:
#
#     benchmarks/gpu.sh wheels [NAME ...]     # pinned by requirements.lock, for x86-64 and Python $PYTHON_VERSION (3.12)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} venv=benchmarks/.venv wheels=benchmarks/wheels

fetch_wheels() {
  local names=("$@") name pins=() platforms=()
  [ $# -gt 0 ] || names=(annotated-types diffusers importlib-metadata pycocotools pydantic pydantic-core typing-inspection zipp)
  for name in "${names[@]}"; do
    pins+=("$(grep -o "^$name==[^ ]*" requirements.lock)") || { echo "requirements.lock pins no $name" >&2; exit 2; }
  done
  for name in _2_28 _2_27 _2_17 2014; do platforms+=(--platform "manylinux${name}_x86_64"); done
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
    "${platforms[@]}" --dest "$wheels" "${pins[@]}"
  du -ch "$wheels"/*.whl
}

# What pyproject.toml requires, but for the workflow's tools, which networks do not need.
requirements() {
  "$python" -c '
import re, tomllib
tools = "dvc h5py jinja2 mlflow pandas requests ruamel.yaml.clib scipy sentencepiece snakemake urllib3".split()
listed = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
print(*(line for line in listed if re.match("[^<>=]+", line)[0] not in tools), sep="\n")'
}

install() {
  local given=()
  rm -rf "$venv"
  "$python" -m venv --without-pip "$venv"
  # --system-site-packages would pass over the packages of a machine whose Python is in a virtual environment itself.
  "$python" -c 'import site, sys
for path in sys.path:
    if path.endswith("-packages"): print(f"import site; site.addsitedir({path!r})")' \
    > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
  if compgen -G "$wheels/*.whl" > /dev/null; then
    given=(--no-index --no-deps "$wheels"/*.whl)
  else
    requirements > "$venv/requirements.txt"
    "$python" -c 'import importlib.metadata as m; print("torch==" + m.version("torch").split("+")[0])' > "$venv/keep.txt"
    given=(--timeout 10 --retries 1 --requirement "$venv/requirements.txt" --constraint "$venv/keep.txt")
  fi
  "$python" -m pip --python "$venv/bin/python" install --quiet --disable-pip-version-check "${given[@]}" && touch "$venv/ready"
}

if [ "${1:-}" = wheels ]; then
  shift
  fetch_wheels "$@"
  exit
fi
[ -e "$venv/ready" ] || install || { echo "cannot install what is missing; carry it along: benchmarks/gpu.sh wheels" >&2; exit 1; }
# Training sets it too late here: cuBLAS reads it once, before the first product.
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
exec "$venv/bin/python" benchmarks/gpu.py --spent "$SECONDS" "$@"

# Everything runs from a virtual environment that the first target makes; python3 (3.11 or newer), git and make are enough.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_COMPILE_BYTECODE := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
UV := uv==0.13.9

.PHONY: setup reproduce snakemake record test test-slow test-cluster costs reference lint lock ui clean

setup: .venv/installed                    ## install the locked environment

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vpd needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(UV)
	.venv/bin/uv pip sync --python .venv/bin/python --require-hashes --quiet requirements.lock
	.venv/bin/python -m pip install --quiet $(UV)
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --no-build-isolation --quiet --editable .
	touch $@

reproduce: setup                          ## every table and figure, with DVC
	dvc repro

snakemake: setup                          ## the same with Snakemake, on all cores
	snakemake --cores all

record: setup                             ## tell DVC about results that Snakemake made
	dvc commit --force --quiet

test: setup                               ## all tests, the whole smoke scale included
	sh tests/system-packages.sh
	pytest -n 2 --dist loadfile

test-slow: setup                          ## true-size networks (16 GiB of memory), all of smoke by DVC too
	pytest -m slow -s

test-cluster: setup                       ## against real engines started here: Slurm, PostgreSQL, SSH (Debian, root)
	sh tests/system-packages.sh cluster
	PATH="$(PATH):/usr/sbin" pytest -m cluster -s

costs: setup                              ## what paper scale's experiments need, for Snakemake's resources
	vpd cost --scale paper --out workflow/costs.json

reference: setup                          ## docs/params.md and params.schema.json, from the docstrings in src/vpd/config
	python docs/reference.py

lint: setup                               ## style of code and workflow
	ruff check . && ruff format --check . && snakefmt --check Snakefile workflow && snakemake --lint

lock: setup                               ## pin all dependencies anew
	uv pip compile pyproject.toml --extra test --extra group --generate-hashes --no-emit-index-url --universal --python-version 3.11 --quiet --output-file requirements.lock

ui: setup                                 ## open the MLflow UI on the local runs
	mlflow server --backend-store-uri sqlite:///mlflow.db --workers 1

clean:                                    ## remove everything that the workflow made
	rm -rf data checkpoints results/*/runs .vpd logs .snakemake

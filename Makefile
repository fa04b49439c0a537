# Two commands do everything: `make demo` and `make test`. Both need only python3 (>= 3.11) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo check test test-slow lint types speed clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14
	@echo 'Guides: README.md, then docs/running.md (your data) and CONTRIBUTING.md (your code).'

install: $(STAMP)  ## create .venv and install the project and its tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("python >= 3.11 is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install  ## synthetic data, methods trained and scored on them, tables and the page (about ten minutes on two CPU cores)
	$(BIN)/bench demo

QUICK := tests/test_architecture.py tests/test_sources.py tests/test_stage_keys.py tests/test_docs.py tests/test_ways.py \
  tests/benchmark/core tests/benchmark/planning tests/methods/parts tests/methods/test_explainers.py tests/methods/test_baselines.py

check: install lint types  ## before a commit: ruff, the type checker and the quick tests (about three minutes on two CPU cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile $(QUICK)

test: install lint types  ## ruff, the type checker and all default tests: no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: install  ## the tests that take minutes
	$(BIN)/python -m pytest -q -n auto -m slow

lint: install  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## basedpyright
	$(BIN)/basedpyright

speed: install  ## the speed table (about an hour on two CPU cores); JSON=1, ONLY=train,cache and DEVICE=cuda change it
	@$(BIN)/python tests/speed/table.py $(if $(JSON),--json) $(if $(ONLY),--only $(ONLY)) $(if $(DEVICE),--device $(DEVICE))

clean:  ## remove the environment and tool caches; results and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info build

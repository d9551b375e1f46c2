# Each target makes its own .venv when there is none. Another Python: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-all bench lint clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

help: ## say what there is to make
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.demo ## federate the embedded models over text and pictures that need no download, end with reports
	@$(BIN)/fedgen demo

test: lint ## check style and types, run every test
	@$(BIN)/python -m pytest

test-all: lint ## the same, and the fleet's faults: processes killed, answers spoiled; half an hour more
	@$(BIN)/python -m pytest -m "faults or not faults"

lint: .venv/.dev ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/.dev ## measure speed, scale and what the demo gains, on this machine
	@for name in rounds scale images demo glyphs cluster places fleet serve bytes memory; do echo "== $$name"; $(BIN)/python bench/$$name.py || exit 1; done

clean: ## remove .venv, caches and built packages; runs stay
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
	@find src tests -name __pycache__ -prune -exec rm -rf {} +

# torch comes first and alone: it is most of the download, and nothing after it may fetch another one.
.venv/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedgen-edge needs Python 3.11 or newer, $(PYTHON) is {}.{}; try: make PYTHON=python3.12".format(*sys.version_info))'
	@echo "making .venv with torch; the first time this takes some minutes ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) torch
	@touch $@

.venv/.demo: .venv/.torch pyproject.toml
	@echo "installing fedgen-edge[report,images,serve] ..."
	@$(PIP) --editable ".[report,images,serve]"
	@touch $@

.venv/.dev: .venv/.torch pyproject.toml
	@echo "installing fedgen-edge[report,images,fleet,serve,data,bits,dev] ..."
	@$(PIP) --editable ".[report,images,fleet,serve,data,bits,dev]"
	@touch $@

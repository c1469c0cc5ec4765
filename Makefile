# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && ! python3 -c 'import sys; sys.exit(sys.version_info[:2] not in ((3,11),(3,12)))' 2>/dev/null && echo python3.12 || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
# mlflow starts `fairtune` and `uvicorn` by name.
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: demo test lint unit docs bench clean
.DEFAULT_GOAL := help

help:  ## Show this list.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1	/' | expand -t 16

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "fairtune needs Python 3.11 or 3.12, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,medical]'
	@touch $@

demo: $(STAMP)  ## Search on the embedded demo, register the winner, print the table.
	mlflow run . --env-manager=local --experiment-name fairtune-demo

test: lint unit  ## Run the whole suite, lint and types.

lint: $(STAMP)
	ruff format --check .
	ruff check .
	mypy

# Files side by side on two cores; a thread each is faster than two threads for models this small.
unit: $(STAMP)
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile

docs: $(STAMP)  ## Build the documentation site in docs/_build/html; a warning is an error.
	sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: $(STAMP)  ## Measure, and store the tables in benchmarks/results/bench/; HAM10000=DIR for all.
	python -m benchmarks $(if $(HAM10000),--ham10000 $(HAM10000))

clean:  ## Remove the environment and caches.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

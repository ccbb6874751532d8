# Each target sets itself up: it makes .venv and installs, which takes minutes once and nothing afterwards.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: search test test-slow lint format

search: $(READY)
	$(BIN)/nas run --selector st-gs

test: $(READY)
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: $(READY)
	$(BIN)/pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

# setup: once per checkout; the others run it when it is due. Everything after it works offline.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup demo test check bench

setup: $(READY)

# torch comes first and alone, so that an index with builds for this machine can offer its own.
$(READY): pyproject.toml constraints.txt requirements-demo.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt setuptools
	$(PIP) -c constraints.txt --no-build-isolation --editable '.[dev,server]'
	$(PIP) --no-deps --require-hashes -r requirements-demo.txt
	touch $(READY)

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/fedray run examples/quickstart.yaml --out runs/demo

# Two files at a time: part of a run is waiting for processes to start. Three took 13 % longer on two cores. In their
# own order: by number of tests the longest, which have one or two that start clusters, would be the last, with nothing
# left to run beside them.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/bench.py

PYTHON ?= python3.11
BIN := .venv/bin
UNSEEN_DATA ?= $(firstword $(wildcard ../shared/data) data)
export UNSEEN_DATA
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install demo test test-slow test-gpu check format bench clean

install: .venv/.installed  ## make .venv with everything in it

.venv/.installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=compat --editable '.[dev]'
	touch $@

demo: install  ## prune the bundled digits on a private Ray cluster: 4 folds, 3 stages
	$(BIN)/unseen-ray prune benchmarks/digits.yaml --out runs/demo

# Four workers keep two cores busy: they often wait for processes of Ray to come up.
test: install  ## everything that is quick
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: install  ## what takes minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: install  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

check: install  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## mend what can be mended by a machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## time the main job on the bundled digits
	$(BIN)/python benchmarks/overhead.py

clean:  ## remove what was built; runs and the environment stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache

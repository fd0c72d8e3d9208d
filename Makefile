PYTHON ?= $(firstword $(foreach each,python3.11 python3.12 python3.13 python3,$(shell command -v $(each))))
BIN := .venv/bin
UNSEEN_DATA ?= $(firstword $(wildcard ../shared/data) data)
export UNSEEN_DATA
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install demo test test-versions test-slow test-gpu check docs format bench wheel audit licences clean

install: .venv/.installed  ## make .venv with everything in it

.venv/.installed: pyproject.toml
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --config-settings editable_mode=compat --editable '.[dev]'
	touch $@

demo: install  ## prune the bundled digits on a private Ray cluster (4 folds, 3 stages), and measure the result
	$(BIN)/unseen-ray prune benchmarks/digits.yaml --out runs/demo
	$(BIN)/unseen-ray evaluate runs/demo --against random,full --seeds 5 --executor local

# Four workers keep two cores busy: they often wait for processes of Ray to come up.
test: install  ## everything that is quick
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-versions: PYTHONS ?= $(foreach each,python3.11 python3.12 python3.13,$(if $(shell $(each) -c "print(1)" 2>/dev/null),$(each)))
test-versions:  ## the same in a new environment of each of PYTHONS, by default of those found; 6 GB each for as long as it takes
	for python in $(PYTHONS); do \
	    env=build/versions/$$(basename $$python); rm -rf $$env; $$python -m venv $$env \
	    && $$env/bin/python -m pip install --quiet --config-settings editable_mode=compat --editable '.[dev]' \
	    && $$env/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu" || exit 1; \
	    rm -rf $$env; \
	done

test-slow: install  ## what takes minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: install  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

check: install  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## the pages as HTML, in build/docs
	$(BIN)/python -m sphinx --fail-on-warning --quiet -c docs . build/docs
	@echo build/docs/docs/index.html

format: install  ## mend what can be mended by a machine
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## time the main job on the bundled digits
	$(BIN)/python benchmarks/overhead.py

wheel: install  ## dist/*.whl, the same bytes for the same commit
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

licences: install  ## what an installation brings, and under which licences
	$(BIN)/python -m tests.test_licences

audit: install  ## known vulnerabilities of what is installed, as the Python packaging advisories have them
	test -x build/audit/bin/pip-audit || ($(PYTHON) -m venv build/audit && build/audit/bin/python -m pip install --quiet pip-audit)
	build/audit/bin/pip-audit --strict --skip-editable --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

clean:  ## remove what was built; runs and the environment stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache

# Two commands do everything on a fresh machine: `make train` and `make test`.
# Each installs what it needs into its own environment in .venv first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The CPU build of PyTorch that parity tests compare with; tests skip without it.
TORCH  ?= torch==2.13.0

.PHONY: train tables lessons test test-long bench lint lines clean

train: $(VENV)/run.stamp
	$(BIN)/python -m recres.train $(ARGS)

# The paper's tables, e.g. make tables ARGS="all --budget 15m".
tables: $(VENV)/run.stamp
	$(BIN)/python -m recres.tables $(ARGS)

# The pages of the lessons on the gradient flow, in docs/lessons/pages.
lessons: $(VENV)/run.stamp
	$(BIN)/python docs/lessons/make_pages.py $(ARGS)

test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest $(ARGS)

test-long: $(VENV)/test.stamp
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -m "long or not long" $(ARGS)

# The engine beside PyTorch and other NumPy engines: 20 minutes on 2 idle cores.
bench: $(VENV)/test.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench.cpu $(ARGS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy

# Lines of each file, so that one that grows too big to hold in the head is seen.
lines:
	@git ls-files '*.py' | xargs wc -l | sort -rn

$(VENV)/run.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plots]'
	touch $@

$(VENV)/test.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)' \
	    || echo "$(TORCH) cannot be had here: the parity tests will be skipped"
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

# make demo | test | lint | bench | bench-real | lock | clean. Needs Python 3.11 or 3.12 and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/installed
BENCH_INSTALLED := .venv/installed_bench

.PHONY: demo test lint bench bench-real lock clean

demo: $(INSTALLED)
	@$(BIN)/python -m examples.digits demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 3 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else \
	    "expected Python 3.11 or 3.12, received %d.%d; run: make PYTHON=/path/to/python3.11" % v)'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# make bench ARGS="--models=cnn --contenders=layerwise,structured_derivatives" for a part of the table.
bench: $(BENCH_INSTALLED)
	@$(BIN)/python -m benchmarks.engine $(ARGS)

# make bench-real ARGS="--models=digits,resnet50"
bench-real: $(BENCH_INSTALLED)
	@$(BIN)/python -m benchmarks.real $(ARGS)

$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[bench]'
	@touch $@

# Newest versions that pyproject.toml allows (tf2jax's metadata do not resolve on macOS, so the lock is for Linux).
lock: $(INSTALLED)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --extra dev --extra examples pyproject.toml \
	    | sed '1i # Exact versions of everything that .venv holds, for Python 3.11 and 3.12 on Linux; made by '"'make lock'"'.' \
	    > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv demo build *.egg-info

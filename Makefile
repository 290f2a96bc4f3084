# make demo | test | lint | docs | bench | bench-real | lock | clean. Needs Python 3.11, 3.12 or 3.13 and make, nothing else.
# The newest that runs: pyenv has commands, which only fail, for versions that are not switched on.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do $$p -c '' 2> /dev/null && break; done; echo $$p)
# make test VERSIONS=newest is with the newest versions that pyproject.toml allows, in a directory of its own.
VERSIONS ?= lock
VENV_lock := .venv
VENV_newest := .venv-newest
VENV := $(or $(VENV_$(VERSIONS)),$(error expected VERSIONS=lock or VERSIONS=newest, received $(VERSIONS)))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
BENCH_INSTALLED := $(VENV)/installed_bench

.PHONY: demo test lint docs bench bench-real lock clean

demo: $(INSTALLED)
	@$(BIN)/python -m examples.digits demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Into site/, without a network.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	    "expected Python 3.11, 3.12 or 3.13, received %d.%d; run: make PYTHON=/path/to/python3.13" % v)'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP_$(VERSIONS))
	@touch $@

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP_lock = $(PIP) --requirement requirements.lock && $(PIP) --no-deps --editable .
PIP_newest = $(PIP) --editable '.[dev]' && $(BIN)/python -m pip freeze --all | grep -E '^(jax|keras|tensorflow|tf)'

# make bench ARGS="--models=cnn --contenders=layerwise,structured_derivatives" for a part of the table.
bench: $(BENCH_INSTALLED)
	@$(BIN)/python -m benchmarks.engine $(ARGS)

# make bench-real ARGS="--models=digits,resnet50"
bench-real: $(BENCH_INSTALLED)
	@$(BIN)/python -m benchmarks.real $(ARGS)

$(BENCH_INSTALLED): $(INSTALLED)
	$(PIP) --constraint requirements.lock --editable '.[bench]'
	@touch $@

# Newest versions that pyproject.toml and constraints.txt allow on the oldest Python, which must have wheels for the
# others too (tf2jax's metadata do not resolve on macOS, so the lock is for Linux).
COMPILE := $(BIN)/uv pip compile --quiet --no-header --no-annotate --only-binary :all: \
    --python-platform x86_64-manylinux_2_28 --constraint constraints.txt
lock: $(INSTALLED)
	$(PIP) uv
	$(COMPILE) --python-version 3.11 --extra dev pyproject.toml \
	    | sed '1i # Exact versions of everything that .venv holds, for Python 3.11 to 3.13, Linux; made by '"'make lock'"'.' \
	    > requirements.lock.new
	for v in 3.12 3.13; do $(COMPILE) --python-version $$v requirements.lock.new > /dev/null || exit 1; done
	mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .venv-newest demo build site *.egg-info

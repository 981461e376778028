# Each of these does everything on a fresh machine: the first use creates .venv and installs the locked versions
# (about 3 minutes); later uses start at once.
#   make check     lint and unit tests, in minutes
#   make test      lint and all tests but the nightly ones
#   make test-all  lint and all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in so many processes; each keeps to the modules that it began.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadgroup --no-loadscope-reorder
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps
TORCH_INDEX := --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu

.PHONY: demo check test test-all lint bench setup clean

demo: $(READY)
	$(BIN)/carevl run mini

check: lint
	$(PYTEST) -m "unit and not nightly"

test: lint
	$(PYTEST) -m "not nightly"

test-all: lint
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python tests/bench/run_all.py

setup: $(READY)

# torch and torchvision: CPU builds where the registry in use has them, else from PyTorch's own CPU index,
# else (torchvision only) the registry's ordinary build, whose Python half is all that CAREVL needs.
$(READY): requirements-cpu.txt pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else f"carevl needs Python 3.11 or 3.12, found {v[0]}.{v[1]}: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'setuptools==77.0.3'
	$(PIP) 'torch==2.13.0+cpu' 2>/dev/null || $(PIP) $(TORCH_INDEX) 'torch==2.13.0+cpu'
	$(PIP) 'torchvision==0.28.0+cpu' 2>/dev/null || $(PIP) $(TORCH_INDEX) 'torchvision==0.28.0+cpu' 2>/dev/null || $(PIP) 'torchvision==0.28.0'
	$(PIP) -r requirements-cpu.txt
	$(PIP) --no-build-isolation --editable .
	@touch $(READY)

clean:
	rm -rf $(VENV)

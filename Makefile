# `make demo` and `make test` set everything up by themselves.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch>=2.10,<2.14

# The oracle of K-FAC and EK-FAC. It asks for torchvision, which it does not need here: hence without its dependencies.
KRONFLUENCE := 'kronfluence>=1.0.1' 'accelerate>=1.0' 'einconv>=0.1' 'einops>=0.8' 'opt_einsum>=3.4' 'psutil>=5'

# Tests of one file stay together: they share projects that take seconds to make.
TWO := -n 2 --dist loadfile

.PHONY: demo test lint slow trials benchmark docs

demo: .venv/installed
	$(BIN)/python -m tools.demo

test: .venv/installed
	$(BIN)/python -m pytest $(TWO)

# Real kills, whole demos, every shipped config at work: minutes instead of seconds. In order, for xdist would keep files
# of few tests for the end, which take longest here.
slow: .venv/installed
	$(BIN)/python -m pytest $(TWO) --no-loadscope-reorder -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wrong settings, damaged files and kills by the thousand, and a table of what became of them.
trials: .venv/installed
	$(BIN)/python -m tools.trials --jobs 2

# litdata and kronfluence pull torchvision, which does not load beside a CPU build of torch and which nothing here needs:
# the peers get an environment of their own, without it.
benchmark: .venv-peers/installed
	.venv-peers/bin/python -m tools.benchmark

# The site of docs/ needs neither torch nor this project: an environment of its own, with the bounds of the extra `docs`.
docs: .venv-docs/installed
	.venv-docs/bin/mkdocs build --strict

.venv-docs/installed: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet 'mkdocs>=1.6,<2' 'mkdocs-material>=9.8,<10'
	@touch $@

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@$(MAKE) --no-print-directory cpu-torch ENVIRONMENT=.venv
	$(BIN)/pip install --quiet -e '.[dev,hf,ray,sources]'
	$(BIN)/pip install --quiet --no-deps $(KRONFLUENCE) || echo "no kronfluence: the tests against it will be skipped"
	@touch $@

.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	@$(MAKE) --no-print-directory cpu-torch ENVIRONMENT=.venv-peers
	.venv-peers/bin/pip install --quiet -e '.[peers]' '$(TORCH)'
	.venv-peers/bin/pip uninstall --quiet --yes torchvision
	@touch $@

# A machine without a GPU must not pull gigabytes of CUDA packages: ask pip first what it would install.
.PHONY: cpu-torch
cpu-torch:
	@if [ ! -e /dev/nvidia0 ] && [ -z "$(ALLOW_CUDA)" ] \
	    && $(ENVIRONMENT)/bin/pip install --dry-run --quiet --report - '$(TORCH)' | grep -qE '"name": "(nvidia|cuda)-'; then \
	  echo "error: this machine has no GPU, and pip finds only a CUDA build of torch (several GB)." >&2; \
	  echo "Point pip at the CPU wheels of pytorch.org/get-started with PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL," >&2; \
	  echo "or take the CUDA build with: make ALLOW_CUDA=1" >&2; \
	  exit 1; \
	fi
	$(ENVIRONMENT)/bin/pip install --quiet '$(TORCH)'

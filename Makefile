# The everyday commands; `make` alone lists them. All set up .venv first, once, and again when requirements change.
#
#   make train PYTHON=/opt/python3.12/bin/python3     this Python (3.10 to 3.13) for a new .venv
#   make train PIP_ARGS="--index-url ..."             options for pip, e.g. the index of torch's CPU builds
#   make train ARGS="--epochs 5"                      further flags for the command that is run
#   make test-sdk PYTHON38=/opt/python3.8/bin/python3 this Python 3.8 for a new .venv-sdk

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?=
PIP_ARGS ?=
ARGS ?=
SDK_VENV ?= .venv-sdk
PYTHON38 ?=

# torch and the torchvision that belongs to it. Which pair: by whether nvidia-smi finds a GPU at set-up.
TORCH_CPU := torch==2.13.0 torchvision==0.28.0
TORCH_GPU := torch==2.11.0 torchvision==0.26.0

PYTHONS := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.13 python3.10 python3)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install -qq --disable-pip-version-check --no-input $(PIP_ARGS)

SDK_RUN := $(SDK_VENV)/bin/python
SDK_PIP := $(SDK_RUN) -m pip install -qq --disable-pip-version-check --no-input $(PIP_ARGS)

.PHONY: help train test test-fast test-gpu test-sdk check format setup setup-dev clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## /\1:/p' $(MAKEFILE_LIST) | awk -F: '{ printf "  make %-10s %s\n", $$1, $$2 }'

train: setup ## train a ViT on handwritten digits through four pipeline stages
	@$(RUN) pretrain.py --config digits $(ARGS)

test: setup-dev ## run all tests
	@$(RUN) -m pytest -q -n auto --maxprocesses 4 --dist worksteal --durations=10 $(ARGS)

test-fast: setup-dev ## run the tests that take less than a minute together
	@$(RUN) -m pytest -q --durations=5 -m "not slow" $(ARGS)

test-gpu: setup-dev ## run the tests that need a GPU, on a machine that has one
	@$(RUN) -m pytest -q -rs --durations=10 -m gpu $(ARGS)

test-sdk: $(SDK_VENV)/.ready ## run the tests with Python 3.8 and torch 2.0.1, which PopTorch needs, in .venv-sdk
	@$(SDK_RUN) -m pytest -q -rs -n auto --maxprocesses 4 --dist worksteal --durations=10 $(ARGS)

check: setup-dev ## check format, lint and types
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

format: setup-dev ## format the code, and fix what lint can fix by itself
	@$(VENV)/bin/ruff check --fix --exit-zero --quiet .
	@$(VENV)/bin/ruff format .

setup: $(VENV)/.ready ## make .venv with what PipeViT needs
	@:

setup-dev: $(VENV)/.ready-dev ## the same, with the tools for tests and checks
	@:

clean: ## remove .venv, .venv-sdk and caches (runs stay)
	rm -rf $(VENV) $(SDK_VENV) .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each phase leaves a file behind when it has succeeded. A .venv that works is kept, whoever made it.
$(VENV)/.python:
	@for python in $(if $(PYTHON),,$(RUN)) $$(type -aP $(PYTHONS)); do \
		version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		case "$$version" in 3.10|3.11|3.12|3.13) ;; *) continue ;; esac; \
		if [ "$$python" != "$(RUN)" ]; then \
			echo "set-up: Python $$version in $(VENV)"; \
			"$$python" -m venv --clear $(VENV) >/dev/null 2>&1 || continue; \
		fi; \
		if $(RUN) -m pip --version >/dev/null 2>&1; then touch $@; exit 0; fi; \
	done; \
	echo "error: none of these is a Python 3.10 to 3.13 that can make a virtual environment: $(PYTHONS)" >&2; \
	echo "       Install one (on Debian and Ubuntu: apt install python3-venv), or name one: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(VENV)/.torch: $(VENV)/.python Makefile
	@if nvidia-smi -L 2>/dev/null | grep -q GPU; then torch="$(TORCH_GPU)"; why="an NVIDIA GPU is there"; \
	else torch="$(TORCH_CPU)"; why="no NVIDIA GPU found"; fi; \
	echo "set-up: $$torch ($$why), the largest part"; \
	$(PIP) $$torch && printf '%s\n' $$torch > $@

# Naming torch's pin again keeps pip from replacing it by what another package would like.
$(VENV)/.ready: $(VENV)/.torch requirements.txt
	@echo "set-up: requirements.txt"
	@$(PIP) -r requirements.txt -r $(VENV)/.torch && touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	@echo "set-up: requirements-dev.txt"
	@$(PIP) -r requirements.txt -r requirements-dev.txt -r $(VENV)/.torch && touch $@

# The environment of `make test-sdk`: that of an IPU host, but for PopTorch. Not part of `make test`.
$(SDK_VENV)/.python:
	@for python in $(if $(PYTHON38),$(PYTHON38),python3.8 python3 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.8*/bin/python); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 8))' 2>/dev/null || continue; \
		echo "set-up: Python 3.8 in $(SDK_VENV)"; \
		"$$python" -m venv --clear $(SDK_VENV) >/dev/null 2>&1 || continue; \
		$(SDK_RUN) -m pip --version >/dev/null 2>&1 && touch $@ && exit 0; \
	done; \
	echo "error: $(if $(PYTHON38),$(PYTHON38) is no,no python3.8 on the PATH or in pyenv that is a) Python 3.8 that can make a virtual environment." >&2; \
	echo "       Install one (pyenv install 3.8, or uv python install 3.8), or name one: make test-sdk PYTHON38=/path/to/python3.8" >&2; \
	exit 1

$(SDK_VENV)/.ready: $(SDK_VENV)/.python requirements-ipu.txt requirements-sdk-test.txt
	@echo "set-up: requirements-ipu.txt and requirements-sdk-test.txt, 5 GB unless PIP_ARGS names the index of torch's CPU builds"
	@$(SDK_PIP) -r requirements-ipu.txt -r requirements-sdk-test.txt && touch $@

# Everything one does with this project, each a word; `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The Python that .venv is made with: 3.11, 3.12 or 3.13.
PYTHON ?= python3
VENV ?= .venv
# gpu where an NVIDIA driver answers, else cpu; DEVICE=cpu or DEVICE=gpu on the command line decides otherwise.
DEVICE ?= $(if $(shell nvidia-smi --list-gpus 2>/dev/null),gpu,cpu)
# The recording of `make demo`.
FILE ?= tests/data/demo.flac

# What is done leaves a stamp, so that it is done again only when pyproject.toml has changed.
INSTALLED := $(VENV)/.installed-$(DEVICE)
INSTALLED_DEV := $(VENV)/.installed-dev

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: export FILE := $(FILE)
demo: $(INSTALLED) ## Start the service, transcribe a recording (FILE=yours), stop the service
	@$(VENV)/bin/python deploy/serve.py "$$FILE"

.PHONY: run
run: $(INSTALLED) ## Start the service and keep it up until Ctrl-C
	@$(VENV)/bin/python deploy/serve.py

.PHONY: test
test: $(INSTALLED_DEV) ## Run all tests
	@.ci/test-tools
	@echo "Running the tests."
	@$(VENV)/bin/python -m pytest $(ARGS)

.PHONY: lint
lint: $(INSTALLED_DEV) ## Check style and types (ruff, mypy)
	@echo "Checking style and types."
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

.PHONY: bench
bench: $(INSTALLED_DEV) ## Measure this service beside vLLM's own transcription server
	@$(VENV)/bin/python -m benchmarks.serving $(ARGS)

.PHONY: install
install: $(INSTALLED) ## Make .venv and install the service into it

.PHONY: clean
clean: ## Remove .venv and everything else that was made here
	@echo "Removing $(VENV), caches and build output."
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@echo "Making $(VENV) with $(PYTHON) ($$($(PYTHON) --version 2>&1))."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed; name one with PYTHON=." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml deploy/install | $(VENV)/bin/python
	@echo "Installing the service and vLLM for $(DEVICE) into $(VENV); this takes a few minutes the first time."
	@deploy/install $(VENV)/bin/python $(DEVICE)
	@touch $@

$(INSTALLED_DEV): pyproject.toml $(INSTALLED) | $(VENV)/bin/python
	@echo "Installing what tests and checks need."
	@$(VENV)/bin/python -m pip install -qq --no-compile --disable-pip-version-check --editable '.[dev]'
	@touch $@

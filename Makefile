# Each target sets itself up: Python is checked, $(VENV) is made, the extras it needs are installed once (stamp files).
#   make demo PYTHON=python3.12        another Python
#   make demo PIP_ARGS="..."           more arguments for the installer. On Linux the default torch is a CUDA build of
#                                      several GB: name PyTorch's index of CPU builds with --extra-index-url (or, with
#                                      uv, set UV_TORCH_BACKEND=cpu). A local wheel is found through PIP_FIND_LINKS
#   make demo DEMO_ARGS="--minutes 5"  arguments of `latentlm demo`;  make test PYTEST_ARGS="tests/model -k cache"
#   make test PYTEST_ARGS="--shuffle 7"  in another order; docs/testing.md has the rest
#   make demo UV=                      pip, even where uv is installed

VENV ?= .venv
comma := ,
BIN := $(VENV)/bin
PIP_ARGS ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
UV ?= $(shell command -v uv 2>/dev/null)

NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && exit; done; echo python3)

ifneq ($(strip $(PIP_FIND_LINKS)),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

ifeq ($(strip $(UV)),)
CREATE = $(PYTHON) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
else
CREATE = $(UV) venv --quiet --seed --allow-existing --python "$$(command -v $(PYTHON))" $(VENV)
INSTALL = $(UV) pip install --quiet --python $(BIN)/python
endif

# $(call set_up,requirement): the stamp holds the seconds that it took
define set_up
	@set -e; started=$$(date +%s); \
	if [ ! -e $(VENV)/.created ]; then \
	  $(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	    echo "latentlm needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." \
	      "Name another one: make PYTHON=python3.12" >&2; exit 1; }; \
	  $(CREATE); touch $(VENV)/.created; \
	fi; \
	echo "setting up: $(1) into $(VENV)"; \
	$(INSTALL) -c constraints.txt $(PIP_ARGS) $(1); \
	echo $$(( $$(date +%s) - started )) > $@
endef

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo  ## train one model on text, pictures and speech, and report (20 minutes on 2 cores)
	$(BIN)/latentlm demo --out runs/demo --setup-seconds "$$(cat $(VENV)/.demo)" $(DEMO_ARGS)

test: $(VENV)/.test  ## all tests (10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -rfEs --all-packages $(PYTEST_ARGS)

lint: $(VENV)/.lint  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis

$(VENV)/.demo: pyproject.toml constraints.txt
	$(call set_up,-e '.[demo]')

$(VENV)/.test: pyproject.toml constraints.txt
	$(call set_up,-e '.[demo$(comma)eval$(comma)track$(comma)dev]')

$(VENV)/.lint: constraints.txt
	$(call set_up,ruff)

# make study    set up, run the default study, print its table        (STUDY=studies/miniature-full.yaml for another)
# make test     set up, run all tests
# make plan     what would be computed, what exists, how long it takes
# make report   write results/report.html again
# make setup    only the environment and the shipped data
# make clean    remove results and logs, keep environment and data
SHELL := /bin/bash
PYTHON ?= python3
CORES ?= all
STUDY ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA := data/miniature/base/model_index.json
OVERLAY := $(if $(STUDY),--configfile params.yaml $(STUDY))
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup study test plan report clean

setup: $(STAMP) $(DATA)

# uv from the PATH, else a private copy of it in .uv
$(STAMP): envs/requirements.txt pyproject.toml
	@command -v uv >/dev/null || test -x .uv/bin/uv \
	  || { $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; } \
	  || { rm -rf .uv && $(PYTHON) -m pip install --quiet --target .uv uv; }
	PATH="$$PATH:$(CURDIR)/.uv/bin"; \
	  { test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); } \
	  && uv pip install --compile-bytecode --python $(BIN)/python -r envs/requirements.txt \
	  && uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

# the shipped world: drawings, base, recogniser, CLIP
$(DATA): | $(STAMP)
	$(BIN)/dvc pull

study: setup
	$(BIN)/snakemake --cores $(CORES) $(OVERLAY) $(ARGS)

plan: setup
	@$(BIN)/resurgence plan $(if $(STUDY),--overlay $(STUDY))

report: setup
	$(BIN)/snakemake --cores $(CORES) $(OVERLAY) --forcerun report --until report $(ARGS)

test: setup
	$(BIN)/python -m pytest $(ARGS)

clean:
	find results -mindepth 1 ! -name .gitkeep -delete
	rm -rf logs .snakemake

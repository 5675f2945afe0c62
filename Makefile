# make report [RUN=tiny] [SEED=a] [TOKENS=300000] [PARAMS=path.yaml]; `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help report quick preview plan compare emergence untrained archive example test lab bench seeds designed lint clean environment FORCE
# Only chapters are made at the same time, by `make report`: each keeps hardly more than one core busy.
ifndef CHAPTERS_AT_ONCE
.NOTPARALLEL:
endif
# Threads that wait soon sleep (lib/__init__.py), also in tests, benchmarks and JupyterLab.
ifndef OMP_WAIT_POLICY
export OMP_WAIT_POLICY = passive
export GOMP_SPINCOUNT ?= 2000
endif
# Packages of other environments stay out of this one.
export PYTHONNOUSERSITE = 1
unexport PYTHONPATH PYTHONHOME
MAKEFLAGS += --no-builtin-rules --no-print-directory

RUN = tiny
PARAMS =
SEED =
TOKENS =
PUBLISHED =
RUNS =
PUBLISHED_TOKENS =
STEPS =
KEEP =
EXPORT =
INTO =
SEED_TOKENS = 174587904
PYTHONS = 3.13 3.12 3.11
PYTHON = $(PYTHONS:%=python%) python3
VENV = .venv

ifneq ($(strip $(value RUNS)),)
override RUN := $(firstword $(value RUNS))
endif
ifneq ($(words $(value RUN)),1)
$(error RUN is '$(value RUN)', but must be one folder name)
endif
# What make or a shell would read as something else; the steps check the name itself (lib/base/params.py).
hash := \#
SPECIAL := / : ; [ ] ( ) { } < > * ? ! & | ~ ^ % = , + @ ' " ` \ $$ $(hash)
ifneq ($(strip $(filter .% -%,$(value RUN)) $(foreach one,$(SPECIAL),$(findstring $(one),$(value RUN)))),)
$(error RUN is '$(value RUN)', but must be a folder name of letters, digits, '.', '_' and '-' that starts with a letter or digit)
endif

quoted = '$(subst ','\'',$(value $1))'
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
OUT := outputs/$(RUN)
ALONE = $(PY) -m lib.report alone '$(RUN)'
# The longest chapters first: the others are done meanwhile.
LONGEST := $(wildcard notebooks/05_*.ipynb notebooks/06_*.ipynb notebooks/08_*.ipynb)
CHAPTERS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard notebooks/*.ipynb)))
EXECUTED := $(CHAPTERS:notebooks/%=$(OUT)/notebooks/%)
# A published table, or other runs, that `make compare` has laid beside the run add a page.
EXECUTED += $(patsubst %,$(OUT)/notebooks/published.ipynb,$(wildcard $(OUT)/tables/published.parquet))
EXECUTED += $(patsubst %,$(OUT)/notebooks/runs.ipynb,$(wildcard $(OUT)/tables/runs.json))
# What makes a chapter again (docs/layout.md): code of the rooms above lib/chapters/, of its own folder, and of the
# chapters before it whatever computes. What makes the pages again: lib/report/ and all claims.
ABOVE := $(wildcard lib/*.py $(foreach room,base kernels text models labels collect display,lib/$(room)/*.py lib/$(room)/*.yaml lib/$(room)/*.css) lib/kernels/*.cpp lib/kernels/*.h)
PAGES := $(wildcard lib/report/*.py lib/report/*.yaml lib/report/templates/* lib/chapters/*/claims.py data/untrained/*.parquet CITATION.cff)
FOLDERS := universality families circuits interventions emergence same_function published
NUMBERS_universality := 01_% 02_% 03_%
NUMBERS_families := 04_%
NUMBERS_circuits := 05_%
NUMBERS_interventions := 06_%
NUMBERS_emergence := 07_%
NUMBERS_same_function := 08_%
NUMBERS_published := published runs
folder = $(wildcard lib/chapters/$1/*.py)
computing = $(filter-out $(addprefix lib/chapters/$1/,figures%.py captions%.py claims%.py in_short%.py),$(call folder,$1))
executed = $(filter $(NUMBERS_$1:%=$(OUT)/notebooks/%.ipynb),$(EXECUTED))

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

report: $(READY) ## everything for one run; [RUN=tiny] [SEED=a] [TOKENS=300000] [PARAMS=path.yaml]
	@$(ALONE) $(MAKE) CHAPTERS_AT_ONCE=2 -j2 $(OUT)/report/index.html
	@echo "Report: "$(call quoted,CURDIR)/$(OUT)/report/index.html

preview: $(READY) ## chapters 01 to 03 of a run whose pass is still going on, in a folder of their own; [RUN=tiny]
	@$(PY) -m lib.collect.preview $(OUT)/params.yaml
	@$(MAKE) RUN=$(RUN)-preview PARAMS=$(OUT)-preview/params.yaml CHAPTERS='$(wildcard notebooks/0[123]_*.ipynb)' report

quick: ## the same in a few minutes: three seeds and less text, in outputs/quick
	@$(MAKE) report RUN=quick

ifneq ($(strip $(value RUNS)),)
compare: $(READY)
	@$(PY) -m lib.chapters.published.runs $(call quoted,RUNS)
	@$(ALONE) $(PY) -m lib.report execute notebooks/optional/runs.ipynb $(OUT)/params.yaml
	@$(ALONE) $(PY) -m lib.report render $(OUT)
	@echo "Page: "$(call quoted,CURDIR)/$(OUT)/report/runs.html
else
compare: $(READY) ## finished runs side by side, as a page of the first: RUNS="mine tiny"; or published per-neuron tables: [RUN=tiny] PUBLISHED="one.csv two.csv"
	@$(ALONE) $(MAKE) $(OUT)/tables/done.json
	@$(PY) -m lib.chapters.published.comparison $(OUT)/params.yaml $(call quoted,PUBLISHED)
	@$(MAKE) report
endif

archive: $(READY) ## a finished run as one file to share, with checksums; [RUN=tiny]
	@$(PY) -m lib.report.archive $(OUT)

example: $(READY) ## a reduced copy of a finished run, as the repository keeps it; [RUN=tiny] [INTO=outputs/example]
	@$(MAKE) report
	@$(PY) -m lib.report.example $(OUT) $(if $(INTO),--into $(call quoted,INTO))

plan: $(READY) ## memory, passes, disk and time that a run will take; [RUN=tiny] [SEED=a] [TOKENS=300000] [PARAMS=path.yaml]
	@$(PY) -m lib.collect.forecast $(call quoted,PARAMS) --run '$(RUN)' $(if $(SEED),--seed $(call quoted,SEED)) $(if $(TOKENS),--tokens $(call quoted,TOKENS))

emergence: $(READY) ## chapter 07's tables, from the seeds' training checkpoints; [RUN=tiny] [TOKENS=300000] [STEPS="64 512", or none] [KEEP=data/emergence] [EXPORT=data/emergence]
	@$(PY) -m lib.chapters.emergence.tables $(call quoted,PARAMS) --run '$(RUN)' $(if $(TOKENS),--tokens $(call quoted,TOKENS)) $(if $(STEPS),--steps $(filter-out none,$(STEPS))) $(if $(KEEP),--keep $(call quoted,KEEP)) $(if $(EXPORT),--export $(call quoted,EXPORT))

untrained: $(READY) ## the ledger of untrained models of a run's shape, a column of the run's; [RUN=tiny] [TOKENS=32768]
	@$(PY) -m lib.report.untrained prepare $(call quoted,PARAMS) --run '$(RUN)' $(if $(TOKENS),--tokens $(call quoted,TOKENS))
	@$(MAKE) report RUN=untrained-$(RUN) PARAMS=outputs/untrained-$(RUN)/run.yaml SEED= TOKENS= CHAPTERS='$(wildcard notebooks/0[568]_*.ipynb notebooks/0[234]_*.ipynb)'
	@$(PY) -m lib.report.untrained keep $(call quoted,PARAMS) --run '$(RUN)'

test: $(READY) ## the test suite
	$(PY) -m pytest

lab: $(READY) ## JupyterLab on the explorer notebook, which links to the chapters
	PYTHONPATH="$(CURDIR)" $(PY) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/optional/explorer.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

bench: $(READY) ## speed, memory and error against the published algorithm (a quarter of an hour); [TOKENS=300000] [PUBLISHED_TOKENS=8192]
	$(PY) -m bench $(if $(TOKENS),--tokens $(call quoted,TOKENS)) $(if $(PUBLISHED_TOKENS),--published-tokens $(call quoted,PUBLISHED_TOKENS))

seeds: $(READY) ## build the text and train the shipped seeds again (minutes on a GPU, days on a CPU); [SEED_TOKENS=174587904]
	$(PY) -m lib.training.corpus
	$(PY) -m lib.training.train --all --tokens $(SEED_TOKENS) --export

designed: $(READY) ## chapter 03's small seeds that share weights or text: text, training (an hour), matches; [TOKENS=10000000]
	$(PY) -m lib.training.corpus
	$(PY) -m lib.training.designed $(if $(TOKENS),--tokens $(call quoted,TOKENS))
	$(PY) -m lib.chapters.universality.designed

lint: $(READY) ## ruff: rules and layout
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean: ## delete outputs/$(RUN), statistics included; [RUN=tiny]
	rm -rf "$(OUT)"

environment: $(READY) ## .venv with the pinned packages; every target that needs it makes it

# An environment that exists (a conda one with VENV=$CONDA_PREFIX) is completed, otherwise one is made: with the newest
# Python that the pinned packages are for.
IS_FOR = -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)".split())'
VERSION = -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'
NEEDED = error: Python 3.11, 3.12 or 3.13 is needed
$(READY): requirements.txt constraints.txt
	@test -x $(PY) || { \
	  found=; why="there is no $(PYTHON)"; \
	  for python in $(PYTHON); do \
	    if "$$python" $(IS_FOR) 2> /dev/null; then found=$$python; break; fi; \
	    version=`"$$python" $(VERSION) 2> /dev/null` && why="$$python is $$version"; \
	  done; \
	  test -n "$$found" || { echo "$(NEEDED), but $$why; name one with PYTHON=/path/to/python3.13." >&2; exit 1; }; \
	  "$$found" -c 'import ensurepip, venv' 2> /dev/null || { echo "error: $$found cannot make environments; on Debian and Ubuntu install the package $$found-venv." >&2; exit 1; }; \
	  "$$found" -m venv $(VENV); \
	}
	@$(PY) $(IS_FOR) || { version=`$(PY) $(VERSION)`; echo "$(NEEDED), but $(PY) is $$version; delete that environment, or name another one with VENV=…" >&2; exit 1; }
	@echo "Installing the pinned packages into $(VENV), once; this takes a few minutes."
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# Runs every time and touches only what changed, so that make redoes what depends on it and nothing else.
$(OUT)/params.yaml: FORCE $(READY)
	@$(PY) -m lib.report resolve --params $(call quoted,PARAMS) --run '$(RUN)' $(if $(SEED),--seed $(call quoted,SEED)) $(if $(TOKENS),--tokens $(call quoted,TOKENS))

$(OUT)/statistics.yaml: $(OUT)/params.yaml
	@:

# Not lib/: editing code must not throw an hour's pass away. After a change to the pass itself: make clean.
$(OUT)/stats/done.json: $(OUT)/statistics.yaml
	@$(PY) -m lib.collect $(OUT)/params.yaml
	@touch $@

$(OUT)/tables/done.json: $(OUT)/stats/done.json $(OUT)/params.yaml $(ABOVE) $(call computing,universality)
	@$(PY) -m lib.chapters.universality.tables $(OUT)/params.yaml
	@touch $@

$(OUT)/notebooks/%.ipynb: notebooks/%.ipynb $(OUT)/tables/done.json
	@$(PY) -m lib.report execute $< $(OUT)/params.yaml

EARLIER :=
define chapter
$(if $(call executed,$1),$(call executed,$1): $(ABOVE) $(EARLIER) $(call folder,$1))
EARLIER += $(call computing,$1)
endef
$(foreach name,$(FOLDERS),$(eval $(call chapter,$(name))))
# Chapter 06 reads the roles that chapter 05 keeps, and chapters 07 and 08 the families of chapter 04.
$(filter %/06_interventions.ipynb,$(EXECUTED)): | $(filter %/05_weight_circuits.ipynb,$(EXECUTED))
$(filter %/07_emergence.ipynb,$(EXECUTED)): $(wildcard data/emergence/emergence.json $(OUT)/emergence/emergence.json) | $(filter %/04_families.ipynb,$(EXECUTED))
$(filter %/08_same_function.ipynb,$(EXECUTED)): | $(filter %/04_families.ipynb,$(EXECUTED))

$(OUT)/notebooks/published.ipynb: notebooks/optional/published.ipynb $(OUT)/tables/published.parquet $(OUT)/tables/done.json
	@$(PY) -m lib.chapters.published.comparison $(OUT)/params.yaml
	@$(PY) -m lib.report execute $< $(OUT)/params.yaml

$(OUT)/notebooks/runs.ipynb: notebooks/optional/runs.ipynb $(OUT)/tables/runs.json $(OUT)/tables/done.json
	@$(PY) -m lib.report execute $< $(OUT)/params.yaml

$(OUT)/report/index.html: $(EXECUTED) $(OUT)/tables/done.json $(PAGES)
	@rm -f $(filter-out $(EXECUTED),$(wildcard $(OUT)/notebooks/*.ipynb))
	@$(PY) -m lib.report render $(OUT)

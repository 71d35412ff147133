# The studio's house-keeping. Everything happens in .venv, made on first use; nothing outside this folder is written.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export HF_HUB_DISABLE_TELEMETRY := 1
export GRADIO_ANALYTICS_ENABLED := False
export PIP_DISABLE_PIP_VERSION_CHECK := 1

BIN := .venv/bin
OUTPUT ?= outputs/demo
# One process per core and one thread per process is the quickest way through many small models.
TEST_JOBS ?= $(shell cores=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1); echo $$((cores > 4 ? 4 : cores)))
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: help install install-dev demo test test-quick check bench ui base-model referees eval-trainers bench-trainers bench-sparse sweep-sara eval-composition proof-layouts proof-service bench-batch bench-serving api-client proof-ui walk screens clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

install: ## make .venv and install what the product needs
	@.ci/install

install-dev: ## the same, with what the tests and checks need
	@.ci/install dev

demo: install ## teach a sample concept and show it in new pictures (OUTPUT=outputs/demo)
	$(BIN)/studio demo --output "$(OUTPUT)"

test: install-dev ## all tests (ARGS="-k name" to choose)
	$(PYTEST) -m "not bench" -n $(TEST_JOBS) --dist loadfile --durations 10 $(ARGS)

test-quick: install-dev ## the tests that take no more than seconds each
	$(PYTEST) -m "not bench and not slow" -n $(TEST_JOBS) --dist loadfile $(ARGS)

check: install-dev ## lint; then types and import rules on a wheel built and installed afresh
	@.ci/check

bench: install-dev ## the benchmarks, short: counts at SDXL's size, kernels, and those among the tests
	$(BIN)/studio bench pipelines --counts
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/studio bench kernels --rounds 3 --dtypes float32
	$(PYTEST) -m bench -s $(ARGS)

eval-trainers: install ## all training methods side by side (25 CPU-minutes; ARGS="--budget full")
	$(BIN)/studio eval trainers $(ARGS)

bench-trainers: install ## our training step against the usual libraries', CPU time
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m studio.evals.peers $(ARGS)

bench-sparse: install ## an optimizer step on single weights against masked AdamW, CPU time; then SaRA's peak memory
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m studio.kernels.bench.sparse_update $(ARGS)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m studio.evals.sara_memory

sweep-sara: install ## learning rates of SaRA on the embedded base (an hour; ARGS="--concept robot --rate 5e-4")
	$(BIN)/python -m studio.evals.sara_sweep $(ARGS)

proof-service: install-dev ## jobs that survive, in full: kills, damage, 10,000 jobs, 10,000 fuzz cases, three nodes (half an hour)
	STUDIO_PROOF=full STUDIO_PROOF_RECORDS=docs/figures/service $(PYTEST) -s tests/proof tests/batch/test_ray.py tests/batch/test_slurm.py $(ARGS)

bench-batch: install ## 64 pictures with 16 adapters through a batch, against a loop over PEFT's set_adapters
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m studio.proofs.batch_speed $(ARGS)

bench-serving: install ## 1,000 adapters, 64 requests: pictures per second in groups against one at a time
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m studio.proofs.adapter_serving $(ARGS)

eval-composition: install ## every composition strategy on the same prompts (trains 15 adapters first; ARGS="--budget full")
	$(BIN)/studio eval composition $(ARGS)

proof-layouts: install ## draw the layouts of a JSON file with toy things (ARGS="layouts.json --photos rex:dog --photos bag:backpack")
	$(BIN)/python -m studio.evals.composition_layouts $(ARGS)

ui: ## open the page in the browser (ARGS="--port 8000")
	@.ci/install ui
	$(BIN)/studio ui $(ARGS)

api-client: ## a typed Python client made from the API's description: build/api-client/studio_client
	@.ci/install ui
	rm -rf build/api-client && mkdir -p build/api-client
	$(BIN)/python -m studio.api.description > build/api-client/openapi.json
	$(BIN)/python -m venv build/api-client/tool
	build/api-client/tool/bin/pip install --quiet openapi-python-client==0.29.1
	printf 'content_type_overrides: {"image/png": application/octet-stream, "image/webp": application/octet-stream, "image/*": application/octet-stream}\n' > build/api-client/config.yml
	cd build/api-client && PATH="$$PWD/tool/bin:$$PATH" tool/bin/openapi-python-client generate --path openapi.json --meta none --config config.yml --output-path studio_client

proof-ui: install-dev ## the page in a real browser: reload in mid-training, two tabs, restarts, bombs, 500 pictures, axe
	$(BIN)/python -m studio.ui.proofs.long_list --record docs/figures/page/proof.json $(ARGS)

walk: install-dev ## docs/walk: in a real browser from five photos each of two things to a picture of both, with clicks and minutes
	$(BIN)/python -m studio.ui.proofs.first_composition $(ARGS)

screens: install-dev ## docs/screens: every page, two widths, two themes
	$(BIN)/python -m studio.ui.proofs.screens $(ARGS)

base-model: install ## rebuild the embedded base model from its recipe (hours)
	$(BIN)/studio base-model $(ARGS)

referees: install ## rebuild guide and judge on the base's autoencoder (half an hour)
	$(BIN)/python -m studio.training.referees --which guide
	$(BIN)/python -m studio.training.referees --which judge

clean: ## remove what builds and tests left behind (not .venv, not outputs)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

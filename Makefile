# make demo · make test · make test-fast · make lint · make docs · make ui · make bench · make kernels-table · make gpu-test · make gpu-bench · make cluster-test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The GPU targets install nothing: they take the environment if it is there, else any Python with torch and triton.
GPU_PYTHON ?= $(if $(wildcard $(INSTALLED)),$(BIN)/python,python3)

# Where this is set, no process keeps what it compiles: each compiles every library that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo test test-fast docs lint ui bench kernels-table gpu-test gpu-bench cluster-test clean
.DEFAULT_GOAL := demo

install: $(INSTALLED)

# Libraries of which a first command imports most: without it, test processes that start together compile each of them four times.
COMPILED := deepspeed great_expectations highdicom kubernetes mlflow monai prefect sigpy

# torch comes first and by its exact pin, so that nothing else draws in a larger build of it. What is never imported is not compiled.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	cd $(VENV)/lib/python3.*/site-packages && $(abspath $(BIN))/python -m compileall -q -j 2 $(COMPILED)
	touch $@

demo: install
	$(BIN)/omnimri run --profile demo

# Processes with one thread each: with two each, threads wait for each other on two cores. Others run while some wait for servers.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=4 --dist=loadfile --no-loadscope-reorder

# The unit tests: whatever starts no server, trainer, compiler or other program.
test-fast: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --fast --numprocesses=2 --dist=loadfile --no-loadscope-reorder

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "The site's front page: build/site/index.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ui: install
	$(BIN)/mlflow ui --backend-store-uri "$$($(BIN)/python -m components.home)"

bench: install
	$(BIN)/python -m benchmarks.window_attention
	$(BIN)/python -m benchmarks.moe
	$(BIN)/python -m benchmarks.generation
	$(BIN)/python -m benchmarks.kubernetes_waiting
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.recuration --prepare
	$(BIN)/python -m benchmarks.recuration
	$(BIN)/python -m benchmarks.text
	$(BIN)/python -m benchmarks.orchestration
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.training_step && $(BIN)/python -m benchmarks.loader

kernels-table: install
	$(BIN)/python -m kernels.compile_check --output benchmarks/results/compiled.csv

gpu-test:
	$(GPU_PYTHON) -m pytest tests/kernels/test_gpu.py tests/kernels/test_training.py tests/model_core/test_objectives.py -m gpu

# KUBECONFIG names the cluster; OMNIMRI_TEST_IMAGE an image that its nodes have (docs/kubernetes.md).
cluster-test: install
	$(BIN)/python -m pytest tests/cluster -m cluster

gpu-bench:
	$(GPU_PYTHON) -m benchmarks.window_attention --device cuda
	$(GPU_PYTHON) -m benchmarks.moe --device cuda

clean:
	rm -rf .omnimri data build *.egg-info

.DEFAULT_GOAL := help
PYTHON ?= python3
STANDIN := data/jaffe_drawn
.PHONY: help setup train test lint check ui bench-train bench-sweep bench-triton bench-predict clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/ready  ## a virtual environment with the pinned packages, in .venv
.venv/ready: requirements.lock pyproject.toml
	@test -x .uv/bin/uv || $(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target .uv uv
	@test -x .venv/bin/python || .uv/bin/uv venv --quiet --python "$$(command -v $(PYTHON))" .venv
	.uv/bin/uv pip install --quiet --compile-bytecode -r requirements.lock
	.uv/bin/uv pip install --quiet --no-deps -e .
	touch $@

train: setup  ## VGG19 on the drawn JAFFE stand-in: a finished, tracked run
	@test -f $(STANDIN)/.DS_Store || .venv/bin/python -m fer_lab.data.draw jaffe $(STANDIN)
	.venv/bin/python -m fer_lab.train model=vgg19 data=jaffe data.root=$(STANDIN) model.weights=null

test: setup  ## the tests (the long ones run by name: .venv/bin/pytest -m long)
	.venv/bin/python -m pytest

lint: setup  ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

check: lint test  ## lint and test

ui: setup  ## MLflow on what was trained, at http://127.0.0.1:5000
	.venv/bin/python -m fer_lab.ui

bench-train: setup  ## time our training stack against its peers; needs FER2013=PATH for all parts
	.venv/bin/python -m fer_lab.bench $(if $(FER2013),data.root=$(FER2013))

bench-sweep: setup  ## time our sweeps against plain Optuna; FER2013=PATH for real faces
	.venv/bin/python -m fer_lab.bench part=trials,overhead,frozen,store $(if $(FER2013),data.root=$(FER2013))

bench-triton: setup  ## check the Triton kernels, and time them against their peers where there is a GPU
	.venv/bin/python -m fer_lab.bench part=triton

bench-predict: setup  ## time predictions on a video against an OpenCV + PyTorch loop, and the page's latency
	.venv/bin/python -m fer_lab.bench part=video,page

clean:  ## remove caches and what tests left; runs and mlflow.db stay
	rm -rf cache .pytest_cache .mypy_cache .ruff_cache

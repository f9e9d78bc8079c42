# Everything runs in the virtual environment $(VENV), which tools/setup/setup_env.py makes.
#
#   make demo      train, evaluate and draw on the built-in data
#   make study     train all variants and compare them (hours; STUDY_ARGS=--quick: minutes)
#   make test      the tests
#   make lint      style and types
#
#   PYTHON=python3.12 make demo               another Python, 3.10 or newer
#   DETECTRON2=/path/to/detectron2 make test  another Detectron2 (see tools/setup/install_detectron2.py)
#   make test PYTEST_ARGS="-k poto"           some of the tests

VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=
STUDY_ARGS ?=

# An environment that is there is kept, unless PYTHON names another version explicitly.
ifeq ($(origin PYTHON), undefined)
PYTHON := python3
PYTHON_FLAG :=
else
PYTHON_FLAG := --this-python
endif

TYPED := $(wildcard defcn_d2 tools demo/*.py train_net.py)

# One thread for each of pytest's processes: two busy pools on the same cores slow each other down.
RUN_TESTS = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo study test lint clean clean-env

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n 1,10p

setup:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "set-up failed: there is no $(PYTHON);" \
	  "install Python 3.10 or newer, or name one: PYTHON=/path/to/python3 make ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "set-up failed: $(PYTHON) is $$($(PYTHON) --version 2>&1), and 3.10 or newer is needed;" \
	  "name another one: PYTHON=python3.12 make ..."; exit 1; }
	@$(PYTHON) tools/setup/setup_env.py --venv $(VENV) --constraints $(CONSTRAINTS) $(PYTHON_FLAG)

demo: setup
	$(VENV)/bin/python tools/study/make_demo.py $(DEMO_ARGS)

study: setup
	$(VENV)/bin/python tools/study/study.py $(STUDY_ARGS)

test: setup
	$(RUN_TESTS) $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy $(TYPED)

# What was built and cached; data, results and the environment stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-env: clean
	rm -rf $(VENV)

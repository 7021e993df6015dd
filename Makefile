# Two commands matter: `make course` and `make test`. Both make the environment first.
#
#   PYTHON=python3.12   interpreter for .venv (3.10 or newer)
#   PIP_ARGS=...        passed to pip, for example a mirror, or
#                       PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#                       for the much smaller torch without CUDA
#   PRESET=scenes       preset of `make course`
#   PYTEST_ARGS=...     passed to pytest, for example PYTEST_ARGS="-m 'not slow'"

PYTHON ?= python3
PIP_ARGS ?=
PRESET ?= scenes
PYTEST_ARGS ?=

# As in uss_utils/__main__.py: threads that wait for each other leave the cores to others.
export GOMP_SPINCOUNT ?= 1000

RUN := .venv/bin/python
# pip's progress bars are for people: silent where the output goes to a file.
PIP := $(RUN) -m pip install --disable-pip-version-check \
	$(shell [ -t 2 ] || echo --quiet) $(PIP_ARGS)

.DEFAULT_GOAL := help
.PHONY: help install course test lab notebooks book clean

help:
	@echo "make course     run all notebooks, write results and a page under runs/"
	@echo "make test       style, spelling, unit, golden, notebook and widget tests"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make notebooks  run the notebooks and rewrite them with their outputs"
	@echo "make book       all notebooks as a site to browse: runs/book/index.html"
	@echo "make install    only make .venv (the commands above do it when needed)"
	@echo "make clean      remove runs/ and caches (make clean VENV=1: .venv too)"

install: .venv/.installed

# Runs again only when the list of dependencies changed. The CRF is compiled: the one
# part that may fail, and the course works without it.
.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed; $(PYTHON) is absent or older."; \
		echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@[ -x $(RUN) ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Could not make .venv. On Debian and Ubuntu: apt install python3-venv"; \
		exit 1; }
	@echo "Installing into .venv: some minutes the first time ..."
	@$(PIP) -e '.[dev]'
	@$(PIP) -e '.[crf]' > .venv/crf.log 2>&1 || { \
		echo "pydensecrf2 could not be installed: it needs a C++ compiler (its log is"; \
		echo ".venv/crf.log). All else works; rows with CRF are left out."; }
	@touch $@

course: install
	@$(RUN) -m uss_utils course --preset $(PRESET)

test: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m codespell_lib uss_utils tests Makefile pyproject.toml environment.yml
	$(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lab: install
	$(RUN) -m jupyterlab --ServerApp.root_dir=notebooks

notebooks: install
	@$(RUN) -m uss_utils notebooks

book: install
	@$(RUN) -m uss_utils book

clean:
	rm -rf runs data/cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@[ -z "$(VENV)" ] || rm -rf .venv *.egg-info

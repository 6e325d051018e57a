# `make` lists what there is. Everything is installed into .venv, from setup.py; nothing outside this folder changes.

VENV := .venv
PYTHON ?=
PYTEST_ARGS ?=

# The stamps carry the number of this folder's path: a copied folder brings its .venv along, but an editable install in it
# points to the original.
HERE := $(shell printf %s '$(CURDIR)' | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.installed-$(HERE)
INSTALLED_TEST := $(VENV)/.installed-test-$(HERE)
INSTALLED_STUDY := $(VENV)/.installed-study-$(HERE)

PIP := $(VENV)/bin/python -m pip --quiet --quiet --disable-pip-version-check

# make weights
DATA ?=
NOTICE ?=
DTYPE ?= int8
CERTIFY ?= 5

.PHONY: help install quickstart weights study test test-slow lint clean
.DELETE_ON_ERROR:

help:
	@echo 'make quickstart   install, then train, attack and report on the embedded data; minutes, no download of data'
	@echo 'make weights DATA=DIR  train both models of the wheel on the photographs and labels.csv in DIR, and export them;'
	@echo '                  hours; the same command goes on where it stopped (NOTICE=FILE: terms of the data, for the cards)'
	@echo 'make study        install, and fetch the libraries of the page on which observers judge images (needs npm)'
	@echo 'make test         install, then check the style and run the tests (make test PYTEST_ARGS="-k name")'
	@echo 'make test-slow    the longer tests, which make test leaves out'
	@echo 'make lint         check the style alone'
	@echo 'make install      install into $(VENV) and stop'
	@echo 'make clean        remove $(VENV) and caches; runs/ stays'
	@echo 'PYTHON=/path/to/python3.12 chooses the interpreter that $(VENV) is made with (3.11 or newer).'

quickstart: $(INSTALLED)
	@$(VENV)/bin/python -m cprl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

# `python -m cprl_jax.score` looks for them in cprl_jax/shipped/.
weights: $(INSTALLED)
	@test -n '$(DATA)' || { echo 'Name the folder of photographs with labels.csv: make weights DATA=DIR' >&2; exit 1; }
	@test -z '$(NOTICE)' || test -r '$(NOTICE)' || { echo 'NOTICE=$(NOTICE) is no file that can be read' >&2; exit 1; }
	@case '$(DTYPE)' in float32|bfloat16|int8) ;; \
	  *) echo 'DTYPE=$(DTYPE) is not allowed; it is float32, bfloat16 or int8' >&2; exit 1;; esac
	@$(PIP) install --editable '.[imagenet]'
	@for model in robust plain; do \
	  $(VENV)/bin/python -m cprl_jax.main --config=configs/weights.py:model=$$model --workdir=runs/weights/$$model \
	    --config.dataset.manual_dir='$(DATA)' && \
	  $(VENV)/bin/python -m cprl_jax.export --run=runs/weights/$$model --out=cprl_jax/shipped/$$model \
	    --dtype=$(DTYPE) --notice='$(NOTICE)' --certify=$(CERTIFY) --command='make weights DATA=DIR' || exit 1; \
	done

install: $(INSTALLED)

study: $(INSTALLED_STUDY)
	@$(VENV)/bin/python -m cprl_jax.study bundle
	@echo 'Next: $(VENV)/bin/python -m cprl_jax.study serve --run=RUN (docs/study.md)'

test: lint
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-slow: $(INSTALLED_TEST)
	@$(VENV)/bin/python -m pytest -m slow $(PYTEST_ARGS)

lint: $(INSTALLED_TEST)
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check --quiet .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info

# The environment. An interpreter counts when it runs (the shims of version managers may not), is new enough and can make
# environments (Debian keeps that in a package of its own).
$(VENV)/bin/python:
	@for python in $(if $(PYTHON),'$(PYTHON)',python3.12 python3.11 python3.13 python3 python); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Making $(VENV) with $$("$$python" -c 'import sys; print(sys.executable, sys.version.split()[0])')."; \
	    exec "$$python" -m venv --clear $(VENV); \
	  fi; \
	done; \
	echo 'No usable Python 3.11 or newer$(if $(PYTHON), at PYTHON=$(PYTHON),). Install one with its venv module (Debian,' >&2; \
	echo 'Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 ...' >&2; \
	exit 1

$(INSTALLED): setup.py pyproject.toml $(VENV)/bin/python
	@echo 'Installing cprl_jax into $(VENV) (a few minutes the first time) ...'
	@$(PIP) install --editable .
	@touch $@

$(INSTALLED_STUDY): setup.py pyproject.toml $(VENV)/bin/python
	@echo 'Installing cprl_jax and the server of its study into $(VENV) (a few minutes the first time) ...'
	@$(PIP) install --editable '.[study]'
	@touch $@ $(INSTALLED)

$(INSTALLED_TEST): setup.py pyproject.toml $(VENV)/bin/python
	@echo 'Installing cprl_jax and what its tests need into $(VENV) (a few minutes the first time) ...'
	@$(PIP) install --editable '.[test]'
	@touch $@ $(INSTALLED)

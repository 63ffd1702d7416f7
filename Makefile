# `make demo` and `make test` need Python 3.10 to 3.12 and make; everything else comes into .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	$(RUN) tools/demo.py

test: $(VENV)/.installed lint
	$(RUN) -m pytest

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(VENV)/.installed: setup.py $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || \
	  { echo "mmvisattn needs Python 3.10 to 3.12; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1). Run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)"; rm -rf $(VENV); exit 1; }
	@echo "Installing torch, mmengine, mmdet, mmsegmentation and the rest into $(VENV) (about 6 GB, a few minutes) ..."
	$(RUN) -m pip install --progress-bar on --constraint requirements/constraints.txt --editable '.[det,seg,lite,tests]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache

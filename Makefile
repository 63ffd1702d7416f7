# All targets need Python 3.10 to 3.12 and make; everything else comes into .venv, and for `make test-NAME` into .venv-NAME.
PYTHON ?= python3
RUN := .venv/bin/python
# As many workers as cores, one thread each: the tensors are small.
PYTEST := -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# Beside the newest versions (constraints.txt) three more environments are promised and tested:
# oldest    the lower bounds of all packages
# compiled  the same with a compiled mmcv in place of mmcv-lite (mmcv 2.1 is C++17, which torch's newest headers are not)
# onedl     the newest versions with the maintained forks of mmengine, mmcv, mmdet and mmsegmentation
ENVIRONMENTS := oldest compiled onedl
VENVS := .venv $(ENVIRONMENTS:%=.venv-%)

.PHONY: demo test quick docs test-heads test-backends test-deepspeed $(ENVIRONMENTS:%=test-%) lint clean

demo: .venv/.installed
	$(RUN) tools/demo.py

test: .venv/.installed lint
	OMP_NUM_THREADS=1 $(RUN) $(PYTEST)

# The part that says most in the least time, for the loop at the desk: each room, no training, no whole configs or tools.
QUICK := $(addprefix tests/,checkpoint compat datasets/test_mend.py engine inference models \
  ops/test_depthwise_conv.py ops/test_pointwise_conv.py ops/test_selective_scan.py test_configs.py::test_names_say_what_is_inside test_docstrings.py test_requirements.py visualization) \
  -k 'not processes_that_build_at_once and not second_derivatives and not test_workers \
  and not onnx and not alpha_rises and not rates_change and not test_compile and not test_training_modes'

quick: .venv/.installed
	OMP_NUM_THREADS=1 $(RUN) $(PYTEST) $(QUICK)

# Stock models of both toolboxes, every head on every backbone; brings packages
# that the toolboxes leave to their users, and writes docs/heads.md.
test-heads: .venv/.installed
	$(RUN) -m pip install --progress-bar on --constraint $(CONSTRAINTS) --requirement requirements/heads.txt
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow tests/test_stock_heads.py

# A training that writes for TensorBoard and for Weights & Biases, offline.
test-backends: .venv/.installed
	$(RUN) -m pip install --progress-bar on --constraint $(CONSTRAINTS) --requirement requirements/backends.txt
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow tests/tools/test_backends.py

# Training by way of DeepSpeed. mmengine imports it wherever it is installed, so it gets an environment on top of .venv.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
test-deepspeed: .venv/.installed
	$(RUN) -m venv .venv-deepspeed
	$(RUN) -c '$(SITE)' > "$$(.venv-deepspeed/bin/python -c '$(SITE)')/below.pth"
	.venv-deepspeed/bin/python -m pip install --progress-bar on --constraint $(CONSTRAINTS) --requirement requirements/deepspeed.txt
	OMP_NUM_THREADS=1 .venv-deepspeed/bin/python -m pytest -m slow tests/engine/test_deepspeed.py

$(ENVIRONMENTS:%=test-%): test-%: .venv-%/.installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python $(PYTEST)

lint: .venv/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(SPHINX) -q

# Warnings are errors: a link that leads nowhere, a docstring that is not understood.
SPHINX := $(RUN) -m sphinx --fresh-env --fail-on-warning --keep-going -c docs . build/docs

docs: .venv/.installed
	$(SPHINX)
	@echo "The pages: build/docs/docs/index.html"
	-@$(RUN) -m webbrowser "file://$(CURDIR)/build/docs/docs/index.html"

CONSTRAINTS := requirements/constraints.txt
EXTRAS := det,seg,lite,tests
PIP = $(@D)/bin/python -m pip install --progress-bar on --constraint $(CONSTRAINTS)

.venv/.installed: EXTRAS := det,seg,lite,tests,docs

.venv-oldest/.installed: CONSTRAINTS := requirements/oldest.txt
.venv-oldest/.installed: PYTHON := $(shell python3.10 -c '' 2>/dev/null && echo python3.10 || echo $(PYTHON))

# The setuptools that Python 3.10 and 3.11 bring make no wheel by themselves.
.venv-oldest/.installed: NEXT = $(PIP) wheel

.venv-compiled/.installed: CONSTRAINTS := requirements/oldest.txt
.venv-compiled/.installed: EXTRAS := det,seg,tests
# mmcv's setup.py imports pkg_resources. Without a visible GPU it builds for the CPU; that takes 12 minutes on two cores.
.venv-compiled/.installed: NEXT = $(PIP) 'setuptools<81' wheel && \
  CUDA_VISIBLE_DEVICES= MMCV_WITH_OPS=1 $(PIP) --no-build-isolation --no-binary mmcv mmcv==2.1.0

.venv-onedl/.installed: EXTRAS := tests
.venv-onedl/.installed: NEXT = $(@D)/bin/python -m pip uninstall --yes mmengine onedl-mmengine && $(PIP) --requirement requirements/onedl.txt

$(VENVS:%=%/.installed): setup.py $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || \
	  { echo "mmvisattn needs Python 3.10 to 3.12; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1). Run: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D) || \
	  { echo "$(PYTHON) has no venv module; install it (Debian: apt-get install python3-venv)"; rm -rf $(@D); exit 1; }
	@echo "Installing torch, mmengine, mmdet, mmsegmentation and the rest into $(@D) (about 6 GB, a few minutes) ..."
	$(PIP) --editable '.[$(EXTRAS)]'
	$(NEXT)
	@touch $@

clean:
	rm -rf $(VENVS) .venv-deepspeed build *.egg-info .mypy_cache .pytest_cache .ruff_cache

# Each target sets up .venv itself, once; `make demo PYTHON=python3.12` chooses another Python for it.
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
PYTEST := $(VENV_PYTHON) -m pytest -n 2 --dist loadfile

# Paths are relative and tools run as `python -m`: the folder can be moved, and its name can have spaces.
CHECK := import sys; \
sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, but %s is %d.%d: \
run \"make clean\", then give a newer one, as in \"make demo PYTHON=python3.12\"." \
% ((sys.executable,) + sys.version_info[:2]))

.DEFAULT_GOAL := help
.PHONY: help demo table1 table2 table3 table4 table5 budget compare tune evidence smoke test test-all test-distributed faults fuzz lint audit clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1 - \2/p' Makefile

demo: .venv/.installed-run  ## train a teacher and its students on built-in images: minutes on a CPU
	$(recipe)

table1: .venv/.installed-run  ## train and report Table 1, CIFAR-10; JOBS=4 GPUS=0,1 EPOCHS=12 work for all tables
	$(recipe)

table2: .venv/.installed-run  ## Table 2, attention mapping functions, and AT at one group only
	$(recipe)

table3: .venv/.installed-run  ## Table 3, losses on gradients
	$(recipe)

table4: .venv/.installed-run  ## Table 4, fine-tuning; CUB=folder SCENES=folder
	$(recipe)

table5: .venv/.installed-run  ## Table 5, ImageNet; IMAGENET=folder
	$(recipe)

budget: .venv/.installed-run  ## how many epochs a teacher saves; EPOCHS_LIST='5 10 20'
	$(recipe)

compare: .venv/.installed-run  ## compare losses with equal effort; LOSSES='at kd' PAIR=wrn_16_1:wrn_16_2
	$(recipe)

tune: .venv/.installed-run  ## choose learning rate, schedule and weights for 30 epochs on held-out images
	$(recipe)

evidence: .venv/.installed-run  ## the long runs that docs/results.md has or still lacks, days on a CPU; resumes when started again
	$(recipe)

smoke: .venv/.installed-run  ## every row of every table for a few steps
	$(recipe)

test: .venv/.installed-dev  ## run all tests but the slow ones, two files at once; ARGS='-k name' goes to pytest
	@$(PYTEST) $(if $(ARGS),$(ARGS),-m 'not slow' --cov)

test-all: test  ## run the slow tests too, which together run 90 % of the lines
	@$(PYTEST) -m slow --cov --cov-append --cov-fail-under=90

test-distributed: .venv/.installed-dev  ## run the tests with several ranks, which compare them with one rank
	@$(VENV_PYTHON) -m pytest -m ranks

faults: .venv/.installed-dev  ## kill, stop, damage and starve runs 200 times, and check that they resume
	@$(VENV_PYTHON) -m stress.faults --rounds 200

fuzz: .venv/.installed-dev  ## read 20,000 hostile and broken files; ARGS='--seed 2'
	@$(VENV_PYTHON) -m stress.fuzz --cases 20000 $(ARGS)

lint: .venv/.installed-dev  ## run ruff and mypy
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m mypy

audit: .venv/.installed-dev  ## look up known vulnerabilities of the packages in constraints.txt
	@$(VENV_PYTHON) -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.10,<3'
	@$(VENV_PYTHON) -m pip_audit -r constraints.txt --no-deps --disable-pip

clean:  ## remove .venv and the caches; logs, data and results are kept
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define recipe
@PATH="$(CURDIR)/.venv/bin:$$PATH" PYTHON=$(VENV_PYTHON) bash recipes/$@.sh
endef

# A stamp file is written when its step has succeeded, so the next call repeats an interrupted step.
.venv/.installed-pip:
	@{ [ -e .venv/pyvenv.cfg ] && $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; } || \
		{ "$(PYTHON)" -c '$(CHECK)' && "$(PYTHON)" -m venv --clear .venv; }
	@$(VENV_PYTHON) -c '$(CHECK)'
	@touch $@

.venv/.installed-run: requirements.txt constraints.txt | .venv/.installed-pip
	$(install)

.venv/.installed-dev: requirements-dev.txt .venv/.installed-run
	$(install)

# pip counts a package as installed once its metadata exist, so after a killed pip all are installed again.
define install
@repair=; if [ -e $@.unfinished ]; then repair=--ignore-installed; fi; touch $@.unfinished; \
	$(VENV_PYTHON) -m pip install --disable-pip-version-check $$repair -r $< -c constraints.txt
@rm $@.unfinished; touch $@
endef

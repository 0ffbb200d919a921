# Each target sets up .venv by itself, once; `make demo PYTHON=python3.12` names another Python for it.
PYTHON ?= python3
VENV_PYTHON := .venv/bin/python

# Paths are relative and tools run as `python -m`, so the folder may have spaces in its name and may be moved.
CHECK := import sys; \
sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, but %s is %d.%d: \
run \"make clean\", then name a newer one, as in \"make demo PYTHON=python3.12\"." \
% ((sys.executable,) + sys.version_info[:2]))

.DEFAULT_GOAL := help
.PHONY: help demo table1 table2 table3 table4 table5 budget tune evidence smoke test test-distributed faults fuzz lint audit clean

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1 - \2/p' Makefile

demo: .venv/.installed-run  ## run recipes/demo.sh: a teacher and its students in minutes on a CPU
	$(recipe)

table1: .venv/.installed-run  ## train and report Table 1, CIFAR-10; JOBS=4 GPUS=0,1 EPOCHS=12 for all tables
	$(recipe)

table2: .venv/.installed-run  ## Table 2, attention mapping functions, and one loss alone
	$(recipe)

table3: .venv/.installed-run  ## Table 3, gradient-based transfer
	$(recipe)

table4: .venv/.installed-run  ## Table 4, fine-tuning; CUB=folder SCENES=folder
	$(recipe)

table5: .venv/.installed-run  ## Table 5, ImageNet; IMAGENET=folder
	$(recipe)

budget: .venv/.installed-run  ## what a teacher is worth at several numbers of epochs; EPOCHS_LIST='5 10 20'
	$(recipe)

tune: .venv/.installed-run  ## learning rate, schedule and weights of 30 epochs, on held-out images
	$(recipe)

evidence: .venv/.installed-run  ## every long run of docs/results.md, for days on a CPU; resumes where it was stopped
	$(recipe)

smoke: .venv/.installed-run  ## every row of every table for a few steps
	$(recipe)

test: .venv/.installed-dev  ## run the tests, two files at once; ARGS='-k name' goes to pytest
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile $(if $(ARGS),$(ARGS),--cov --cov-fail-under=90)

test-distributed: .venv/.installed-dev  ## every test of several ranks, and how far they are from one
	@$(VENV_PYTHON) -m pytest -m ranks

faults: .venv/.installed-dev  ## kill, stop, damage and starve runs, 200 times, and see that they go on
	@$(VENV_PYTHON) -m stress.faults --rounds 200

fuzz: .venv/.installed-dev  ## feed the readers 20,000 hostile and broken files; ARGS='--seed 2'
	@$(VENV_PYTHON) -m stress.fuzz --cases 20000 $(ARGS)

lint: .venv/.installed-dev  ## run ruff on the sources, mypy on the modules
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m mypy

audit: .venv/.installed-dev  ## ask PyPI's database for known faults of the packages in constraints.txt
	@$(VENV_PYTHON) -m pip install --disable-pip-version-check --quiet 'pip-audit>=2.10,<3'
	@$(VENV_PYTHON) -m pip_audit -r constraints.txt --no-deps --disable-pip

clean:  ## remove .venv and the caches; logs, data and results stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define recipe
@PATH="$(CURDIR)/.venv/bin:$$PATH" PYTHON=$(VENV_PYTHON) bash recipes/$@.sh
endef

# A stamp is written when its step has succeeded, so what was cut short is done again by the next call.
.venv/.installed-pip:
	@{ [ -e .venv/pyvenv.cfg ] && $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; } || \
		{ "$(PYTHON)" -c '$(CHECK)' && "$(PYTHON)" -m venv --clear .venv; }
	@$(VENV_PYTHON) -c '$(CHECK)'
	@touch $@

.venv/.installed-run: requirements.txt constraints.txt | .venv/.installed-pip
	$(install)

.venv/.installed-dev: requirements-dev.txt .venv/.installed-run
	$(install)

# To pip a package is installed once its metadata are there, so after a killed pip all are laid down anew.
define install
@repair=; if [ -e $@.unfinished ]; then repair=--ignore-installed; fi; touch $@.unfinished; \
	$(VENV_PYTHON) -m pip install --disable-pip-version-check $$repair -r $< -c constraints.txt
@rm $@.unfinished; touch $@
endef

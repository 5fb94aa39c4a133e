# `make demo` and `make test` need nothing but one of these Pythons, make and pip: the tests pass on each, and
# every pinned requirement has a wheel for each.
PYTHONS := 3.11 3.12 3.13
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-image test-service faults lint check constraints

demo: $(VENV)/installed
	$(BIN)/python tune_main.py --space batch_lr_grid --demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

# the same, and faults in real studies, several machines, hostile input at full size
test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m 'not campaign and not image' --hypothesis-profile=full

# builds the image without a Docker daemon, runs a study and a server in it: needs root, buildah, debootstrap
test-image: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 0 -s -m image tests/test_image.py

# a group's service as plain processes, a study submitted to it: needs PostgreSQL and Prometheus
test-service: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 0 -m slow tests/faults/test_service.py

# over an hour on two cores: hundreds of faults, then two hundred trials
faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.campaign
	$(BIN)/python -m pytest -n 0 -m campaign
	$(BIN)/python -m tests.faults.leaks

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

# Resolves all versions again, for all these Pythons. Those that the file names stay where they still fit; for the
# newest, delete it first. Either way the tests decide what is kept.
constraints:
	$(PYTHON) -m venv $(VENV)/uv
	$(VENV)/uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.8
	$(VENV)/uv/bin/uv pip compile --quiet --universal --python-version $(firstword $(PYTHONS)) --no-annotate \
	    --custom-compile-command 'make constraints' --output-file constraints.txt \
	    requirements-dev.txt docker/requirements-server.txt

# the flags tell 3.13t, which few packages have a wheel for, from 3.13
$(VENV)/installed: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; here = "%d.%d" % sys.version_info[:2] + getattr(sys, "abiflags", ""); \
	    here in "$(PYTHONS)".split() or sys.exit("error: $(PYTHON) is Python " + here + \
	    ", and this runs on $(PYTHONS): make PYTHON=python3.12 …")'
	@echo "installing the pinned requirements into $(VENV): some minutes, this once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	touch $@

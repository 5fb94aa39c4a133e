# `make demo` and `make test` need nothing but Python 3.11+, make and pip.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-image test-service faults lint check

demo: .venv/installed
	$(BIN)/python tune_main.py --space batch_lr_grid --demo

test: .venv/installed-dev
	$(BIN)/python -m pytest

# the same, and faults in real studies, several machines, hostile input at full size
test-all: .venv/installed-dev
	$(BIN)/python -m pytest -m 'not campaign and not image' --hypothesis-profile=full

# builds the image without a Docker daemon, runs a study and a server in it: needs root, buildah, debootstrap
test-image: .venv/installed-dev
	$(BIN)/python -m pytest -n 0 -s -m image tests/test_image.py

# a group's service as plain processes, a study submitted to it: needs PostgreSQL and Prometheus
test-service: .venv/installed-dev
	$(BIN)/python -m pytest -n 0 -m slow tests/faults/test_service.py

# over an hour on two cores: hundreds of faults, then two hundred trials
faults: .venv/installed-dev
	$(BIN)/python -m tests.faults.campaign
	$(BIN)/python -m pytest -n 0 -m campaign
	$(BIN)/python -m tests.faults.leaks

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint test

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@echo "installing the pinned requirements into .venv: some minutes, this once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

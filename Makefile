# Two commands for a fresh machine: `make run` answers a question in Spanish, `make test` runs every test.
# Each makes its own virtual environment; pip's cache is all that they share.
PYTHON ?= python3
QUESTION ?= ¿Cuánto es 15 + 27?

.PHONY: run test bench clean
.DEFAULT_GOAL := run

.venv/run.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[default]'
	touch $@

.venv-test/test.stamp: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -e '.[default,train,export,serve,dev]'
	touch $@

run: .venv/run.stamp
	.venv/bin/mm-run '$(QUESTION)'

test: .venv-test/test.stamp
	.venv-test/bin/python -m pytest

clean:
	rm -rf .venv .venv-test build *.egg-info

# Two commands for a fresh machine: `make run` answers a question in Spanish, `make test` runs every test.
# Each makes its own virtual environment; pip's cache is all that they share.
PYTHON ?= python3
QUESTION ?= ¿Cuánto es 15 + 27?

.PHONY: run test test-browser test-kit bench clean
.DEFAULT_GOAL := run

.venv/run.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[default]'
	touch $@

.venv-test/test.stamp: pyproject.toml
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check -e '.[default,train,export,serve,kit,dev]'
	touch $@

run: .venv/run.stamp
	.venv/bin/mm-run '$(QUESTION)'

test: .venv-test/test.stamp
	.venv-test/bin/python -m pytest

# The page in Chromium: an installed one, else the one that playwright downloads.
test-browser: .venv-test/test.stamp
	.venv-test/bin/python -m pip install --quiet --disable-pip-version-check playwright axe-playwright-python
	command -v chromium chromium-browser google-chrome > /dev/null || .venv-test/bin/python -m playwright install chromium
	MINDMERGER_BROWSER=1 .venv-test/bin/python -m pytest tests/serve/test_browser.py tests/export/test_report_browser.py

# An offline kit, made, installed without a network and asked: minutes, and 1.5 GB of disk for a while.
test-kit: .venv-test/test.stamp
	MINDMERGER_KIT=1 .venv-test/bin/python -m pytest tests/distribution/test_kit_whole.py

# The desktop example as a folder application, its bundle beside it: docs/embedding.md.
frozen-desktop:
	$(PYTHON) -m venv .venv-frozen
	.venv-frozen/bin/python -m pip install --quiet --disable-pip-version-check '.[default]' pyinstaller PySide6-Essentials
	.venv-frozen/bin/pyinstaller --noconfirm --log-level WARN examples/desktop/desktop.spec
	.venv-frozen/bin/mm-export standalone --force mindmerger dist/desktop/bundle

# It starts on an X server (Xvfb, xdotool) and answers; screenshots go to $MINDMERGER_SCREENSHOTS if that is set.
test-frozen: frozen-desktop .venv-test/test.stamp
	MINDMERGER_FROZEN=dist/desktop .venv-test/bin/python -m pytest tests/examples

clean:
	rm -rf .venv .venv-test .venv-frozen build dist *.egg-info

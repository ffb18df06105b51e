# `make demo` and `make test` work from nothing: Python >= 3.10, make and g++ are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: venv demo test lint gpu clean

venv: $(INSTALLED)

# Hugging Face's `kernels` lies apart: one test starts a process with it (CONTRIBUTING.md).
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing tileproof and what it builds on into .venv (one to two minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit("tileproof needs Python 3.10 or newer; got " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@command -v g++ >/dev/null || { echo "tileproof needs g++ (Debian/Ubuntu: apt install g++)"; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[build,verify,model,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --upgrade --target .venv/apart kernels
	@touch $@

demo: venv
	@$(BIN)/python -m tileproof.demo

test: venv lint
	@$(BIN)/python -m pytest -n 2

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The same kernels on a real card, compared with the virtual GPU. Without one nothing runs, which is
# an error (status 5 of pytest).
gpu: venv
	@$(BIN)/python -m pytest -m gpu

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis

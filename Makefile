# Every routine of the project. `make help` lists them. All set-up is idempotent and shared: see tools/setup.sh.
SHELL := /bin/bash
PYTHON := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench soak docs fmt clean distclean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1	/p' Makefile | expand -t 20

setup:  ## install what is needed: system packages, .venv, native programs, crun with CRIU
	@tools/setup.sh

demo: setup  ## start a small grid on this machine, use it, take it down
	@$(PYTHON) -m xtreemos.lab.demo

test: setup  ## lint, types, house checks, all test tiers
	@tools/test.sh

bench: setup  ## benchmarks side by side with peers, as ratios
	@$(PYTHON) bench/run.py
	@$(PYTHON) bench/fs.py

soak: setup  ## long runs with faults
	@$(PYTHON) bench/soak.py
	@$(PYTHON) bench/fs_soak.py

docs: setup  ## build the site into site/, warnings are errors
	@$(PYTHON) tools/reference.py
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet

fmt: setup  ## format and sort imports
	@.venv/bin/ruff format src tests tools && .venv/bin/ruff check --fix-only --quiet src tests tools

clean:  ## remove what builds and tests leave; keep .venv and build/tools
	@rm -rf site build/bin .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean  ## remove .venv and build as well
	@rm -rf .venv build

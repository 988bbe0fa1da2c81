# Everything here sets itself up first; see CONTRIBUTING.md.

VENV := .venv/bin
# One thread per process: the tests run in two processes, and results must not depend on threads.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

# What `make demo` builds; any of it can be changed: make demo DEMO_OUT=build/other
DEMO_OUT ?= build/demo
DEMO ?= build --model lenet5 --data digits --bits 8 --target ecp5-85k --fps 5000 --out $(DEMO_OUT)

# More arguments for pytest: make test TESTS="tests/rtl -k window"
TESTS ?=

.PHONY: help setup demo test lint wheel clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

setup: ## Make .venv with pinned packages; install missing system tools
	@bash .ci/setup

demo: setup ## Train-free demonstration: LeNet-5 on digits to verified Verilog
	$(VENV)/hwgen $(DEMO)

lint: setup ## Style, types and import rules
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/lint-imports --no-logo

test: lint ## Lint, then all tests
	$(ONE_THREAD) $(VENV)/pytest $(TESTS)

wheel: setup ## Build the wheel into dist/
	$(VENV)/hatchling build --target wheel

clean: ## Remove what the targets made, .venv included
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

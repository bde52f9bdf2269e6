#!/usr/bin/env bash
# Set up, then run every check: format, lint, types, tests. Options go to pytest: tests/run.sh -k encoder
# Each core, up to four, runs tests by itself, with one thread; tests/run.sh -n 0 --pdb runs them in one process.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/setup.sh          # makes or reuses .venv
setup_venv ".[dev]"

ruff format --check .
ruff check .
mypy
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"

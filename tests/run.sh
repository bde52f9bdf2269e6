#!/usr/bin/env bash
# Set up, then run every check: format, lint, types, tests. Options go to pytest: tests/run.sh -k encoder
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/setup.sh          # makes or reuses .venv
setup_venv ".[dev]"

ruff format --check .
ruff check .
mypy
python -m pytest "$@"

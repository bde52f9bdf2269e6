#!/usr/bin/env bash
# Set up, then transcribe the bundled audio with the bundled model. Needs Python 3.11 or newer and nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."

source recipes/setup.sh          # makes or reuses .venv
setup_venv .

audio=recipes/quickstart/audio
output=runs/quickstart
mkdir -p "$output"

echo
echo "== Transcribing six sentences read by a synthetic voice ($audio)"
python recipes/quickstart/run.py --audio "$audio" --output "$output" "$@"

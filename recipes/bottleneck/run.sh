#!/usr/bin/env bash
# From nothing to the figures: set up, say the words, train the grid in two processes of one thread, draw. Run it
# again to go on after an interruption.
#
#     recipes/bottleneck/run.sh
#     recipes/bottleneck/run.sh quick=true     # few steps and one seed: shows that it works, not what attention buys
#
# What else is given goes to train.py.
set -euo pipefail
cd "$(dirname "$0")/../.."

source recipes/setup.sh
setup_venv ".[train,tts]"

experiment=bottleneck
prepare=()
train=()
for option in "$@"; do
    case $option in
        quick=true)
            experiment=bottleneck_quick
            prepare=(corpus.subsets.words-train.voices=8 corpus.subsets.words-train.words=240)
            ;;
        quick=false) ;;
        *) train+=("$option") ;;
    esac
done

# One thread a process: small matrices, and a second thread would only wait.
export OMP_NUM_THREADS=1
python recipes/bottleneck/prepare.py output=data/$experiment ${prepare[@]+"${prepare[@]}"}
workers=()
for _ in 1 2; do
    python recipes/bottleneck/train.py experiment=$experiment corpus.manifests=data/$experiment ${train[@]+"${train[@]}"} -m &
    workers+=($!)
done
trap 'kill "${workers[@]}" 2>/dev/null' INT TERM
failed=0
for worker in "${workers[@]}"; do wait "$worker" || failed=$?; done
[ "$failed" -eq 0 ] || exit "$failed"
python recipes/bottleneck/figures.py runs/$experiment

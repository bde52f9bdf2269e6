#!/usr/bin/env bash
# From nothing to a WER on an4-test: set up, prepare, train, decode. Run it again to go on after an interruption.
#
#     recipes/an4/run.sh                                # downloads AN4 (64 MB) into data/
#     recipes/an4/run.sh corpus.root=/path/to/corpora   # takes it from a folder
#
# What else is given goes to train.py.
set -euo pipefail
cd "$(dirname "$0")/../.."

source recipes/setup.sh
setup_venv ".[train]"

prepare=(corpus.download=true)
train=()
for option in "$@"; do
    case $option in
        corpus.root=*) prepare=("$option") ;;
        *) train+=("$option") ;;
    esac
done

python recipes/an4/prepare.py "${prepare[@]}" output=data/an4
python recipes/an4/train.py corpus.manifests=data/an4 output=runs/an4 "${train[@]}"
for decoding in greedy greedy_ctc beam_ctc; do
    python recipes/an4/decode.py model_dir=runs/an4/model corpus.manifests=data/an4 decoding=$decoding \
        output=runs/an4/an4-test-$decoding
done

#!/usr/bin/env bash
# From nothing to a WER: set up, prepare, train, decode. Run it again to go on after an interruption.
#
#     recipes/librispeech/run.sh                        # downloads mini LibriSpeech (0.5 GB) into data/
#     recipes/librispeech/run.sh corpus.root=DIR corpus.train=[train-clean-100] corpus.dev=[dev-clean]
#
# What else is given goes to train.py. The folder of the run is runs/librispeech, or output=.
set -euo pipefail
cd "$(dirname "$0")/../.."

source recipes/setup.sh
setup_venv ".[train]"

prepare=(corpus.download=true)
train=()
output=runs/librispeech
trained=train-clean-5
dev=dev-clean-2
for option in "$@"; do
    case $option in
        corpus.root=*) prepare=("$option") ;;
        output=*) output=${option#output=} ;;
        corpus.train=*) trained=${option#corpus.train=} trained=${trained//[\[\]]/} ;;
        corpus.dev=*) dev=${option#corpus.dev=} dev=${dev//[\[\]]/} ;;
        *) train+=("$option") ;;
    esac
done

python recipes/librispeech/prepare.py "${prepare[@]}" "corpus.subsets=[$trained,$dev]" output="$output/manifests"
python recipes/librispeech/train.py corpus.manifests="$output/manifests" "corpus.train=[$trained]" \
    "corpus.dev=[$dev]" output="$output" "${train[@]}"
for decoding in greedy greedy_ctc beam_ctc; do
    python recipes/librispeech/decode.py model_dir="$output/model" corpus.manifests="$output/manifests" \
        "corpus.decode=[$dev]" decoding=$decoding output="$output/decode-$decoding"
done

#!/usr/bin/env bash
# From nothing to a WER: set up, prepare, train, decode. Run it again to go on after an interruption.
#
#     recipes/librispeech/run.sh                        # downloads mini LibriSpeech (0.5 GB) into data/
#     recipes/librispeech/run.sh corpus.root=DIR corpus.train=[train-clean-100] corpus.dev=[dev-clean]
#     recipes/librispeech/run.sh experiment=small trainer.max_epochs=20      # one stage with settings of your own
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
experiment=
for option in "$@"; do
    case $option in
        corpus.root=*) prepare=("$option") ;;
        output=*) output=${option#output=} ;;
        corpus.train=*) trained=${option#corpus.train=} trained=${trained//[\[\]]/} ;;
        corpus.dev=*) dev=${option#corpus.dev=} dev=${dev//[\[\]]/} ;;
        experiment=*) experiment=${option#experiment=} ;;
        *) train+=("$option") ;;
    esac
done

python recipes/librispeech/prepare.py "${prepare[@]}" "corpus.subsets=[$trained,$dev]" output="$output/manifests"
common=(corpus.manifests="$output/manifests" "corpus.train=[$trained]" "corpus.dev=[$dev]" "${train[@]}")
if [[ $experiment ]]; then
    python recipes/librispeech/train.py experiment="$experiment" output="$output" "${common[@]}"
else # CTC first, then the speller with guidance; then on at a lower learning rate
    python recipes/librispeech/train.py experiment=compact output="$output/first" "${common[@]}"
    python recipes/librispeech/train.py experiment=compact_further init_from="$output/first/model" output="$output" \
        "${common[@]}"
fi
decode=(model_dir="$output/model" corpus.manifests="$output/manifests" "corpus.decode=[$dev]")
for decoding in greedy greedy_ctc beam_ctc; do
    python recipes/librispeech/decode.py "${decode[@]}" decoding=$decoding output="$output/decode-$decoding"
done
# With the language model that ships.
python recipes/librispeech/decode.py "${decode[@]}" decoding=beam_ctc_lm language_model=asr/assets/mini \
    output="$output/decode-beam_ctc_lm"

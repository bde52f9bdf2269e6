#!/usr/bin/env bash
# From text files to a character language model: set up, prepare, train. Run it again to go on after an interruption.
#
#     recipes/language_model/run.sh text=[FILE,FOLDER,...] overlap_with=[TRANSCRIPTS,...]
#     recipes/language_model/run.sh text=[sentences.txt.xz] overlap_with=[data/LibriSpeech/dev-clean] trainer.max_minutes=120
#
# What else is given goes to train.py. The folder of the run is runs/language_model, or output=.
set -euo pipefail
cd "$(dirname "$0")/../.."

prepare=()
train=()
output=runs/language_model
text=
for option in "$@"; do
    case $option in
        text=*) text=$option prepare+=("$option") ;;
        overlap_with=* | ngram=* | on_overlap=* | held_out=* | max_characters=*) prepare+=("$option") ;;
        output=*) output=${option#output=} ;;
        *) train+=("$option") ;;
    esac
done

source recipes/setup.sh
need_text "$text"
setup_venv ".[train]"

python recipes/language_model/prepare.py "${prepare[@]}" output="$output/text"
python recipes/language_model/train.py text="$output/text" output="$output" "${train[@]}"

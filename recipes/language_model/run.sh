#!/usr/bin/env bash
# From text files to a language model: set up, prepare, train. Run it again to go on after an interruption.
#
#     recipes/language_model/run.sh "text=[FILE,FOLDER,...]" "overlap_with=[TRANSCRIPTS,...]"
#     recipes/language_model/run.sh "text=[sentences.txt.xz]" "overlap_with=[data/LibriSpeech/dev-clean]" trainer.max_minutes=120
#     recipes/language_model/run.sh kind=words "text=[sentences.txt.xz]" trainer.max_minutes=60     # n-gram and LSTM over words
#
# What else is given goes to train.py, or with kind=words to word_lstm.py. The folder of the run is runs/language_model, or
# output=.
set -euo pipefail
cd "$(dirname "$0")/../.."

prepare=()
train=()
output=runs/language_model
kind=characters
text=
for option in "$@"; do
    case $option in
        text=*) text=$option prepare+=("$option") ;;
        overlap_with=* | ngram=* | on_overlap=* | held_out=* | max_characters=*) prepare+=("$option") ;;
        output=*) output=${option#output=} ;;
        kind=characters | kind=words) kind=${option#kind=} ;;
        kind=*)
            echo "error: $option: choose kind=characters or kind=words" >&2
            exit 2
            ;;
        *) train+=("$option") ;;
    esac
done

source recipes/setup.sh
need_text "$text"
setup_venv ".[train]"

python recipes/language_model/prepare.py "${prepare[@]}" output="$output/text"
if [[ $kind == words ]]; then
    text=$(cksum <"$output/text/train.ids")
    if [[ ! -f $output/ngram/language_model.yaml || $(cat "$output/ngram/text" 2>/dev/null) != "$text" ]]; then
        python recipes/language_model/ngram.py text="$output/text" ngrams=700_000 output="$output/ngram"
        echo "$text" >"$output/ngram/text"
    fi
    python recipes/language_model/word_lstm.py text="$output/text" ngram="$output/ngram" output="$output" ${train[@]+"${train[@]}"}
else
    python recipes/language_model/train.py text="$output/text" output="$output" ${train[@]+"${train[@]}"}
fi

#!/usr/bin/env bash
# From nothing to a WER on an4-test: set up, prepare, train, count the words of the training transcripts, decode. Run it
# again to go on after an interruption.
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
# First without an4-dev, by which everything was chosen; then on with it.
python recipes/an4/train.py corpus.manifests=data/an4 output=runs/an4 "${train[@]}"
python recipes/an4/train.py --config-name train_an4_all "${train[@]}"
# ngram=100: PITTSBURGH comes as often as it is spelled, and is no copy to be dropped.
python recipes/language_model/prepare.py ngram=100 held_out=0.005 output=runs/an4/text \
    "text=[data/an4/supervisions_an4-train.jsonl.gz,data/an4/supervisions_an4-dev.jsonl.gz]"
python recipes/language_model/ngram.py text=runs/an4/text order=5 least_count=1 held_out=0 \
    output=runs/an4/language_model
python recipes/an4/decode.py model_dir=runs/an4/all/model decoding=greedy output=runs/an4/an4-test-greedy
# Weights chosen on an4-dev; see README.md.
python recipes/an4/decode.py model_dir=runs/an4/all/model decoding=greedy_ctc decoding.ctc_weight=0.5 decoding.phases=2 decoding.warp=0 \
    output=runs/an4/an4-test-greedy_ctc
python recipes/an4/decode.py model_dir=runs/an4/all/model decoding=beam_ctc decoding.ctc_weight=0.5 decoding.warp=0 \
    output=runs/an4/an4-test-beam_ctc
python recipes/an4/decode.py model_dir=runs/an4/all/model language_model=runs/an4/language_model decoding=beam_ctc_lm \
    decoding.ctc_weight=0.4 decoding.lm_weight=0.2 decoding.ilm_weight=0.1 decoding.word_bonus=0 decoding.lm_eos=true \
    decoding.max_length_ratio=1.5 decoding.beam=16 decoding.merge_words=4 output=runs/an4/an4-test-beam_ctc_lm

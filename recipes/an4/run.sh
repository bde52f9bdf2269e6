#!/usr/bin/env bash
# From nothing to a WER on an4-test: set up, prepare, train, count the words of the training transcripts, decode. Run it
# again to go on after an interruption.
#
#     recipes/an4/run.sh                                # downloads AN4 (64 MB) into data/
#     recipes/an4/run.sh corpus.root=/path/to/corpora   # takes it from a folder
#     recipes/an4/run.sh noises=/path/to/recordings output=runs/an4_noise    # also with copies in rooms and in such noise
#
# What else is given goes to train.py. The folder of the run is runs/an4, or output=; with noises= it needs one of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."

prepare=()
corpus=(corpus.download=true)
corpora=data
output=runs/an4
noises=
train=()
for option in "$@"; do
    case $option in
        corpus.root=*) corpus=("$option") corpora=${option#*=} ;;
        corpus.url=* | corpus.check=* | corpus.dev_utterances=*) prepare+=("$option") ;;
        output=*) output=${option#*=} ;;
        noises=*) noises=${option#*=} ;;
        *) train+=("$option") ;;
    esac
done

source recipes/setup.sh
setup_venv ".[train${noises:+,augment}]"

prepare=(python recipes/an4/prepare.py "${corpus[@]}" ${prepare[@]+"${prepare[@]}"} output=data/an4)
"${prepare[@]}"
# All by which something was chosen without an4-dev; then on with it.
python recipes/an4/train.py corpus.manifests=data/an4 output="$output" ${train[@]+"${train[@]}"}
if [[ ! -d $corpora/an4-train && ! -d $corpora/LibriSpeech/an4-train ]]; then # made of the official archive
    corpora=data/an4/audio
fi
python recipes/synthetic/splice.py root="$corpora" model_dir="$output/model" output="$output/copies"
more=("corpus.spliced=$output/copies")
word_bonus=0
copies=()
all_copies=()
if [ -n "$noises" ]; then
    python recipes/synthetic/augment.py root="$corpora" subset=an4-train noises="$noises" telephone=0 mp3=0.05 \
        "snr=[8,30]" output="$output/copies"
    more+=("corpus.augmented=$output/copies")
    word_bonus=1
    copies=("corpus.train=[an4-train,an4-train-augmented,an4-train-spliced]"
        "corpus.unperturbed=[an4-train-augmented]" +corpus.shares.an4-train-augmented=0.6)
    all_copies=("corpus.train=[an4-train,an4-dev,an4-train-augmented,an4-dev-augmented,an4-train-spliced,an4-dev-spliced]"
        "corpus.unperturbed=[an4-train-augmented,an4-dev-augmented]"
        +corpus.shares.an4-train-augmented=0.6 +corpus.shares.an4-dev-augmented=0.6)
fi
"${prepare[@]}" "${more[@]}"
python recipes/an4/train.py --config-name train_an4_spliced init_from="$output/model" output="$output/spliced" \
    ${copies[@]+"${copies[@]}"} ${train[@]+"${train[@]}"}
python recipes/an4/train.py --config-name train_an4_spliced_all init_from="$output/spliced/model" \
    output="$output/spliced/all" ${all_copies[@]+"${all_copies[@]}"} ${train[@]+"${train[@]}"}
# ngram=100: PITTSBURGH comes as often as it is spelled, and is no copy to be dropped.
python recipes/language_model/prepare.py ngram=100 held_out=0.005 output="$output/text" \
    "text=[data/an4/supervisions_an4-train.jsonl.gz,data/an4/supervisions_an4-dev.jsonl.gz]"
python recipes/language_model/ngram.py text="$output/text" order=5 least_count=1 held_out=0 \
    output="$output/language_model"
python recipes/an4/decode.py model_dir="$output/spliced/all/model" decoding=greedy output="$output/an4-test-greedy"
# Weights chosen on an4-dev; see README.md.
python recipes/an4/decode.py model_dir="$output/spliced/all/model" decoding=greedy_ctc decoding.ctc_weight=0.5 \
    decoding.phases=2 decoding.warp=0 output="$output/an4-test-greedy_ctc"
python recipes/an4/decode.py model_dir="$output/spliced/all/model" decoding=beam_ctc decoding.ctc_weight=0.5 \
    decoding.warp=0 output="$output/an4-test-beam_ctc"
python recipes/an4/decode.py model_dir="$output/spliced/all/model" language_model="$output/language_model" \
    decoding=beam_ctc_lm decoding.ctc_weight=0.4 decoding.lm_weight=0.2 decoding.ilm_weight=0.1 \
    decoding.word_bonus=$word_bonus decoding.lm_eos=true decoding.max_length_ratio=1.5 \
    decoding.beam=16 decoding.prune=inf decoding.merge_words=4 output="$output/an4-test-beam_ctc_lm"

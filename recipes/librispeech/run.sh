#!/usr/bin/env bash
# From nothing to a WER: set up, prepare, train, decode. Run it again to go on after an interruption.
#
#     recipes/librispeech/run.sh                        # downloads mini LibriSpeech (0.5 GB) into data/
#     recipes/librispeech/run.sh corpus.root=DIR corpus.train=[train-clean-100] corpus.dev=[dev-clean]
#     recipes/librispeech/run.sh text=[sentences.txt.xz] hours=40            # and sentences read by synthetic voices
#     recipes/librispeech/run.sh experiment=small trainer.max_epochs=20      # one stage with settings of your own
#
# With text= come a third stage of training, on utterances joined from runs of the speakers' words, on copies of all speech
# in rooms too, and with noises=FOLDER in noise, with a reader in the speller that has learned from the text, and a short
# fourth, nearly all on recorded speech. What else is given goes to train.py. The folder of the run is runs/librispeech, or
# output=.
set -euo pipefail
cd "$(dirname "$0")/../.."

source recipes/setup.sh
setup_venv ".[train]"

prepare=(corpus.download=true)
root=data
text=
hours=40
noises=()
train=()
output=runs/librispeech
trained=train-clean-5
dev=dev-clean-2
experiment=
for option in "$@"; do
    case $option in
        corpus.root=*) prepare=("$option") root=${option#corpus.root=} ;;
        text=*) text=$option ;;
        hours=*) hours=${option#hours=} ;;
        noises=*) noises=("$option") ;;
        output=*) output=${option#output=} ;;
        corpus.train=*) trained=${option#corpus.train=} trained=${trained//[\[\]]/} ;;
        corpus.dev=*) dev=${option#corpus.dev=} dev=${dev//[\[\]]/} ;;
        experiment=*) experiment=${option#experiment=} ;;
        *) train+=("$option") ;;
    esac
done
if [[ $experiment && $text ]]; then
    echo "error: text= is for the third and fourth of four stages, experiment= for one of your own; leave one out" >&2
    exit 2
fi

python recipes/librispeech/prepare.py "${prepare[@]}" "corpus.subsets=[$trained,$dev]" output="$output/manifests"
common=(corpus.manifests="$output/manifests" "corpus.train=[$trained]" "corpus.dev=[$dev]" "${train[@]}")
if [[ $experiment ]]; then
    python recipes/librispeech/train.py experiment="$experiment" output="$output" "${common[@]}"
else # CTC first, then the speller with guidance; then on at a lower learning rate
    python recipes/librispeech/train.py experiment=compact output="$output/first" "${common[@]}"
    second=$output
    [[ $text ]] && second=$output/second
    python recipes/librispeech/train.py experiment=compact_further init_from="$output/first/model" output="$second" \
        "${common[@]}"
    if [[ $text ]]; then # then on with synthetic voices and copies
        folder=$root
        [[ -d $root/LibriSpeech ]] && folder=$root/LibriSpeech
        recipes/synthetic/run.sh "$text" overlap_with="[$folder/${dev//,/,$folder/}]" hours="$hours" "${noises[@]}" \
            output="$output/spoken"
        python recipes/language_model/train.py text="$output/spoken/text" model.d=512 trainer.max_minutes=60 \
            output="$output/reader"
        for subset in ${trained//,/ }; do
            python recipes/synthetic/augment.py root="$root" subset="$subset" output="$output/spoken" "${noises[@]}"
            python recipes/synthetic/splice.py root="$root" subset="$subset" model_dir="$second/model" run=4 copies=4 \
                output="$output/spliced"
        done
        subsets=$(cd "$output/spoken/LibriSpeech" && echo ./*-augmented)
        subsets=${subsets//.\//} subsets=${subsets// /,}
        spliced=${trained//,/-spliced,}-spliced
        python recipes/librispeech/prepare.py corpus.root="$output/spoken" "corpus.subsets=[$subsets]" \
            output="$output/manifests"
        python recipes/librispeech/prepare.py corpus.root="$output/spliced" "corpus.subsets=[$spliced]" \
            output="$output/manifests"
        all=("${common[@]}" "corpus.train=[$trained,$spliced,$subsets]" "corpus.unperturbed=[$subsets]")
        python recipes/librispeech/train.py experiment=compact_spoken init_from="$second/model" \
            reader_from="$output/reader/model" output="$output/third" "${all[@]}" \
            "corpus.shares={${spliced//,/: 0.25, }: 0.25, ${subsets//,/: 0.2, }: 0.2}"
        # and in the end with hardly anything but recorded speech
        python recipes/librispeech/train.py experiment=compact_recorded init_from="$output/third/model" \
            output="$output" "${all[@]}" "corpus.shares={${spliced//,/: 0.1, }: 0.1, ${subsets//,/: 0.05, }: 0.05}"
    fi
fi
decode=(model_dir="$output/model" corpus.manifests="$output/manifests" "corpus.decode=[$dev]")
for decoding in greedy greedy_ctc beam_ctc; do
    python recipes/librispeech/decode.py "${decode[@]}" decoding=$decoding output="$output/decode-$decoding"
done
# With the language model that ships.
python recipes/librispeech/decode.py "${decode[@]}" decoding=beam_ctc_lm language_model=asr/assets/mini \
    output="$output/decode-beam_ctc_lm"

#!/usr/bin/env bash
# From nothing to a WER: set up, prepare, train, decode. Run it again to go on after an interruption.
#
#     recipes/librispeech/run.sh                        # downloads mini LibriSpeech (0.5 GB) into data/
#     recipes/librispeech/run.sh corpus.root=DIR "corpus.train=[train-clean-100]" "corpus.dev=[dev-clean]" output=runs/clean
#     recipes/librispeech/run.sh "text=[sentences.txt.xz]" hours=40            # and sentences read by synthetic voices
#     recipes/librispeech/run.sh experiment=small trainer.max_epochs=20      # one stage with settings of your own
#
# Three stages of training: from nothing, by CTC alone, over characters and phones; on with two more encoder layers and the
# speller, and on utterances joined from runs of the speakers' words and copies in rooms, with noises=FOLDER in noise, too; on,
# every utterance heard twice, the speller learning from its own mistakes. With text= the second and the third hear sentences
# of the text as well and the third has a reader in the speller that has learned from it. What else is given goes to train.py.
# Another corpus needs another folder: the run's is runs/librispeech, or output=.
set -euo pipefail
cd "$(dirname "$0")/../.."

source recipes/setup.sh

prepare=()
corpus=(corpus.download=true)
root=data
text=
hours=
noises=()
train=()
output=runs/librispeech
trained=train-clean-5
dev=dev-clean-2
experiment=
for option in "$@"; do
    case $option in
        corpus.root=*) corpus=("$option") root=${option#corpus.root=} ;;
        corpus.base_url=* | corpus.check=* | corpus.eval_subsets=* | corpus.keep_archives=*) prepare+=("$option") ;;
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
if [[ $experiment && ($text || $hours || ${#noises[@]} -gt 0) ]]; then
    echo "error: text=, hours= and noises= are for the second and third of three stages, experiment= for one of your own;" \
        "leave that or these out" >&2
    exit 2
fi
if [[ $hours && ! $text ]]; then
    echo "error: hours= are of speech that synthetic voices read; add text=[FILE,...], which they read from" >&2
    exit 2
fi
hours=${hours:-40}
is_number "$hours" || exit 2

setup_venv ".[train,tts,augment]"
cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
launch=(python)
processes=1
if [[ $cores -gt 1 && -z $experiment ]] && ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    # without an NVIDIA GPU two processes get through 1.5 times as much speech as one of as many threads
    launch=(torchrun --standalone --nproc-per-node=2)
    processes=2
    export OMP_NUM_THREADS=$((cores / 2))
fi
stage() { # experiment, seconds of speech a batch, other settings
    local batch=$(($2 / processes))
    "${launch[@]}" recipes/librispeech/train.py experiment="$1" corpus.batch_seconds=$batch "${common[@]}" "${@:3}" \
        ${train[@]+"${train[@]}"}
}

python recipes/librispeech/prepare.py "${corpus[@]}" ${prepare[@]+"${prepare[@]}"} "corpus.subsets=[$trained,$dev]" \
    output="$output/manifests"
common=(corpus.manifests="$output/manifests" "corpus.train=[$trained]" "corpus.dev=[$dev]")
if [[ $experiment ]]; then
    python recipes/librispeech/train.py experiment="$experiment" output="$output" "${common[@]}" ${train[@]+"${train[@]}"}
else # by CTC alone, over phones too; then copies of what was heard, and synthetic voices where there is a text
    stage compact 100 output="$output/first" training.ctc_only_epochs=18 training.phones=0.5 trainer.max_epochs=18
    reader=model.speller.reader=0
    if [[ $text ]]; then
        folder=$root
        [[ -d $root/LibriSpeech ]] && folder=$root/LibriSpeech
        recipes/synthetic/run.sh "$text" overlap_with="[$folder/${dev//,/,$folder/}]" hours="$hours" \
            ${noises[@]+"${noises[@]}"} output="$output/spoken"
        OMP_NUM_THREADS=$cores python recipes/language_model/train.py text="$output/spoken/text" model.d=512 \
            trainer.max_minutes=40 output="$output/reader"
        reader=reader_from=$output/reader/model
    fi
    for subset in ${trained//,/ }; do
        python recipes/synthetic/augment.py root="$root" subset="$subset" output="$output/spoken" processes="$cores" \
            ${noises[@]+"${noises[@]}"}
        python recipes/synthetic/splice.py root="$root" subset="$subset" model_dir="$output/first/model" run=4 copies=4 \
            output="$output/spliced"
    done
    subsets=$(cd "$output/spoken/LibriSpeech" && echo ./*-augmented)
    subsets=${subsets//.\//} subsets=${subsets// /,}
    spliced=${trained//,/-spliced,}-spliced
    python recipes/librispeech/prepare.py corpus.root="$output/spoken" "corpus.subsets=[$subsets]" \
        output="$output/manifests"
    python recipes/librispeech/prepare.py corpus.root="$output/spliced" "corpus.subsets=[$spliced]" \
        output="$output/manifests"
    common+=("corpus.train=[$trained,$spliced,$subsets]" "corpus.unperturbed=[$subsets]")
    shares="corpus.shares={${spliced//,/: 0.25, }: 0.25, ${subsets//,/: 0.2, }: 0.2}"
    # on all of it, by CTC alone again, then with the speller, which is led along the diagonal at first
    stage compact_further 100 init_from="$output/first/model" output="$output/second" "$shares" \
        training.ctc_only_epochs=3 training.ctc_warmup_epochs=1 training.guided_attention=5 \
        training.guided_attention_epochs=4 training.phones=0.3 trainer.max_epochs=12
    stage compact_spoken 100 init_from="$output/second/model" output="$output" "$reader" "$shares"
fi
decode=(model_dir="$output/model" corpus.manifests="$output/manifests" "corpus.decode=[$dev]")
for decoding in greedy greedy_ctc beam_ctc; do
    python recipes/librispeech/decode.py "${decode[@]}" decoding=$decoding output="$output/decode-$decoding"
done
# With the language model that ships.
python recipes/librispeech/decode.py "${decode[@]}" decoding=beam_ctc_lm language_model=asr/assets/mini \
    output="$output/decode-beam_ctc_lm"

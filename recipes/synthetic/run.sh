#!/usr/bin/env bash
# From a text to speech to train on: sentences read aloud by all voices that there are, and copies in rooms and noise. Run it
# again to go on after an interruption.
#
#     recipes/synthetic/run.sh "text=[sentences.txt.xz]" "overlap_with=[data/LibriSpeech/dev-clean]" hours=40
#     recipes/synthetic/run.sh "text=[sentences.txt.xz]" noises=FOLDER         # recordings without speech, for the copies
#
# Subsets spoken-*, and of each -augmented, in data/spoken or output=. flite's voices, where it is installed, read a quarter of
# the hours, Pico's, where there is a C compiler and what Python needs for it, a fifth.
set -euo pipefail
cd "$(dirname "$0")/../.."

prepare=()
text=
noises=()
hours=40
output=data/spoken
for option in "$@"; do
    case $option in
        text=*) text=$option prepare+=("$option") ;;
        overlap_with=*) prepare+=("$option") ;;
        noises=*) noises=("$option") ;;
        hours=*) hours=${option#hours=} ;;
        output=*) output=${option#output=} ;;
        *) echo "error: $option: not known here; see the top of $0" >&2 && exit 2 ;;
    esac
done

source recipes/setup.sh
need_text "$text"
is_number "$hours" || exit 2
setup_venv ".[train,tts,augment]"
has_pico() { python -c "import ttspico" 2>/dev/null; }
has_pico || python -m pip install --quiet --disable-pip-version-check --editable ".[pico]" ||
    echo "Pico, which needs a C compiler and Python's headers, could not be installed; with it there are two voices more"

python recipes/language_model/prepare.py "${prepare[@]}" output="$output/text"
processes=$(python -c 'import os; print(os.cpu_count())')
spoken() { # subset, per cent of the hours, prefix, other settings
    local subset=$1 prefix=$3 part
    part=$(python -c "print($hours * $2 / 100)")
    python recipes/synthetic/prepare.py text="$output/text" output="$output" subset="$subset" hours="$part" \
        prefix="$prefix" processes="$processes" "${@:4}"
    python recipes/synthetic/augment.py root="$output" output="$output" subset="$subset" processes="$processes" \
        rooms=0.3 noise=0.4 telephone=0.05 mp3=0.05 ${noises[@]+"${noises[@]}"}
}
left=100 # per cent of the hours
if command -v flite >/dev/null; then
    left=$((left - 25))
    spoken spoken-men 20 U seed=11 speakers=150 "voices=[flite-awb,flite-rms,flite-kal16]" \
        "ranges.formants=[0.92,1.18]" "ranges.pitch=[0.75,1.8]"
    spoken spoken-slt 5 V seed=12 speakers=50 "voices=[flite-slt]" "ranges.formants=[0.8,1.1]"
else
    echo "flite is not installed; with it there are four voices more (Debian, Ubuntu: apt-get install flite)"
fi
if has_pico; then
    left=$((left - 20))
    spoken spoken-pico 20 X seed=23 speakers=100 "voices=[pico-us,pico-gb]"
fi
spoken spoken-hibari "$left" T seed=7 speakers=300

#!/usr/bin/env bash
# Make or complete .venv-benchmark, where the peers of recipes/benchmark live: recipes/benchmark/setup.sh
#
# It sees the packages of .venv (PyTorch above all) through a .pth file and adds only what the peers need on top, without
# their own pins: SpeechBrain, ESPnet and the few small packages that their LSTM models import. About 40 MB.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=(
    speechbrain==1.1.2 hyperpyyaml==1.2.3 ruamel.yaml==0.19.1 sentencepiece==0.2.3
    espnet==202511 typeguard==4.6.0
)

if ! .venv/bin/python -c 'import asr, hydra, lhotse, lightning' 2>/dev/null; then
    source recipes/setup.sh
    setup_venv ".[train]"
fi

if [ ! -x .venv-benchmark/bin/python ]; then
    echo "== Making .venv-benchmark"
    .venv/bin/python -m venv --without-pip .venv-benchmark
fi
site() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
site .venv/bin/python >"$(site .venv-benchmark/bin/python)/project.pth"

stamp=.venv-benchmark/installed
wanted=$(printf '%s\n' "${packages[@]}")
if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "== Installing ${packages[*]}"
    .venv-benchmark/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "${packages[@]}" || {
        echo "error: installation failed; see above, and run this again" >&2
        exit 2
    }
    printf '%s\n' "$wanted" >"$stamp"
fi

.venv-benchmark/bin/python -W ignore - <<'END'
import speechbrain.nnet.RNN, espnet2.asr.encoder.rnn_encoder, espnet2.asr.decoder.rnn_decoder
from importlib.metadata import version
print("ready: SpeechBrain", version("speechbrain"), "and ESPnet", version("espnet"))
END

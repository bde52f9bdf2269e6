# Sourced by tests/run.sh and the recipes' scripts: `setup_venv REQUIREMENT` makes .venv if need be, installs what is asked
# for if it or pyproject.toml changed, and activates it.

setup_venv() {
    local wanted=$1 python stamp
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # none, or making it was interrupted
        for python in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
            [ -n "$python" ] && command -v "$python" >/dev/null &&
                "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
            python=
        done
        if [ -z "$python" ]; then
            echo "error: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python $0" >&2
            return 2
        fi
        echo "== Making .venv with $("$python" --version)"
        "$python" -m venv .venv || {
            echo "error: could not make .venv (Debian and Ubuntu need the python3-venv package)" >&2
            return 2
        }
        rm -f .venv/installed-* # by another, which is gone
    fi
    stamp=.venv/installed-$(printf %s "$wanted" | tr -c 'a-zA-Z0-9\n' _)
    if [ ! -e "$stamp" ] || ! cmp -s pyproject.toml "$stamp"; then
        echo "== Installing $wanted into .venv (PyTorch is large: about 3 GB to download, 5 GB on disk)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable "$wanted" || {
            echo "error: installation failed; see above, and run this again" >&2
            return 2
        }
        cp pyproject.toml "$stamp"
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
    if ! python -c 'import os, sys; sys.exit(os.path.realpath(sys.prefix) != os.path.realpath(".venv"))'; then
        echo "error: .venv was made in another folder and cannot move; remove it (rm -r .venv) and run this again" >&2
        return 2
    fi
}

# `is_number HOURS`: says so where it is none above 0.
is_number() {
    [[ $1 =~ ^[0-9]+(\.[0-9]+)?$ && $1 =~ [1-9] ]] && return
    echo "error: hours=$1: give a number of hours above 0, such as hours=40" >&2
    return 2
}

# `need_text VALUE`: the script ends where no text=[...] was given.
need_text() {
    if [ -z "$1" ]; then
        echo "error: no text given; say text=[FILE,FOLDER,...] (see the top of $0)" >&2
        exit 2
    fi
}

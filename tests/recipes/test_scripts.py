"""What the recipes' shell scripts do before they start anything that takes long."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_venv_whose_making_was_interrupted_is_made_again(tmp_path):
    """.venv/bin/python is there before pip is."""
    for name, content in (
        (".venv/bin/python", '[ -e made ] && exit 0; echo "No module named pip" >&2; exit 1'),
        ("python", 'case $* in *venv*) touch made; echo "$*" > asked;; esac'),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{content}\n")
        path.chmod(0o755)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    script = f"source {ROOT}/recipes/setup.sh; setup_venv .; setup_venv ."
    environment = os.environ | {"PYTHON": str(tmp_path / "python")}
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == "-m venv .venv\n"
    assert done.stdout.count("== Making .venv") == 1
    assert done.stdout.count("== Installing") == 1


def test_what_is_given_to_run_sh_counts_in_every_stage():
    """Hydra takes the last of two settings."""
    script = (ROOT / "recipes/librispeech/run.sh").read_text().replace("\\\n", " ")
    commands = re.findall(r"^.*recipes/librispeech/train\.py.*$", script, re.MULTILINE)
    assert len(commands) == 2
    assert all(command.rstrip().endswith('"${train[@]}"') for command in commands)

"""What the recipes' shell scripts do before they start anything that takes long."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
    (tmp_path / ".venv" / "bin" / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    (tmp_path / ".venv" / "installed-_").write_text("")  # of the one before
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
    assert all(command.rstrip().endswith('${train[@]+"${train[@]}"}') for command in commands)


def test_arrays_that_may_be_empty_are_no_unbound_variables_to_bash_3():
    """macOS has bash 3.2, to which `"${a[@]}"` of an empty array is an error under `set -u`."""
    filled = {("bottleneck", "workers"), *((name, "prepare") for name in ("an4", "language_model", "synthetic"))}
    for script in sorted((ROOT / "recipes").rglob("*.sh")):
        text = script.read_text()
        for name in re.findall(r"^\s*(\w+)=\(\)$", text, re.MULTILINE):
            if (script.parent.name, name) not in filled:
                guarded = f'${{{name}[@]+"${{{name}[@]}}"}}'
                assert f'"${{{name}[@]}}"' not in text.replace(guarded, ""), f"{script}: {name}"


def run_script(name: str, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A recipe's run.sh with commands in the place of Python's that print what they are called with."""
    (tmp_path / "recipes").mkdir()
    for path in ("recipes/setup.sh", f"recipes/{name}/run.sh", "recipes/synthetic/run.sh", "pyproject.toml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "activate").write_text("PATH=$PWD/.venv/bin:$PATH\n")
    for command in ("python", "torchrun"):
        (binaries / command).write_text('#!/bin/sh\n[ "$1" = -c ] && echo 1 && exit\necho "$@"\n')
        (binaries / command).chmod(0o755)
    script = tmp_path / "recipes" / name / "run.sh"
    return subprocess.run(["bash", script, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)


def test_settings_of_preparation_go_to_prepare_py(tmp_path):
    done = run_script("librispeech", tmp_path, "experiment=small", "corpus.base_url=http://m", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    prepare, train = (line for line in done.stdout.splitlines() if "prepare.py" in line or "train.py" in line)
    assert "corpus.download=true corpus.base_url=http://m corpus.subsets=[train-clean-5,dev-clean-2]" in prepare
    assert "base_url" not in train
    assert train.endswith("trainer.max_epochs=1")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("librispeech", ["experiment=small", "noises=x"], "leave that or these out"),
        ("librispeech", ["hours=3"], "hours= are of speech that synthetic voices read; add text="),
        ("librispeech", ["text=[a]", "hours=abc"], "hours=abc: give a number of hours above 0"),
        ("synthetic", ["text=[a]", "hours=-1"], "hours=-1: give a number of hours"),
        ("librispeech", ["text=[a]", "hours=0.0"], "hours=0.0: give a number of hours"),
    ],
)
def test_options_that_cannot_work_end_before_anything_begins(tmp_path, name, options, message):
    done = run_script(name, tmp_path, *options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr


def test_an4_writes_where_it_is_told(tmp_path):
    (tmp_path / "data/an4/audio/an4-train").mkdir(parents=True)  # of an earlier download
    (tmp_path / "corpora/an4-train").mkdir(parents=True)
    done = run_script("an4", tmp_path, "corpus.root=corpora", "output=runs/x", "noises=n")
    assert done.returncode == 0, done.stderr
    assert "runs/an4" not in done.stdout
    assert "init_from=runs/x/model output=runs/x/spliced corpus.train=" in done.stdout
    (splice,) = (line for line in done.stdout.splitlines() if "splice.py" in line)
    assert "root=corpora model_dir=runs/x/model" in splice


def test_a_venv_that_was_moved_is_noticed(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("PATH=/elsewhere/.venv/bin:$PATH\n")
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/true")
    (tmp_path / "pyproject.toml").write_text("")
    done = subprocess.run(
        ["bash", "-ec", f"source {ROOT}/recipes/setup.sh; setup_venv ."], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "made in another folder and cannot move; remove it" in done.stderr

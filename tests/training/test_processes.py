"""Two processes under torchrun: the losses of one with twice the batch, and checkpoints that go both ways."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import TRAIN, losses

from asr.bundle import load_bundle
from asr.training.run import train


@pytest.fixture
def plain(toy_settings):
    """No dropout, no masks: the processes' random numbers differ from one process's."""
    toy_settings["model"]["encoder"]["dropout"] = toy_settings["model"]["speller"]["dropout"] = 0.0
    toy_settings["training"]["spec_augment"] = {"frequency_masks": 1, "frequency_width": 0, "time_width": 0.0}
    toy_settings["corpus"]["batch_seconds"] = 3.0
    return toy_settings


def torchrun(settings: dict, folder: Path) -> None:
    script, path = folder / "run.py", folder / "settings.json"
    script.write_text(TRAIN)
    path.write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", script, path],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_equal_one_with_twice_the_batch_and_checkpoints_move(plain, tmp_path):
    two = plain | {"output": str(tmp_path / "two")}
    torchrun(two, tmp_path)
    one = json.loads(json.dumps(plain)) | {"output": str(tmp_path / "one")}
    one["trainer"]["accumulate"] = 2
    train(one)
    a, b = (load_bundle(Path(run["output"]) / "model").model for run in (one, two))
    for name, weight in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], weight, rtol=2e-2, atol=2e-3)
    history = [json.loads((Path(run["output"]) / "history.jsonl").read_text().splitlines()[-1]) for run in (one, two)]
    assert history[1]["dev/ctc"] == pytest.approx(history[0]["dev/ctc"], abs=2e-3)
    assert history[1]["dev/attention"] == pytest.approx(history[0]["dev/attention"], abs=2e-3)

    # From two processes to one.
    two["trainer"] = plain["trainer"] | {"max_epochs": 3}
    steps = max(losses(two["output"]))
    train(two)
    assert max(losses(two["output"])) > steps

"""Two processes under torchrun: the losses of one with twice the batch, and checkpoints that go both ways."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_resume import TRAIN, losses

from asr.bundle import load_bundle
from asr.config import from_mapping
from asr.model import ListenAttendSpell, ModelConfig
from asr.training.checkpoint import TrainingInterrupted
from asr.training.module import LasModule
from asr.training.run import dev_records, train


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
    plain["training"]["final_learning_rate"] = plain["training"]["learning_rate"]
    plain["trainer"]["average_decay"] = 0.0
    plain["trainer"]["max_steps"] = 4  # within the first epoch, whose last batches need not come out even
    two = plain | {"output": str(tmp_path / "two")}
    torchrun(two, tmp_path)
    one = json.loads(json.dumps(plain)) | {"output": str(tmp_path / "one")}
    one["trainer"]["accumulate"] = 2
    train(one)
    torch.manual_seed(plain["training"].get("seed", 1))
    first = ListenAttendSpell(from_mapping(ModelConfig, plain["model"])).state_dict()
    a, b = (load_bundle(Path(run["output"]) / "model").model.state_dict() for run in (one, two))
    moved = max(float((a[name] - first[name]).abs().max()) for name in a)
    apart = max(float((a[name] - b[name]).abs().max()) for name in a)
    assert moved > 2e-3
    assert apart < moved / 10  # Adam turns rounding of tiny gradients into steps; sums of other batches differ far more

    # From two processes to one, after the epoch where the two stopped.
    two["trainer"] = plain["trainer"] | {"max_steps": 6}
    train(two)
    assert max(losses(two["output"])) == 5
    assert min(step for step in losses(two["output"]) if step >= 4) == 4


def test_an_epoch_that_one_process_began_two_go_on_with(plain, tmp_path, monkeypatch):
    plain["trainer"] |= {"max_epochs": 2, "plots": 0}
    step = LasModule.training_step
    batches = []

    def interrupt(self, batch, batch_idx):
        batches.append(batch_idx)
        if batch_idx == int(0.7 * self.trainer.num_training_batches):
            batches.append(self.trainer.num_training_batches)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LasModule, "training_step", interrupt)
    with pytest.raises(TrainingInterrupted):
        train(plain)
    *heard, total = batches
    torchrun(plain, tmp_path)
    rest, both = total - len(heard), math.ceil(total / 2)
    assert len(heard) > both  # the second epoch would begin at once if batches were counted as before
    assert [(r["epoch"], r["step"]) for r in dev_records(Path(plain["output"])).values()] == [
        (1, len(heard) + math.ceil(rest / 2)),
        (2, len(heard) + math.ceil(rest / 2) + both),
    ]


@pytest.mark.parametrize(
    ("processes", "done", "is_last", "expected"),
    [(2, 3, False, 6), (1, 9, False, 4), (1, 13, True, 7), (3, 4, False, 6), (2, 7, True, 7)],
)
def test_batches_are_counted_for_the_processes_there_are(plain, monkeypatch, processes, done, is_last, expected):
    now = {(2, 3): 1, (1, 9): 2, (1, 13): 2, (3, 4): 2, (2, 7): 2}[processes, done]
    module = LasModule.from_settings(plain)
    monkeypatch.setattr(LasModule, "trainer", SimpleNamespace(world_size=now))
    current = {"ready": done, "started": done, "processed": done, "completed": done - 1}
    progress = {"is_last_batch": is_last, "current": current}
    checkpoint = {"processes": processes, "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    module.on_load_checkpoint(checkpoint)
    assert current == {"ready": expected, "started": expected, "processed": expected, "completed": expected - 1}

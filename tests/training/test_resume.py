"""A run that is killed or stopped goes on as if nothing had happened; what cannot go on says so at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from asr.bundle import load_bundle
from asr.corpus.text import prepare_text
from asr.errors import ConfigError, CorpusError, ModelError
from asr.training.checkpoint import TrainingInterrupted, latest_checkpoint
from asr.training.module import LasModule
from asr.training.run import dev_records, train

TRAIN = """
import json, sys, torch
from omegaconf import OmegaConf
from asr.training.recipe import run_training

torch.set_num_threads(1)
run_training(OmegaConf.create(json.load(open(sys.argv[1]))))
"""


def losses(run: str | Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(run) / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def start(settings: dict, folder: Path) -> subprocess.Popen:
    path = folder / f"settings-{Path(settings['output']).name}.json"
    path.write_text(json.dumps(settings))
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(path)], stderr=subprocess.PIPE, text=True, env=env)


def test_a_run_that_is_killed_or_stopped_in_mid_epoch_goes_on_as_if_never_stopped(toy_settings, tmp_path):
    toy_settings["trainer"]["max_epochs"] = 5
    toy_settings["corpus"] |= {"shares": {"train-toy": 0.9}, "batch_seconds": 3.5}  # each epoch on other utterances
    (tmp_path / "text.txt").write_text("\n".join(f"GOLD FISH {'AND HAND ' * i}" for i in range(1, 60)))
    prepare_text([tmp_path / "text.txt"], tmp_path / "text", held_out=0.05)
    toy_settings["corpus"] |= {"text": str(tmp_path / "text"), "text_characters": 300}
    whole = toy_settings | {"output": str(tmp_path / "whole")}
    train(whole)
    expected = losses(whole["output"])
    per_epoch = len(expected) // 5
    assert per_epoch >= 6

    for number in (signal.SIGKILL, signal.SIGTERM):
        killed = toy_settings | {"output": str(tmp_path / number.name)}
        killed["trainer"] = toy_settings["trainer"] | {"checkpoint_minutes": 1e-4}
        process = start(killed, tmp_path)
        checkpoints = Path(killed["output"]) / "checkpoints"
        deadline = time.monotonic() + 120
        while not any(int(p.stem.split("-")[1]) > per_epoch + 1 for p in checkpoints.glob("step-*.ckpt")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        said = process.communicate()[1].splitlines()
        stopped_at = torch.load(latest_checkpoint(checkpoints), weights_only=True)["global_step"]
        assert stopped_at < len(expected), "the run ended before it was stopped"
        if number == signal.SIGTERM:
            assert process.returncode == 128 + signal.SIGTERM
            file = (checkpoints / f"step-{stopped_at:07d}.ckpt").resolve()
            assert said[-1] == f"stopped at step {stopped_at}, saved {file}; the same command goes on"
        train(killed)
        assert_same_run(killed, whole, stopped_at)


def assert_same_run(resumed: dict, whole: dict, stopped_at: int) -> None:
    """Exactly: the same batches, the same random numbers, the same sums."""
    expected, found = losses(whole["output"]), losses(resumed["output"])
    # The last lines before a kill may not have reached TensorBoard's file; all after it must be there.
    assert set(range(stopped_at, len(expected))) <= set(found)
    assert found == {step: expected[step] for step in found}
    a, b = (load_bundle(Path(run["output"]) / "model").model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_ctrl_c_finishes_the_step_saves_and_stops_also_between_the_batches_of_a_step(
    toy_settings, tmp_path, monkeypatch
):
    toy_settings["trainer"] |= {"accumulate": 2}
    whole = toy_settings | {"output": str(tmp_path / "whole")}
    train(whole)
    step = LasModule.training_step
    before = signal.getsignal(signal.SIGINT)

    def interrupt(self, batch, batch_idx):
        if (self.trainer.current_epoch, batch_idx) == (1, 2):  # the first of the two batches of a step
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LasModule, "training_step", interrupt)
    with pytest.raises(TrainingInterrupted, match="the same command goes on") as stop:
        train(toy_settings)
    monkeypatch.undo()
    assert stop.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    newest = latest_checkpoint(Path(toy_settings["output"]) / "checkpoints")
    stopped_at = torch.load(newest, weights_only=True)["global_step"]
    assert newest.name == f"step-{stopped_at:07d}.ckpt"
    assert str(newest) in str(stop.value)
    train(toy_settings)
    assert_same_run(toy_settings, whole, stopped_at)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_that_is_killed_in_validation_validates_again(toy_settings, tmp_path, epochs):
    toy_settings["trainer"] |= {"max_epochs": epochs, "checkpoint_minutes": 1e-6}
    whole, killed = (toy_settings | {"output": str(tmp_path / name)} for name in ("whole", "killed"))

    class Kill(Callback):
        """What a kill would leave behind now."""

        def on_validation_start(self, trainer, module):
            if trainer.current_epoch == epochs - 1:
                shutil.copytree(Path(whole["output"]) / "checkpoints", Path(killed["output"]) / "checkpoints")

    train(whole, [Kill()])
    train(killed)
    records = [
        {key: record[key] for key in ("epoch", "step", "dev/wer", "dev/attention")}
        for run in (whole, killed)
        for record in [list(dev_records(Path(run["output"])).values())[-1]]
    ]
    assert records[0] == records[1]
    assert records[0]["epoch"] == epochs


def test_a_truncated_checkpoint_is_skipped_for_the_one_before(toy_settings, caplog):
    train(toy_settings)
    checkpoints = Path(toy_settings["output"]) / "checkpoints"
    good = latest_checkpoint(checkpoints)
    newest = checkpoints / "step-9999999.ckpt"
    newest.write_bytes(good.read_bytes()[:2000])
    assert latest_checkpoint(checkpoints) == good
    assert "step-9999999.ckpt is damaged and skipped" in caplog.text


def test_a_finished_run_is_not_started_again_by_accident(toy_settings):
    toy_settings["trainer"]["max_epochs"] = 1
    train(toy_settings)
    with pytest.raises(ConfigError, match="holds a run already: resume=auto goes on"):
        train(toy_settings | {"resume": "never"})
    other = json.loads(json.dumps(toy_settings))
    other["model"]["encoder"]["d"] = other["model"]["speller"]["d"] = 48
    with pytest.raises(ConfigError, match=r"other model settings \(encoder.d: 32 -> 48, speller.d: 32 -> 48\)"):
        train(other)
    with pytest.raises(ModelError, match="no such checkpoint"):
        train(toy_settings | {"resume": "/nowhere/at.all"})


def test_a_run_that_is_over_leaves_its_model_until_there_is_a_newer_checkpoint(toy_settings):
    toy_settings["trainer"]["max_epochs"] = 1
    weights = train(toy_settings) / "model.safetensors"
    written, content = weights.stat().st_mtime_ns, weights.read_bytes()
    assert train(toy_settings) == weights.parent
    assert weights.stat().st_mtime_ns == written
    for checkpoint in (Path(toy_settings["output"]) / "checkpoints").iterdir():
        checkpoint.touch()
    train(toy_settings)
    assert weights.stat().st_mtime_ns > written
    weights.unlink()
    train(toy_settings)
    assert weights.read_bytes() == content
    toy_settings["corpus"] |= {"train": ["dev-toy"]}  # is not what this model has heard
    with pytest.raises(ConfigError, match=r"run holds a finished run on train-toy; choose another output="):
        train(toy_settings)


def test_clear_errors_before_time_is_lost(toy_settings, tmp_path):
    toy_settings["corpus"]["train"] = ["train-other"]
    with pytest.raises(CorpusError, match=r"cuts_train-other.jsonl.gz: no such manifest.*here: dev-toy, train-toy"):
        train(toy_settings)
    toy_settings["corpus"]["train"] = ["train-toy"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write there"):
        train(toy_settings | {"output": str(tmp_path / "file" / "run")})
    toy_settings["model"]["encoder"]["depth"] = 3
    with pytest.raises(ConfigError, match=r"unknown setting model.encoder.depth; there are: d, dropout"):
        train(toy_settings)


def test_what_a_run_leaves_behind(toy_settings):
    folder = train(toy_settings)
    run = Path(toy_settings["output"])
    assert folder == run / "model"
    bundle = load_bundle(folder)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == [1, 2]
    assert bundle.training["dev_wer"] in [record["dev/wer"] for record in history]
    assert bundle.training["corpora"] == ["train-toy"]
    assert all({"dev/wer", "dev/wer_ctc", "dev/wer_attention"} <= record.keys() for record in history)
    assert not torch.equal(bundle.normalizer.mean, torch.zeros(40))  # global CMVN travels with the model
    assert (run / "dropped.txt").exists()
    assert list((run / "tensorboard").glob("events.*"))

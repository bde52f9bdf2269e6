"""What is kept of a run: the best, the mean of the best, and what was there before the disk was full."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import torch

from asr.bundle import load_bundle
from asr.errors import ModelError
from asr.training import run
from asr.training.checkpoint import DurableCheckpointIO, ExponentialAverage, average_checkpoints, load_checkpoint
from asr.training.run import train


def names(settings) -> list[str]:
    return sorted(path.name for path in (Path(settings["output"]) / "checkpoints").iterdir())


def test_a_full_disk_costs_one_checkpoint_and_no_run(toy_settings, monkeypatch, caplog):
    toy_settings["trainer"] |= {"max_epochs": 4, "early_stop_epochs": 9}
    sync, kept = os.fsync, []

    def full(descriptor):
        if found := names(toy_settings):  # else it is about the features
            kept.append(found)
        if len(kept) == 3:  # the best and the first epoch are there
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(run.LasModule, "on_validation_epoch_end", lambda self: self.log("dev/wer", 1.0))
    train(toy_settings)
    assert kept[2] == ["best.ckpt", "epoch-0000.ckpt", "epoch-0001.ckpt.partial"]
    assert kept[3] == ["best.ckpt", "epoch-0000.ckpt", "epoch-0002.ckpt.partial"]  # the old one is still there
    assert names(toy_settings) == ["best.ckpt", "epoch-0003.ckpt"]
    assert "epoch-0001.ckpt: NOT written (No space left on device); training goes on" in caplog.text


def test_a_file_that_the_system_cuts_short_leaves_the_one_before(tmp_path):
    checkpoint_io, path = DurableCheckpointIO(), tmp_path / "a.ckpt"
    checkpoint_io.save_checkpoint({"a": torch.zeros(9)}, path)
    assert checkpoint_io.failure is None
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        checkpoint_io.save_checkpoint({"a": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint_io.failure == "File too large"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_of_n_checkpoints_the_mean_is_exported_where_it_is_no_worse(toy_settings, monkeypatch):
    toy_settings["training"]["average"] = 2
    toy_settings["trainer"]["max_epochs"] = 3
    wers = iter([0.9, 0.7, 0.8])
    monkeypatch.setattr(run.LasModule, "on_validation_epoch_end", lambda self: self.log("dev/wer", next(wers)))
    monkeypatch.setattr(run, "_dev_wer_of_mean", lambda *_: 0.6)
    model = train(toy_settings)
    folder = Path(toy_settings["output"]) / "checkpoints"
    kept = sorted(folder.glob("best-*.ckpt"))
    assert len(kept) == 2
    third, second = (load_checkpoint(path)["state_dict"] for path in reversed(kept))
    mean = average_checkpoints(kept)["state_dict"]
    assert mean.keys() == second.keys()
    for name in mean:
        torch.testing.assert_close(mean[name], (second[name] + third[name]) / 2)
    bundle = load_bundle(model)
    assert bundle.training["averaged"] == 2
    assert bundle.training["dev_wer"] == 0.6
    torch.testing.assert_close(bundle.model.ctc.weight, mean["model.ctc.weight"].half().float())
    # Without the model the same command only exports; now the mean is worse.
    shutil.rmtree(model)
    monkeypatch.setattr(run, "_dev_wer_of_mean", lambda *_: 0.71)
    bundle = load_bundle(train(toy_settings))
    assert "averaged" not in bundle.training
    torch.testing.assert_close(bundle.model.ctc.weight, second["model.ctc.weight"].half().float())
    # So does a run that has been moved.
    moved = toy_settings | {"output": toy_settings["output"] + "-moved"}
    Path(toy_settings["output"]).rename(moved["output"])
    assert torch.equal(load_bundle(train(moved)).model.ctc.weight, bundle.model.ctc.weight)


def test_dev_wer_of_the_mean_is_that_of_validation(toy_settings, monkeypatch):
    toy_settings["training"]["average"] = 2
    toy_settings["training"]["ctc_weight"] = 0.9
    found = []
    measure = run._dev_wer_of_mean

    def spy(paths, trainer, module, data):
        found.append(measure(paths[:1], trainer, module, data))  # the "mean" of the best one alone
        return 9.9

    monkeypatch.setattr(run, "_dev_wer_of_mean", spy)
    bundle = load_bundle(train(toy_settings))
    assert found == [pytest.approx(bundle.training["dev_wer"], abs=1e-4)]


def test_a_checkpoint_of_ctc_alone_never_beats_one_with_a_trained_speller(toy_settings, monkeypatch):
    toy_settings["training"]["ctc_only_epochs"] = 1
    toy_settings["trainer"] |= {"max_epochs": 3, "early_stop_epochs": 1}
    wers = iter([0.2, 0.7, 0.6])
    monkeypatch.setattr(run.LasModule, "on_validation_epoch_end", lambda self: self.log("dev/wer", next(wers)))
    train(toy_settings)
    history = [json.loads(line) for line in (Path(toy_settings["output"]) / "history.jsonl").read_text().splitlines()]
    assert [record["dev/wer"] for record in history] == [0.2, 0.7, 0.6]  # and early stopping did not mind
    best = load_checkpoint(Path(toy_settings["output"]) / "checkpoints" / "best.ckpt")
    assert best["global_step"] == history[-1]["step"]


def test_checkpoints_that_cannot_be_read_or_averaged_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"none.ckpt: no such checkpoint"):
        load_checkpoint(tmp_path / "none.ckpt")
    state = {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": {}, "global_step": 1}
    good, other, wrong, short = (tmp_path / f"{name}.ckpt" for name in ("good", "other", "wrong", "short"))
    torch.save(state, good)
    torch.save(state | {"state_dict": {"a": torch.ones(3)}}, other)
    torch.save({"a": 1}, wrong)
    short.write_bytes(good.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"short.ckpt: a damaged checkpoint"):
        load_checkpoint(short)
    with pytest.raises(ModelError, match=r"wrong.ckpt: not a training checkpoint"):
        load_checkpoint(wrong)
    with pytest.raises(ModelError, match=r"other.ckpt: is of another model"):
        average_checkpoints([good, other])


def test_in_the_mean_a_residual_layer_that_one_model_lacks_adds_less(tmp_path):
    def state(layers, value):
        names = [f"model.encoder.{part}.{i}.w" for i in range(layers) for part in ("layers", "norms")]
        encoder = {"layers": layers, "residual": 2}
        weights = {name: torch.full((2,), value) for name in names}
        return {"state_dict": weights, "hyper_parameters": {"model": {"encoder": encoder}}, "global_step": 1}

    deep, flat, other = (tmp_path / f"{name}.ckpt" for name in ("deep", "flat", "other"))
    torch.save(state(4, 6.0), deep)
    torch.save(state(3, 2.0), flat)
    mean = average_checkpoints([deep, flat])["state_dict"]
    expected = {f"model.encoder.{part}.{i}.w": 4.0 for i in range(3) for part in ("layers", "norms")}
    expected |= {"model.encoder.layers.3.w": 6.0, "model.encoder.norms.3.w": 3.0}  # its own, scaled half as large
    assert {name: weight.tolist() for name, weight in mean.items()} == {n: [v, v] for n, v in expected.items()}
    for first, second in ((flat, deep), (deep, other)):  # more than the first has; without a layer that is not residual
        torch.save(state(1, 2.0), other)
        with pytest.raises(ModelError, match="is of another model"):
            average_checkpoints([first, second])


def test_the_average_is_where_the_model_is_trained():
    average = ExponentialAverage(0.9)  # set up before the model goes there
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    average.setup(trainer, lightning.LightningModule(), "fit")
    assert average._device == torch.device("meta")

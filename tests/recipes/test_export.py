"""recipes/export.py: any checkpoint of a run becomes a model folder."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from asr.bundle import load_bundle
from asr.training.checkpoint import average_checkpoints, load_checkpoint
from asr.training.run import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def export():
    spec = importlib.util.spec_from_file_location("export", ROOT / "recipes" / "export.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments, code=0):
        result = CliRunner().invoke(module.app, [str(a) for a in arguments])
        assert result.exit_code == code, result.output
        return result

    return call


def ctc(folder: Path) -> torch.Tensor:
    return load_bundle(folder).model.ctc.weight


def test_best_last_mean_or_any_checkpoint_becomes_a_model(toy_settings, tmp_path, export, monkeypatch):
    toy_settings["training"]["average"] = 2
    monkeypatch.setattr("asr.training.run._dev_wer_of_mean", lambda *_: 0.0)
    model = train(toy_settings)
    run = Path(toy_settings["output"])
    checkpoints = run / "checkpoints"
    written, summary = ctc(model), load_bundle(model).training
    (model / "model.safetensors").unlink()

    def weight(*paths):
        return average_checkpoints(paths)["state_dict"]["model.ctc.weight"].half().float()

    best = sorted(checkpoints.glob("best-*.ckpt"))
    export(run, "--average", 2)
    assert torch.equal(ctc(model), written)
    export(run, "--average", 2, "--output", tmp_path / "mean")
    assert torch.equal(ctc(tmp_path / "mean"), weight(*best))
    export(run, "--output", tmp_path / "best")
    assert any(torch.equal(ctc(tmp_path / "best"), weight(path)) for path in best)
    last = checkpoints / "epoch-0001.ckpt"
    assert load_checkpoint(last)["global_step"] == max(load_checkpoint(path)["global_step"] for path in best)
    export(run, "--checkpoint", "last", "--output", tmp_path / "last")
    assert torch.equal(ctc(tmp_path / "last"), weight(last))
    export(run, "--checkpoint", "epoch-0001.ckpt", "--output", tmp_path / "named")
    export(last, "--int8", "--output", tmp_path / "int8")
    torch.testing.assert_close(ctc(tmp_path / "int8"), weight(last), atol=float(weight(last).abs().max()) / 250, rtol=0)
    assert not torch.equal(ctc(tmp_path / "int8"), weight(last))
    export(last, "--output", tmp_path / "path")
    assert torch.equal(ctc(tmp_path / "named"), ctc(tmp_path / "path"))
    shutil.copytree(run, tmp_path / "more")
    (more,) = [path for path in best if not torch.equal(weight(path), ctc(tmp_path / "best"))]
    for output in (tmp_path / "more" / "checkpoints").glob("best-*"):
        if output.name != more.name:
            output.unlink()
    export(run, tmp_path / "more", "--output", tmp_path / "two")
    assert torch.equal(ctc(tmp_path / "two"), weight(*best))
    assert load_bundle(tmp_path / "two").training["averaged"] == 2
    export(tmp_path / "best", last, "--output", tmp_path / "with")
    mean = (ctc(tmp_path / "best") + weight(last)) / 2
    torch.testing.assert_close(ctc(tmp_path / "with"), mean, atol=1e-3, rtol=1e-3)
    assert not torch.equal(ctc(tmp_path / "with"), ctc(tmp_path / "best"))
    assert load_bundle(tmp_path / "with").training["steps"] == load_bundle(tmp_path / "path").training["steps"]
    exported = load_bundle(tmp_path / "last").training
    assert {key: exported[key] for key in ("corpora", "hours", "dev")} == {
        key: summary[key] for key in ("corpora", "hours", "dev")
    }
    assert 0 < exported["dev_wer"] <= 2

    def fails(*arguments):
        result = export(*arguments, code=2)
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.output
        return lines[0]

    assert "error: " in fails(tmp_path / "none")
    assert "no such run folder" in fails(tmp_path / "none")
    assert "not a run folder" in fails(tmp_path)
    assert "only 2 of the best are kept; train with training.average=3" in fails(run, "--average", 3)
    assert "no such checkpoint" in fails(run, "--checkpoint", "epoch-0009.ckpt")
    assert "give the run's folder" in fails(last, "--average", 2)
    assert "say where to write it with --output" in fails(run, last)
    assert "name a training run too" in fails(tmp_path / "best", "--output", tmp_path / "two")
    assert "no such run folder" in fails(run, tmp_path / "none", "--output", tmp_path / "two")
    assert "leave out --checkpoint last" in fails(run, "--checkpoint", "last", "--average", 2)
    for path in checkpoints.iterdir():
        path.write_bytes(path.read_bytes()[:3000])
    assert "a damaged checkpoint" in fails(run)
    assert "a damaged checkpoint" in fails(last)


def test_a_run_of_a_language_model_is_named(tmp_path, export):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-0000005.ckpt").touch()
    (tmp_path / "history.jsonl").write_text('{"steps": 5, "minutes": 0.1}\n')
    for given in (tmp_path, tmp_path / "checkpoints" / "step-0000005.ckpt"):
        error = export(given, code=2).stderr
        assert error.startswith(f"error: {tmp_path}/history.jsonl: not a recogniser's run; a language model's is in")
        assert error.count("\n") == 1


def test_help_shows_commands(export):
    assert "python recipes/export.py runs/mini --average 5" in export("--help").output

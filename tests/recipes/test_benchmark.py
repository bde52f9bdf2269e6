"""The benchmark room: its batches, its arithmetic, and that its commands answer with what their readers expect."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "recipes" / "benchmark"


@pytest.fixture(autouse=True)
def benchmark_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK))


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, BENCHMARK / script, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("name", "shape", "lengths", "counts"),
    [
        ("a", (4, 800, 80), (800, 800), (100, 100)),
        ("b", (16, 1250, 80), (1250, 1250), (180, 180)),
        ("c", (16, 1250, 80), (1250, 1000), (180, 144)),
    ],
)
def test_batches_have_the_shapes_of_the_issue(
    name: str, shape: tuple[int, ...], lengths: tuple[int, int], counts: tuple[int, int]
) -> None:
    from _step import CASES, make_batch

    batch = make_batch(CASES[name])
    assert batch.frames.shape == shape
    assert batch.characters.shape == (shape[0], counts[0] + 2)
    assert (int(batch.lengths[0]), int(batch.lengths[-1])) == lengths
    assert (int(batch.character_lengths[0]), int(batch.character_lengths[-1])) == counts
    assert batch.lengths.tolist() == sorted(batch.lengths.tolist(), reverse=True)  # ESPnet's packing wants that


def test_batches_pad_with_zeros_and_are_the_same_every_time() -> None:
    from _step import BOS, CASES, EOS, FIRST_CHARACTER, VOCABULARY, make_batch

    batch, again = make_batch(CASES["c"]), make_batch(CASES["c"])
    assert torch.equal(batch.frames, again.frames)
    assert torch.equal(batch.characters, again.characters)
    for frames, length, row, count in zip(*vars(batch).values(), strict=True):
        assert frames[length - 1].abs().min() > 0
        assert not frames[length:].any()
        assert row[0] == BOS
        assert row[count + 1] == EOS
        text = row[1 : count + 1]
        assert text.min() >= FIRST_CHARACTER
        assert text.max() < VOCABULARY - 1
        assert not row[count + 2 :].any()


def test_our_side_is_the_small_preset() -> None:
    from _peers.asr_las import build

    from asr.model import EncoderConfig

    system = build()
    assert system.model.config.encoder == EncoderConfig(d=512, layers=4)
    assert 10.5e6 < system.model.num_parameters < 12e6


def test_a_step_moves_the_weights() -> None:
    from _peers.asr_las import build
    from _step import CASES, make_batch, run_step

    torch.manual_seed(0)
    system = build("tiny")
    before = [p.detach().clone() for p in system.model.parameters()]
    loss = run_step(system, system.optimizer(), make_batch(CASES["tiny"]), "fp32")
    assert loss.isfinite()
    assert all(not torch.equal(p, b) for p, b in zip(system.model.parameters(), before, strict=True))


def test_the_budget_leaves_at_least_one_measured_step() -> None:
    from _peers.asr_las import build
    from _step import CASES, make_batch, measure

    numbers = measure(build("tiny"), make_batch(CASES["tiny"]), "fp32", steps=5, warmup=2, budget=0.0)
    assert numbers["steps"] == 1
    assert "budget" in numbers["note"]


def result(system: str, precision: str, seconds: float, parameters: int = 100) -> dict:
    return {
        "system": system,
        "case": "a",
        "precision": precision,
        "seconds": seconds,
        "processor_seconds": seconds * 2,
        "parameters": parameters,
    }


def test_ratios_take_the_best_precision_of_both_sides() -> None:
    from train_step import ratios

    rows = [result("asr", "fp32", 2.0), result("asr", "bf16", 1.0), result("p", "fp32", 3.0), result("p", "bf16", 4.0)]
    (pair,) = ratios(rows)
    assert pair["ratio"] == pytest.approx(3.0)
    assert pair["processor_ratio"] == pytest.approx(3.0)
    assert (pair["peer_precision"], pair["precision"]) == ("fp32", "bf16")


def test_parameter_counts_too_far_apart_are_refused() -> None:
    from train_step import check_parameters

    check_parameters([result("asr", "fp32", 1.0, 100), result("p", "fp32", 1.0, 91)])
    with pytest.raises(SystemExit, match="more than 10% apart"):
        check_parameters([result("asr", "fp32", 1.0, 100), result("p", "fp32", 1.0, 89)])


def test_train_step_prints_one_json_object() -> None:
    done = run(
        "train_step.py", "--systems", "asr", "--cases", "tiny", "--precisions", "fp32", "--steps", "1", "--warmup", "1",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "results", "ratios", "skipped"}
    assert {"processor", "threads", "device", "torch", "date"} <= set(report["machine"])
    (row,) = report["results"]
    assert row["system"] == "asr"
    assert row["steps"] == 1
    assert row["seconds"] > 0
    assert row["processor_seconds"] > 0
    assert row["speech_seconds"] == pytest.approx(1.44)  # 80 + 64 frames
    assert report["skipped"] == []


def test_peers_without_their_environment_are_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import train_step

    monkeypatch.setattr(train_step, "PEER_PYTHON", tmp_path / "python")
    job = {"system": "speechbrain", "case": "tiny", "precision": "fp32", "threads": 1}
    row, reason = train_step.run_job(job)
    assert row is None
    assert "setup.sh" in reason


@pytest.mark.parametrize("system", ["speechbrain", "espnet/4", "espnet/8"])
def test_peers_have_our_size_and_run(system: str) -> None:
    import train_step
    from _peers.asr_las import build

    python, reason = train_step.python_for(system)
    if python is None:
        pytest.skip(reason)
    job = {"system": system, "case": "tiny", "precision": "fp32", "threads": 1, "steps": 1, "warmup": 1}
    row, reason = train_step.run_job(job)
    assert row is not None, reason
    train_step.check_parameters([row, result("asr", "fp32", 1.0, build().model.num_parameters)])
    assert row["last_loss"] < row["first_loss"]


def test_the_profile_counts_an_lstm_by_hand() -> None:
    from _profile import multiply_adds, part_of

    lstm = torch.nn.LSTM(6, 4, batch_first=True)
    x = torch.zeros(2, 5, 6)
    assert multiply_adds("speller LSTM 1", lstm, (x,), lstm(x)) == 2 * 5 * 4 * 4 * (6 + 4)
    assert part_of("speller.lstms.1", lstm) == "speller LSTM 2"
    assert part_of("speller.attentions.0", torch.nn.Identity()) == "attention"
    assert part_of("encoder", torch.nn.Identity()) is None


def test_the_profile_accounts_for_the_whole_step() -> None:
    done = run("train_step.py", "--profile", "--cases", "tiny", "--precisions", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    (profile,) = json.loads(done.stdout)["profiles"]
    parts = {p["part"]: p for p in profile["parts"]}
    assert {"encoder LSTM 1", "speller LSTM 2", "attention", "losses", "clip and optimiser"} <= set(parts)
    assert sum(p["forward"] + p["backward"] for p in parts.values()) == pytest.approx(profile["seconds"])
    assert all(parts[f"encoder LSTM {i}"]["backward"] > 0 for i in (1, 2, 3, 4))
    assert 0 < profile["floor"] < profile["seconds"]


def test_features_measures_all_four() -> None:
    done = run("features.py", "--seconds", "1", "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["frames"] == 101
    assert len(report["results"]) == 4
    assert all(r["frames_per_second"] > 0 for r in report["results"])


def test_data_without_manifests_says_what_to_do(tmp_path: Path) -> None:
    done = run("data.py", "--manifests", str(tmp_path))
    assert done.returncode == 2
    assert "run prepare.py first" in done.stderr


def test_padding_share_is_what_the_batches_waste() -> None:
    from types import SimpleNamespace

    from data import padding_share

    frames = SimpleNamespace(index={("x", 1.0): (0, 100), ("y", 1.0): (100, 50), ("z", 1.0): (150, 30)})
    plan = [[("x", 1.0), ("y", 1.0)], [("z", 1.0)]]
    assert padding_share(plan, frames) == pytest.approx(50 / 230)

"""The decoding benchmark: every system emits what it is asked for, and the command answers with what readers expect."""

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
    monkeypatch.delitem(sys.modules, "decode", raising=False)  # recipes/librispeech has one too


def test_states_are_the_same_every_time() -> None:
    from _decode import make_states

    assert make_states(2, 12).shape == (2, 12, 512)
    assert torch.equal(make_states(2, 12), make_states(2, 12))
    assert not torch.equal(make_states(2, 12)[0], make_states(2, 12)[1])


@pytest.mark.parametrize("ctc", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_our_search_emits_exactly_the_characters_asked_for(ctc: bool, precision: torch.dtype) -> None:
    from _decode import Search, make_states
    from _peers.asr_las import build
    from _step import EOS

    torch.manual_seed(0)
    system = build()
    system.model.to(precision).eval()
    with torch.no_grad():  # without the benchmark's scorer this speller would end at once
        system.model.speller.output.bias[EOS] = 5.0
    h = make_states(2, 12).to(precision)
    for tokens in (1, 5):
        found = system.decoder(Search(beam=3, tokens=tokens, frames=12, ctc=ctc))(h)
        assert [len(ids) for ids in found] == [tokens, tokens]
        assert all(EOS not in ids for ids in found)


def test_another_number_of_characters_is_an_error() -> None:
    from _decode import measure

    h = torch.zeros(2, 12, 512)
    with pytest.raises(RuntimeError, match=r"asked for 5 characters of 2 utterances, got \[5, 4\]"):
        measure(lambda h: [[7] * 5, [7] * 4], h, tokens=5)
    with pytest.raises(RuntimeError, match="of 2 utterances, got"):
        measure(lambda h: [[7] * 5], h, tokens=5)


def test_the_budget_leaves_one_measured_search_after_the_warm_up() -> None:
    from _decode import measure

    calls = []

    def decode(h: torch.Tensor) -> list[list[int]]:
        calls.append(h)
        return [[7] * 5]

    numbers = measure(decode, torch.zeros(1, 12, 512), tokens=5, repeats=4, budget=0.0)
    assert (len(calls), numbers["repeats"], len(numbers["all_seconds"])) == (2, 1, 1)
    assert "budget" in numbers["note"]
    numbers = measure(decode, torch.zeros(1, 12, 512), tokens=5, repeats=4)
    assert (len(calls), numbers["repeats"], numbers["note"]) == (2 + 5, 4, "")


def row(system: str, precision: str, seconds: float, batch: int = 8, ctc: bool = True) -> dict:
    return {
        "system": system,
        "precision": precision,
        "batch": batch,
        "ctc": ctc,
        "seconds": seconds,
        "processor_seconds": seconds / 2,
    }


def test_ratios_are_within_a_case_and_against_each_of_our_precisions() -> None:
    from decode import ratios

    rows = [row("asr", "fp32", 2.0), row("asr", "bf16", 1.0), row("asr", "fp32", 9.0, batch=1)]
    rows += [row("speechbrain", "fp32", 8.0), row("espnet/4", "fp32", 20.0), row("speechbrain", "fp32", 9.0, ctc=False)]
    found = {(r["peer"], r["precision"]): r for r in ratios(rows)}
    assert len(found) == 4
    assert found["speechbrain", "fp32"]["ratio"] == pytest.approx(4.0)
    assert found["speechbrain", "bf16"]["ratio"] == pytest.approx(8.0)
    assert found["espnet/4", "fp32"]["processor_ratio"] == pytest.approx(10.0)
    assert found["speechbrain", "fp32"]["must"] == 4.0
    assert found["espnet/4", "fp32"]["must"] is None


def test_decode_prints_one_json_object() -> None:
    done = subprocess.run(
        [
            sys.executable, BENCHMARK / "decode.py", "--systems", "asr", "--precisions", "fp32", "--batch", "2",
            "--ctc", "--beam", "2", "--tokens", "3", "--frames", "12", "--repeats", "1", "--json",
        ],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"machine", "search", "results", "ratios", "skipped"}
    assert report["search"] == {"beam": 2, "tokens": 3, "frames": 12}
    (result,) = report["results"]
    assert (result["system"], result["precision"], result["batch"], result["ctc"]) == ("asr", "fp32", 2, True)
    assert (result["emitted"], result["repeats"]) == (3, 1)
    assert 0 < result["decoding_parameters"] < result["parameters"]
    assert result["ms_per_token"] == pytest.approx(1000 * result["seconds"] / 6)
    assert result["real_time_factor"] == pytest.approx(result["seconds"] / (2 * 0.48))
    assert report["ratios"] == report["skipped"] == []


def test_more_characters_than_ctc_has_frames_for_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import decode

    with pytest.raises(SystemExit):
        decode.main(["--tokens", "7", "--frames", "13"])
    assert "at least twice --tokens" in capsys.readouterr().err


def test_peers_without_their_environment_are_skipped_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import decode
    import train_step

    monkeypatch.setattr(train_step, "PEER_PYTHON", tmp_path / "python")
    with pytest.raises(SystemExit):
        decode.main(["--systems", "speechbrain", "--batch", "1", "--no-ctc", "--json"])
    (skipped,) = json.loads(capsys.readouterr().out)["skipped"]
    assert (skipped["system"], skipped["batch"], skipped["ctc"]) == ("speechbrain", 1, False)
    assert "setup.sh" in skipped["reason"]


@pytest.mark.parametrize("ctc", [False, True])
@pytest.mark.parametrize("system", ["speechbrain", "espnet/4"])
def test_peers_emit_as_many_characters_as_we_do(system: str, ctc: bool) -> None:
    import decode
    import train_step

    python, reason = train_step.python_for(system)
    if python is None:
        pytest.skip(reason)
    job = {"system": system, "batch": 2, "ctc": ctc, "beam": 3, "tokens": 5, "frames": 12, "threads": 1, "repeats": 1}
    result, reason = decode.run_job(python, job)
    assert result is not None, reason
    assert (result["emitted"], result["batch"], result["ctc"]) == (5, 2, ctc)
    assert 10.0e6 < result["parameters"] < 12.2e6

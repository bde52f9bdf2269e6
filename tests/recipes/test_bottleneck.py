"""The bottleneck room: its corpus, its grid, one run of it, and what figures are made of."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asr.corpus.dataset import cut_text, load_cuts
from asr.errors import ConfigError
from asr.scoring import score
from asr.training.module import LasModule

ROOT = Path(__file__).parents[2]
DECODERS = ("attention", "input_feeding", "cho", "fixed")


@pytest.fixture(autouse=True)
def bottleneck_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "recipes" / "bottleneck"))


def settings(*overrides: str) -> dict:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return OmegaConf.to_container(compose("train_bottleneck", list(overrides)), resolve=True)


def tone(word: str, tempo: float) -> np.ndarray:
    """A voice for tests: half a second of a pitch for each word, and silence around it."""
    t = np.arange(round(12000 / tempo)) / 24000
    silence = np.zeros(2400, np.float32)
    return np.concatenate([silence, np.sin(2 * np.pi * (200 + 40 * sum(map(ord, word)) % 2000) * t), silence])


def small_corpus(**changed):
    from prepare import WordCorpus

    given = yaml.safe_load((ROOT / "conf" / "corpus" / "bottleneck.yaml").read_text())
    given["subsets"] = {
        "words-train": {"voices": 3, "words": 24},
        "words-dev": {"voices": 2, "utterances": 1},
        "words-test": {"voices": 2, "utterances": 2},
    }
    return WordCorpus(**{k: tuple(v) if isinstance(v, list) else v for k, v in (given | changed).items()})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "recipes" / "bottleneck"))
    from prepare import prepare

    output = tmp_path_factory.mktemp("bottleneck")
    prepare(small_corpus(), output, tone)
    sys.path.remove(str(ROOT / "recipes" / "bottleneck"))
    return output


# ---- the corpus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subset", "counts"),
    [
        ("words-train", [24, 12, 8, 6, 4, 4, 3, 3, 2, 2, 2, 2]),  # 24 words of each length, as far as they go
        ("words-dev", [1] * 12),
        ("words-test", [2] * 12),
    ],
)
def test_every_length_has_its_share_and_no_word_comes_twice(corpus, subset, counts):
    texts = [cut_text(cut).split() for cut in load_cuts(corpus, [subset])]
    lengths = [len(words) for words in texts]
    assert [lengths.count(n) for n in range(1, 13)] == counts
    assert len(texts) == sum(counts)
    assert all(len(set(words)) == len(words) for words in texts)


def test_words_may_be_drawn_again_where_the_settings_say_so(tmp_path):
    from prepare import prepare

    prepare(small_corpus(repeats=True, words=("one", "two")), tmp_path, tone)
    longest = max(load_cuts(tmp_path, ["words-train"]), key=lambda cut: len(cut_text(cut)))
    assert set(cut_text(longest).split()) == {"ONE", "TWO"}


def test_no_voice_of_the_training_set_speaks_in_another(corpus):
    voices = [
        {cut.id.split("-")[0] for cut in load_cuts(corpus, [s])} for s in ("words-train", "words-dev", "words-test")
    ]
    assert [len(v) for v in voices] == [3, 2, 2]
    assert len(set.union(*voices)) == 7


def test_longer_texts_are_longer_speech(corpus):
    durations = {n: [] for n in range(1, 13)}
    for cut in load_cuts(corpus, ["words-train"]):
        durations[len(cut_text(cut).split())].append(cut.duration)
    means = [np.mean(d) for d in durations.values()]
    assert means == sorted(means)


def test_the_same_settings_are_not_said_again_and_others_are(corpus, tmp_path, capsys):
    from prepare import prepare

    def silent(word: str, tempo: float) -> np.ndarray:
        raise AssertionError("synthesised again")

    prepare(small_corpus(), corpus, silent)
    assert "is there already" in capsys.readouterr().out
    copy = Path(shutil.copytree(corpus, tmp_path / "copy"))
    for seed in (2, small_corpus().seed):  # once begun, the others' audio is no longer whole
        with pytest.raises(AssertionError, match="synthesised again"):
            prepare(small_corpus(seed=seed), copy, silent)
        assert not list(copy.glob("*.jsonl.gz"))  # nor do they say what is said
    shutil.copytree(corpus / "audio", copy / "audio", dirs_exist_ok=True)
    prepare(small_corpus(longest=1), copy, tone)
    said = load_cuts(copy, ["words-train", "words-dev", "words-test"])
    assert len(list((copy / "audio").rglob("*.flac"))) == len(said) == 24 + 1 + 2
    with pytest.raises(ConfigError, match=r"cannot write there \(Not a directory\); choose another output="):
        prepare(small_corpus(), Path(__file__) / "x", tone)


def test_a_voice_changes_pitch_and_tempo_and_cuts_silence():
    from prepare import Voice

    rng = random.Random(0)
    plain = Voice(pitch=1.0, tempo=1.0, tilt=0.0).speak("one", tone, 0.0, rng)
    high = Voice(pitch=1.25, tempo=1.0, tilt=0.0).speak("one", tone, 0.0, rng)
    fast = Voice(pitch=1.0, tempo=2.0, tilt=0.0).speak("one", tone, 0.0, rng)
    assert np.abs(plain).max() == pytest.approx(1.0)
    assert len(plain) == pytest.approx(8000, rel=0.15)  # half a second; what was silence is gone
    assert len(high) == pytest.approx(len(plain), rel=0.15)
    assert len(fast) == pytest.approx(len(plain) / 2, rel=0.2)

    def peak(samples: np.ndarray) -> float:
        return np.abs(np.fft.rfft(samples, 65536)).argmax() * 16000 / 65536

    assert peak(high) == pytest.approx(1.25 * peak(plain), rel=0.01)
    assert peak(fast) == pytest.approx(peak(plain), rel=0.01)


def test_the_settings_fit_the_corpus_and_wrong_ones_end_in_one_line(tmp_path):
    script = ROOT / "recipes" / "bottleneck" / "prepare.py"
    for option, message in (
        ("corpus.longest=15", "corpus: longest is 15, but only 14 words can be said without a repetition"),
        ("corpus.words=[one,true]", "corpus.words: each should be str, not True; quote yes, no, on and off in YAML"),
    ):
        done = subprocess.run(
            [sys.executable, script, option, f"output={tmp_path}"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert not any(tmp_path.iterdir())


# ---- the grid --------------------------------------------------------------------------------------------------------


def test_the_four_decoders_have_one_encoder_and_the_same_parameters_within_5_percent():
    models = {name: LasModule.from_settings(settings(f"decoder={name}")).model for name in DECODERS}
    counts = [model.num_parameters for model in models.values()]
    assert max(counts) <= 1.05 * min(counts)
    assert len({model.config.encoder for model in models.values()}) == 1
    forms = {n: (m.config.speller.context, m.config.speller.input_feeding) for n, m in models.items()}
    assert forms == {
        "attention": ("attention", False),
        "input_feeding": ("attention", True),
        "cho": ("cho", False),
        "fixed": ("fixed", False),
    }
    # As much is given to every decoder's LSTM, and nothing but the decoder differs.
    assert len({m.speller.lstms[0].input_size for m in models.values()}) == 1
    rest = [settings(f"decoder={name}") for name in DECODERS]
    for given in rest:
        del given["decoder_name"], given["output"], given["model"]["speller"]
    assert all(given == rest[0] for given in rest)


@pytest.mark.parametrize(("experiment", "runs"), [("bottleneck", 24), ("bottleneck_quick", 8)])
def test_the_grid_has_a_folder_for_every_run(experiment, runs):
    params = yaml.safe_load((ROOT / "conf" / "experiment" / "bottleneck.yaml").read_text())["hydra"]["sweeper"][
        "params"
    ]
    if experiment == "bottleneck_quick":
        params |= yaml.safe_load((ROOT / f"conf/experiment/{experiment}.yaml").read_text())["hydra"]["sweeper"][
            "params"
        ]
    outputs = {
        settings(f"experiment={experiment}", f"decoder={d}", f"training.seed={s}", f"training.ctc_weight={w}")["output"]
        for d in params["decoder"].split(",")
        for s in str(params["training.seed"]).split(",")
        for w in params["training.ctc_weight"].split(",")
    }
    assert len(outputs) == runs
    assert set(params["decoder"].split(",")) == set(DECODERS)
    assert all(output.startswith(f"runs/{experiment}/") for output in outputs)


def test_a_grid_is_trained_by_multirun_and_finished_runs_are_skipped(corpus, tmp_path):
    command = [
        sys.executable, ROOT / "recipes" / "bottleneck" / "train.py", "-m", "experiment=bottleneck_quick",
        "decoder=input_feeding,fixed", "training.ctc_weight=0.0", "model.encoder.d=16", "frontend.n_mels=16",
        f"corpus.manifests={corpus}", f"hydra.sweep.dir={tmp_path}", "watch.every=2", "watch.words=3",
        f"output={tmp_path}/${{decoder_name}}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("input_feeding", "fixed")}
    assert results["fixed"]["decoder"] == "fixed"
    assert results["fixed"]["steps"] == results["input_feeding"]["steps"] > 0
    assert results["fixed"]["processor_seconds"] > 0
    assert list(results["fixed"]["characters_by_length"]) == [str(n) for n in range(1, 13)]
    curve = [json.loads(line) for line in (tmp_path / "fixed" / "curve.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curve] == [*range(0, results["fixed"]["steps"] + 1, 2)]
    snapshots = sorted((tmp_path / "input_feeding" / "attention").glob("*.npz"))
    assert len(snapshots) == 2  # before the first step and after the last
    snapshot = np.load(snapshots[-1])
    assert len(snapshot["labels"]) == len(snapshot["weights"])
    assert snapshot["weights"].sum(1) == pytest.approx(1, abs=0.01)
    assert not (tmp_path / "fixed" / "attention").exists()

    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0
    assert again.stderr.count("finished before") == 2

    drawn = subprocess.run(
        [sys.executable, ROOT / "recipes" / "bottleneck" / "figures.py", tmp_path], capture_output=True, text=True
    )
    assert drawn.returncode == 0, drawn.stderr
    for name in ("cer.svg", "cer.png", "curves.svg", "results.json", "tables.md"):
        assert (tmp_path / "figures" / name).stat().st_size > 0


def test_a_run_that_goes_on_adds_to_its_times(tmp_path):
    from _run import Watch

    first = Watch(tmp_path, every=1, attention_steps=[], words=1)
    first.times = {"steps": 7, "step_seconds": 0.5, "seconds": 2.0}
    saved = first.state_dict()
    second = Watch(tmp_path, every=1, attention_steps=[], words=1)
    second.load_state_dict(saved)
    assert second.times["steps"] == 7
    assert second.times["step_seconds"] == 0.5
    assert second.times["seconds"] >= 2.0


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_characters_are_counted_by_the_words_of_the_reference():
    from _run import characters_by_length

    found = characters_by_length(score({"a": "ONE", "b": "ONE TWO", "c": "TWO"}, {"a": "ONE", "b": "ONE", "c": "TOO"}))
    assert found == {"1": (1, 6), "2": (4, 7)}


def result(decoder: str, seed: int, wrong: int) -> dict:
    return {
        "decoder": decoder, "ctc_weight": 0.0, "seed": seed, "parameters": 1000, "steps": 10, "step_ms": 5.0,
        "processor_seconds": 60.0, "wer": 0.5, "cer": wrong / 100, "characters_by_length": {"1": [wrong, 100]},
    }  # fmt: skip


def test_results_are_means_and_ranges_of_the_seeds(tmp_path):
    from figures import collect, facts, tables

    for place, decoder, seed, wrong in (
        (".", "fixed", 1, 50), (".", "fixed", 2, 70), (".", "cho", 1, 30), ("longer", "fixed", 1, 20),
    ):  # fmt: skip
        folder = tmp_path / place / f"{decoder}{seed}"
        (folder / "test").mkdir(parents=True)
        (folder / "test" / "ref.trn").write_text("ON (a)\nWE (b)\n")
        (folder / "result.json").write_text(json.dumps(result(decoder, seed, wrong)))
        (folder / "curve.jsonl").write_text(
            '{"step": 0, "loss": 3.0}\n{"step": 2, "loss": 1.0}\n{"step": 0, "loss": 2.0}\n'
        )
    results = collect(tmp_path)
    assert results["runs"] == 3
    assert results["processor_minutes"] == 3.0
    fixed = results["arms"]["0"]["fixed"]
    assert fixed["cer_by_length"] == {"1": [50.0, 60.0, 70.0]}
    assert fixed["cer"] == 60.0
    assert fixed["curves"][0] == [(0, 2.0), (2, 1.0)]
    assert facts(results)["ctc 0, fixed, 1 words, highest"] == "70.0"
    assert facts(results)["longer, fixed, 1 words, mean"] == "20.0"
    assert results["chance"] == {"1": 100.0}
    assert "| 0 | fixed | 60 | 60.0 |" in tables(results)
    assert "| 0 | Cho et al. | 1,000 | 10 | 5 | 1.0 |" in tables(results)


def test_figures_of_no_runs_end_in_one_line(tmp_path):
    script = ROOT / "recipes" / "bottleneck" / "figures.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no finished run there")


def test_figures_that_cannot_be_written_end_in_one_line(tmp_path, monkeypatch, capsys):
    import figures

    monkeypatch.setattr(figures, "collect", lambda runs: {})
    monkeypatch.setattr(sys, "argv", ["figures.py", str(tmp_path), "--output", f"{__file__}/x"])
    with pytest.raises(SystemExit, match="2"):
        figures.main()
    assert "x: cannot write there (Not a directory); choose another --output=" in capsys.readouterr().err


def test_audio_is_16_khz_with_quiet_ends(corpus):
    path = next((corpus / "audio" / "words-dev").rglob("*.flac"))
    samples, rate = soundfile.read(path)
    assert rate == 16000
    assert np.abs(samples[:1500]).max() < 0.01 < np.abs(samples).max()

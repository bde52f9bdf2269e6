"""Words are cut out where they begin and end, and the copies say what their transcripts say."""

import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from toy_speech import speak

from asr.bundle import Bundle, load_bundle, save_bundle
from asr.corpus import librispeech
from asr.decoding.alignment import SpottedWord, WordTiming
from asr.errors import ConfigError
from asr.frontend import FrontendConfig
from asr.training.splice import SpliceConfig, _copies, borders, cut, join, leads, meetings, splice, splice_subset

ROOT = Path(__file__).parents[2]
RATE = 16000


def noise(seconds: float, level: float, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def spotted(word: str, first: float, last: float | None = None) -> SpottedWord:
    last = first if last is None else last
    return SpottedWord(word, (first, first + 0.04), (last, last + 0.04), ())


def aitch(pause: float) -> tuple[np.ndarray, list[SpottedWord]]:
    """T, a pause, and H: 0.2 s of vowel, a closure of 60 ms in which nothing sounds, and the burst that tells it."""
    sounds = [noise(0.2, 0.1), noise(pause, 1e-4), noise(0.2, 0.1, 1), noise(0.06, 1e-5), noise(0.1, 0.1, 2)]
    return np.concatenate(sounds), [spotted("T", 0.02), spotted("H", 0.2 + pause + 0.27)]


def test_how_late_a_word_is_spotted_is_learned_where_it_follows_a_pause():
    lead = leads([aitch(pause) for pause in (0.2, 0.25, 0.3, 0.35, 0.4)])
    assert lead == {"H": pytest.approx(0.27, abs=0.02)}
    assert leads([aitch(0.2)]) == {}  # once is not enough to go by
    assert leads([aitch(0.05)] * 9) == {}  # no pause, but a closure


def test_a_closure_within_a_word_is_not_taken_for_its_border():
    samples, words = aitch(0.03)
    border = borders(samples, words, {"H": 0.27})
    assert len(border) == 1
    assert 0.19 <= border[0] / RATE <= 0.24
    assert borders(samples, words, {"H": 0.0})[0] / RATE > 0.4  # which it would be, as the closure is the quietest


def test_borders_stand_in_order_within_the_utterance_whatever_was_spotted():
    samples = noise(0.5, 0.1)
    words = [spotted(word, 0.46) for word in "ABCD"]  # CTC may fire for all of them in the last states
    found = borders(samples, words, {"C": 1.0})
    assert len(found) == 3
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] <= len(samples)
    assert borders(samples, words[:1], {}) == []


def test_the_pieces_of_an_utterance_are_the_whole_of_it():
    samples, words = aitch(0.2)
    pieces = cut(samples, words, borders(samples, words, {"H": 0.27}))
    assert [word for word, _ in pieces] == ["T", "H"]
    assert np.array_equal(np.concatenate([piece for _, piece in pieces]), samples)
    text, same = splice(pieces, {"H": pieces}, 0.0, np.random.default_rng(0))
    assert text == "T H"
    assert np.array_equal(same, samples)


def test_in_running_speech_words_meet_where_the_spikes_say_at_the_quietest_place_nearby():
    samples = np.concatenate(
        [noise(0.3, 0.1), noise(0.02, 1e-4), noise(0.2, 0.1, 1), noise(0.06, 1e-5), noise(0.2, 0.1)]
    )
    words = [spotted("A", 0.05, 0.18), spotted("B", 0.34)]
    (end,) = meetings(samples, words, WordTiming(pause=0.18, share=0.75, shift=-0.02))  # expects 0.305 s
    assert 0.30 <= end / RATE <= 0.32  # and not the closure at 0.52 s, which is quieter
    (end,) = meetings(samples, words, WordTiming(pause=0.18, share=0.0, shift=0.0))  # expects 0.22 s
    assert 0.18 <= end / RATE <= 0.26
    silence = np.concatenate([noise(0.2, 0.1), noise(0.1, 0.01), noise(0.3, 1e-5), noise(0.2, 0.1)])
    (end,) = meetings(silence, [spotted("A", 0.1), spotted("B", 0.62)], WordTiming())
    assert 0.3 <= end / RATE <= 0.6  # a pause: anywhere in it
    crowded = [spotted(word, 0.96) for word in "ABCD"]
    found = meetings(silence, crowded, WordTiming())
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] <= len(silence)
    assert meetings(silence, crowded[:1], WordTiming()) == []


def test_runs_of_words_are_joined_in_their_order_with_the_speech_they_name():
    utterances = [
        [(f"{name}{i}", np.full(800, 10 * k + i, np.float32)) for i in range(8)] for k, name in enumerate("AB")
    ]
    text, samples = join(utterances, 200, 4, np.random.default_rng(0))
    words = text.split()
    assert len(words) >= 200
    assert len(samples) == 800 * len(words)
    assert samples.reshape(-1, 800)[:, 400].tolist() == [10 * "AB".index(w[0]) + int(w[1]) for w in words]
    breaks = [a for a, (x, y) in enumerate(pairwise(words), 1) if (x[0], int(x[1]) + 1) != (y[0], int(y[1]))]
    assert 2.5 < len(words) / (len(breaks) + 1) < 4.5  # utterances end, too
    assert all(samples[800 * i] == samples[800 * i - 1] == 0 for i in breaks)  # seams fade
    assert {w[0] for w in words} == {"A", "B"}


def test_runs_end_at_quiet_borders_where_one_is_near():
    def word(i: int) -> np.ndarray:  # every third border is quiet
        samples = noise(0.2, 0.1, i)
        samples[: RATE // 20] *= 1e-3 if i % 3 == 0 else 1
        samples[-RATE // 20 :] *= 1e-3 if i % 3 == 2 else 1
        return samples

    pieces = [(str(i), word(i)) for i in range(30)]
    words = [int(w) for w in join([pieces], 300, 4, np.random.default_rng(0))[0].split()]
    starts = [y for x, y in pairwise(words) if y != x + 1]
    assert len(starts) > 40
    assert np.mean([i % 3 == 0 for i in starts]) > 0.9


def test_another_word_of_the_kind_takes_the_place_and_is_written():
    a, b, c = (np.full(800, level, np.float32) for level in (1, 2, 3))
    pieces = [("A", a), ("TWO", b)]
    text, samples = splice(pieces, {"A": [("C", c)]}, 1.0, np.random.default_rng(0))
    assert text == "C TWO"
    assert len(samples) == 1600
    assert samples[400] == 3
    assert samples[1200] == 2
    assert samples[0] == samples[799] == samples[800] == 0  # seams fade
    assert samples[-1] == 2  # where nothing was put in, nothing fades


def test_a_piece_too_short_to_be_a_word_takes_no_place():
    said = [("A", np.full(800, 1, np.float32)), ("B", np.zeros(0, np.float32)), ("C", np.full(800, 3, np.float32))]
    utterance = SimpleNamespace(id="x-0-1")
    config = SpliceConfig(copies=40, exchanged=1.0, kinds=("A B C",))
    copies = list(_copies([(utterance, said)], [said], config))
    assert {word for _, text, _ in copies for word in text.split()} == {"A", "C"}


@pytest.fixture
def corpus(tmp_path):
    for speaker in ("fash", "mcel"):
        folder = tmp_path / "LibriSpeech/train-toy" / speaker / "0"
        folder.mkdir(parents=True)
        texts = ["A B ONE", "YES", "C TWO D"]
        for i, text in enumerate(texts):
            soundfile.write(folder / f"{speaker}-0-{i}.flac", speak(text, seed=i), RATE)
        (folder / f"{speaker}-0.trans.txt").write_text("".join(f"{speaker}-0-{i} {t}\n" for i, t in enumerate(texts)))
    return tmp_path


def texts_of(folder: Path) -> dict[str, str]:
    lines = [line for path in sorted(folder.rglob("*.trans.txt")) for line in path.read_text().splitlines()]
    return dict(line.split(maxsplit=1) for line in lines)


def test_a_subset_of_copies(corpus, toy_bundle, tmp_path):
    config = SpliceConfig(copies=4, exchanged=1.0)
    folder = splice_subset(corpus, "train-toy", tmp_path / "out", toy_bundle, config)
    texts = texts_of(folder)
    assert len(texts) == 2 * 3 * 4
    letters, digits = set("ABCD"), {"ONE", "TWO"}
    for name, text in texts.items():
        kinds = ["L" if word in letters else "D" if word in digits else word for word in text.split()]
        assert kinds == {"0": list("LLD"), "1": ["YES"], "2": list("LDL")}[name.split("-")[2]], name
    assert len(set(texts.values())) > 5  # they differ
    (scan,) = librispeech.prepare(tmp_path / "out", ["train-toy-spliced"], tmp_path / "manifests")
    assert len(scan.utterances) == 24
    assert not scan.dropped
    again = splice_subset(corpus, "train-toy", tmp_path / "again", toy_bundle, config)
    assert texts_of(again) == texts
    other = splice_subset(corpus, "train-toy", tmp_path / "other", toy_bundle, SpliceConfig(copies=4, seed=2))
    assert texts_of(other) != texts


def test_a_subset_joined_from_runs(corpus, toy_bundle, tmp_path):
    folder = splice_subset(corpus, "train-toy", tmp_path / "out", toy_bundle, SpliceConfig(copies=4, run=1.5))
    texts = texts_of(folder)
    assert len(texts) == 2 * 3 * 4
    for name, text in texts.items():
        assert len(text.split()) >= {"0": 3, "1": 1, "2": 3}[name.split("-")[2]], name
        assert set(text.split()) <= {"A", "B", "C", "D", "ONE", "TWO", "YES"}
    assert any(text.split()[:3] not in (["A", "B", "ONE"], ["C", "TWO", "D"]) for text in texts.values())
    (scan,) = librispeech.prepare(tmp_path / "out", ["train-toy-spliced"], tmp_path / "manifests")
    assert not scan.dropped


@pytest.mark.parametrize("run", [0, 2])
def test_chapters_newer_than_the_model_stay(corpus, toy_bundle, tmp_path, run):
    model = shutil.copytree(toy_bundle, tmp_path / "trained")
    folder = splice_subset(corpus, "train-toy", tmp_path / "out", model, SpliceConfig(run=run))
    first, second = sorted(folder.rglob("*.trans.txt"))
    lines = second.read_text()
    first.write_text("kept\n")
    second.unlink()
    splice_subset(corpus, "train-toy", tmp_path / "out", model, SpliceConfig(run=run))
    assert first.read_text() == "kept\n"
    assert second.read_text() == lines
    os.utime(model / "model.safetensors", (time.time() + 60,) * 2)  # trained again
    splice_subset(corpus, "train-toy", tmp_path / "out", model, SpliceConfig(run=run))
    assert first.read_text() != "kept\n"


def test_words_come_from_the_same_speaker(corpus, toy_bundle, tmp_path):
    quiet = corpus / "LibriSpeech/train-toy/mcel/0"
    for path in quiet.glob("*.flac"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, 0.01 * samples, rate)
    folder = splice_subset(corpus, "train-toy", tmp_path / "out", toy_bundle, SpliceConfig(exchanged=1.0))
    peaks = {path.name[:5]: [] for path in folder.rglob("*.flac")}
    for path in folder.rglob("*.flac"):
        peaks[path.name[:5]].append(np.abs(soundfile.read(path)[0]).max())
    assert max(peaks["Amcel"]) < 0.05 < 0.1 < min(peaks["Afash"])


def test_a_speakers_chapters_are_written_apart_and_lend_each_other_words(corpus, toy_bundle, tmp_path):
    first = corpus / "LibriSpeech/train-toy/mcel"
    (first / "7").mkdir()
    soundfile.write(first / "7/mcel-7-0.flac", speak("K K K K"), RATE)  # a 0, like the utterance of chapter 0
    (first / "7/mcel-7.trans.txt").write_text("mcel-7-0 K K K K\n")
    folder = splice_subset(corpus, "train-toy", tmp_path / "out", toy_bundle, SpliceConfig(copies=5, exchanged=1.0))
    texts = texts_of(folder)
    assert len(texts) == 5 * 7
    assert {"Amcel-0-0-1", "Amcel-7-0-1"} < texts.keys()
    assert any(set(text.split()) != {"K"} for name, text in texts.items() if "mcel-7" in name)
    assert any("K" in text.split() for name, text in texts.items() if "mcel-0" in name)
    assert not any("K" in text.split() for name, text in texts.items() if "fash" in name)
    assert {path.parent.name for path in folder.rglob("Amcel-7-*.flac")} == {"7"}


def test_a_model_hears_at_its_own_rate(corpus, toy_bundle, tmp_path, monkeypatch):
    made, heard = load_bundle(toy_bundle), []
    parts = made.model, made.normalizer, FrontendConfig(sample_rate=8000, n_mels=40), made.tokenizer
    encode = Bundle.encode
    monkeypatch.setattr(Bundle, "encode", lambda self, samples: heard.append(len(samples)) or encode(self, samples))
    splice_subset(corpus, "train-toy", tmp_path / "out", save_bundle(tmp_path / "telephone", *parts, {}))
    seconds = [soundfile.info(path).duration for path in (corpus / "LibriSpeech/train-toy").rglob("*.flac")]
    assert sorted(heard) == sorted(round(8000 * s) for s in seconds)


def test_evaluation_sets_are_refused(corpus, toy_bundle, tmp_path):
    with pytest.raises(ConfigError, match="dev-toy is an evaluation set"):
        splice_subset(corpus, "dev-toy", tmp_path / "out", toy_bundle)
    for wrong in ({"copies": 0}, {"exchanged": 1.5}, {"run": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SpliceConfig(**wrong)


def test_the_recipe(corpus, toy_bundle, tmp_path):
    def run(*options: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "recipes/synthetic/splice.py", f"root={corpus}", "subset=train-toy", *options]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run(f"model_dir={toy_bundle}", f"output={tmp_path / 'out'}", "copies=1")
    assert done.returncode == 0, done.stderr
    assert len(texts_of(tmp_path / "out")) == 6
    lost = run(f"model_dir={tmp_path / 'nowhere'}", f"output={tmp_path / 'lost'}")
    assert lost.returncode == 2
    assert "nowhere" in lost.stderr
    assert "Traceback" not in lost.stderr
    assert not (tmp_path / "lost").exists()

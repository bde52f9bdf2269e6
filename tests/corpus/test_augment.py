"""What becomes of speech in a room, in noise and over the telephone, and the subset of such copies."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_speech import speak

from asr.corpus import librispeech
from asr.corpus.augment import (
    AugmentConfig,
    _Recordings,
    add_noise,
    augment,
    augment_subset,
    coded,
    find_recordings,
    reverberate,
    telephone,
)
from asr.corpus.chapters import write_chapters
from asr.errors import ConfigError, CorpusError

ROOT = Path(__file__).parents[2]
NOTHING = AugmentConfig(rooms=0.0, noise=0.0, gain=(0.0, 0.0), telephone=0.0, mp3=0.0)
WITHOUT_ROOMS = AugmentConfig(rooms=0.0)


@pytest.fixture(scope="module")
def noises(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    soundfile.write(folder / "hiss.wav", 0.1 * np.random.default_rng(0).standard_normal(8000), 16000)
    return folder


@pytest.fixture
def samples():
    return speak("HELLO HAND FISH")


def power(samples) -> float:
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


def band(samples, low: float, high: float) -> float:
    spectrum, frequency = np.abs(np.fft.rfft(samples)) ** 2, np.fft.rfftfreq(len(samples), 1 / 16000)
    return 10 * np.log10(spectrum[(frequency >= low) & (frequency < high)].sum() + 1e-12)


def lag(a, b) -> int:
    """Samples by which b is late."""
    size = 2 * len(a)
    correlation = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size)
    at = int(correlation.argmax())
    return at if at < size // 2 else at - size


def test_nothing_is_changed_where_nothing_is_wanted(samples):
    assert np.array_equal(augment(samples, [], NOTHING, np.random.default_rng(0)), samples)


def test_noise_lies_as_far_below_the_speech_as_is_asked_for(samples):
    rng = np.random.default_rng(0)
    for snr in (0.0, 10.0, 25.0):
        noise = rng.standard_normal(5000).astype(np.float32)
        added = add_noise(samples, noise, snr, rng) - samples
        assert power(samples) - power(added) == pytest.approx(snr, abs=0.1)
        np.testing.assert_allclose(added[:5000], added[5000:10000], atol=1e-5)  # over and over
    assert np.array_equal(add_noise(samples, np.zeros(10, np.float32), 5.0, rng), samples)


def test_a_telephone_keeps_300_to_3400_hz_and_the_time(samples):
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(16000).astype(np.float32)
    heard = telephone(noise)
    assert len(heard) == len(noise)
    assert lag(noise, heard) == 0
    assert band(heard, 500, 3000) == pytest.approx(band(noise, 500, 3000), abs=0.5)
    assert band(heard, 50, 150) < band(noise, 50, 150) - 20
    assert band(heard, 4500, 8000) < band(noise, 4500, 8000) - 40


def test_mp3_keeps_length_and_time_and_most_of_the_speech(samples):
    heard = coded(samples, 0.9)
    assert len(heard) == len(samples)
    assert abs(lag(samples, heard)) <= 1
    assert 5 < power(samples) - power(heard - samples) < 60


def test_a_room_rings_after_the_speech_and_keeps_its_time_and_level(samples):
    pytest.importorskip("pyroomacoustics", reason="pyroomacoustics is not installed (extra augment)")
    config = AugmentConfig(absorption=(0.2, 0.2), distance=(1.0, 1.0))
    for seed in range(3):
        heard = reverberate(samples, config, np.random.default_rng(seed))
        assert len(heard) == len(samples)
        assert abs(lag(samples, heard)) <= 2
        assert power(heard) == pytest.approx(power(samples), abs=0.1)
        assert power(heard[-1200:]) > power(samples[-1200:]) + 6  # toy speech ends with silence


def test_a_subset_is_copied_under_other_names_and_gone_on_with(toy_corpus, noises, tmp_path):
    folder = augment_subset(toy_corpus, "train-toy", tmp_path / "a", WITHOUT_ROOMS, noises=noises)
    assert folder == tmp_path / "a" / "LibriSpeech" / "train-toy-augmented"
    [original] = librispeech.prepare(toy_corpus, ["train-toy"], tmp_path / "manifests")
    [copy] = librispeech.prepare(tmp_path / "a", ["train-toy-augmented"], tmp_path / "manifests")
    assert copy.dropped == []
    assert copy.speakers == {"A1", "A2"}
    assert [(u.id, u.text, u.duration) for u in copy.utterances] == [
        (f"A{u.id}", u.text, u.duration) for u in original.utterances
    ]
    pairs = [
        (soundfile.read(a.path)[0], soundfile.read(b.path)[0])
        for a, b in zip(original.utterances, copy.utterances, strict=True)
    ]
    gains = [power(b) - power(a) for a, b in pairs]
    assert -14 < min(gains) < -6
    assert 0 < max(gains) < 8
    noisy = np.mean([power(b[:1000]) - power(b) > power(a[:1000]) - power(a) + 3 for a, b in pairs])
    assert 0.5 < noisy < 0.95

    files = {p.name: p.read_bytes() for p in folder.rglob("*.flac")}
    (folder / "A2" / "1" / "A2-1.trans.txt").unlink()
    stamp = (folder / "A1" / "1" / "A1-1.trans.txt").stat().st_mtime_ns
    augment_subset(toy_corpus, "train-toy", tmp_path / "a", WITHOUT_ROOMS, noises=noises)
    assert (folder / "A1" / "1" / "A1-1.trans.txt").stat().st_mtime_ns == stamp
    assert {p.name: p.read_bytes() for p in folder.rglob("*.flac")} == files


def test_a_damaged_recording_is_left_out(toy_corpus, noises, tmp_path):
    shutil.copytree(toy_corpus / "train-toy", tmp_path / "LibriSpeech/train-toy")
    damaged = next((tmp_path / "LibriSpeech").rglob("1-1-0003.flac"))
    os.truncate(damaged, damaged.stat().st_size // 2)
    folder = augment_subset(tmp_path, "train-toy", tmp_path / "out", AugmentConfig(rooms=0, mp3=0), noises=noises)
    written = sorted(path.stem.partition("1-1-")[2] for path in folder.rglob("*1-1-0*.flac"))
    assert len(written) == 11
    assert "0003" not in written


def test_only_so_many_noises_stay_in_memory(tmp_path):
    for name, value in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        soundfile.write(tmp_path / f"{name}.wav", np.full(1000, value), 16000)
    recordings = _Recordings(limit=2500)
    paths = [tmp_path / f"{name}.wav" for name in "abac"]
    assert [float(recordings[path][0]) for path in paths] == pytest.approx([0.1, 0.2, 0.1, 0.3], abs=1e-3)
    assert [path.stem for path in recordings.kept] == ["a", "c"]  # b was asked for longest ago


def test_what_cannot_work_is_said_in_one_line(toy_corpus, noises, tmp_path, monkeypatch):
    def fails(error, match, subset="train-toy", config=WITHOUT_ROOMS, **options):
        with pytest.raises(error, match=match) as caught:
            augment_subset(toy_corpus, subset, tmp_path / "a", config, **options)
        assert "\n" not in str(caught.value)

    fails(ConfigError, "dev-toy is an evaluation set; augment training sets", subset="dev-toy")
    fails(CorpusError, "no recordings there; name a folder of audio files, or noises=null", noises=tmp_path)
    fails(CorpusError, "no recordings there; name a folder", noises=tmp_path / "missing")
    augment_subset(toy_corpus, "train-toy", tmp_path / "a", WITHOUT_ROOMS)
    fails(ConfigError, "settings.json: was made with other settings", noises=noises)
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'asr\[augment\]', or rooms=0"):
        reverberate(speak("A"), AugmentConfig(), np.random.default_rng(0))
    for wrong in ({"mp3": 2.0}, {"snr": (20.0, 5.0)}, {"width": (0.5, 3.0)}, {"absorption": (0.5, 1.5)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            AugmentConfig(**wrong)


def test_the_recipe_says_what_is_wrong_and_ends_with_2(tmp_path):
    script = ROOT / "recipes" / "synthetic" / "augment.py"
    command = [sys.executable, str(script), f"root={tmp_path}", f"output={tmp_path}", "mp3=3.0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: AugmentConfig: mp3 must be from 0 to 1; got 3\n")


def test_noises_that_cannot_be_read_are_not_left_out(tmp_path, monkeypatch):
    def walk(folder, onerror=None, **_):
        onerror(PermissionError(13, "Permission denied", f"{folder}/private"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(CorpusError, match=r"private: cannot be read \(Permission denied\)"):
        find_recordings(tmp_path)


@pytest.mark.parametrize("processes", [0, 1.5, "two"])
def test_processes_that_cannot_be(tmp_path, processes):
    with pytest.raises(ConfigError, match="processes"):
        augment_subset(tmp_path, "train-toy", tmp_path, processes=processes)


def end(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_ended_from_outside_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="a process has ended, perhaps for lack of memory; lower processes and go on"):
        write_chapters("x", tmp_path, [1, 2], 0, 1.0, end, processes=2)

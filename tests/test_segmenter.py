import glob
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.segmenter import Loudness, Segmenter, SegmenterConfig, SileroVad

RATE = 16_000
QUICKSTART = sorted(glob.glob(str(Path(__file__).parents[1] / "recipes/quickstart/audio/*.flac")))


class Script:
    """A detector that reads the probability of speech off the samples themselves: the first of each frame."""

    frame = 512

    def reset(self):
        pass

    def probabilities(self, samples):
        return samples[:: self.frame]


def scripted(*parts):
    """((seconds, probability), ...) -> samples for `Script`, each part rounded to frames."""
    return np.concatenate([np.full(round(s * RATE / 512) * 512, p, np.float32) for s, p in parts])


def cut(samples, config=None, block=None, detector=None):
    segmenter = Segmenter(detector or Script(), RATE, config)
    block = block or len(samples)
    found = []
    for start in range(0, len(samples), block):
        found += segmenter.feed(samples[start : start + block])
    return found + segmenter.finish()


def spans(stretches):
    return [(s.start / RATE, s.end / RATE) for s in stretches]


def test_a_stretch_is_speech_with_padding_and_goes_on_across_a_short_pause():
    samples = scripted((1.024, 0.1), (2.048, 0.9), (0.256, 0.0), (1.024, 0.9), (1.024, 0.2), (0.512, 0.6))
    assert spans(cut(samples)) == [
        pytest.approx((1.024 - 0.2, 1.024 + 2.048 + 0.256 + 1.024 + 0.2)),
        pytest.approx((5.376 - 0.2, 5.888)),  # no padding beyond the end
    ]


def test_between_the_thresholds_speech_neither_begins_nor_ends():
    assert cut(scripted((3.0, 0.45))) == []
    (stretch,) = cut(scripted((1.024, 0.9), (2.048, 0.45), (1.024, 0.0)))
    assert spans([stretch]) == [pytest.approx((0.0, 3.072 + 0.2))]


def test_a_click_is_no_speech():
    assert cut(scripted((1.024, 0.0), (0.192, 1.0), (1.024, 0.0))) == []
    assert len(cut(scripted((1.024, 0.0), (0.192, 1.0), (1.024, 0.0)), SegmenterConfig(min_speech=0.1))) == 1
    assert cut(scripted((0.192, 1.0), (1.024, 0.0))) == []  # nor at the very beginning


def test_stretches_hold_the_samples_of_their_place_whatever_the_blocks():
    rng = np.random.default_rng(0)
    probabilities = np.repeat(rng.random(60) > 0.4, rng.integers(5, 40, 60)).astype(np.float32)
    samples = np.repeat(probabilities, 512) + rng.uniform(0, 0.3, len(probabilities) * 512).astype(np.float32)
    samples = np.concatenate([samples, samples[:100]])  # ends inside a frame
    whole = cut(samples)
    assert len(whole) > 5
    for stretch in whole:
        np.testing.assert_array_equal(stretch.samples, samples[stretch.start : stretch.end])
    assert all(a.end <= b.start for a, b in pairwise(whole))
    for block in (100, 512, 5000, 70_000):
        assert spans(cut(samples, block=block)) == spans(whole)


def test_a_long_stretch_is_cut_at_the_quietest_moment_of_its_last_half():
    rng = np.random.default_rng(0)
    samples = (0.6 + 0.1 * rng.random(50 * RATE)).astype(np.float32)
    for second in (15, 28):
        samples[second * RATE : second * RATE + RATE // 2] = 0.4  # below the threshold, and still no pause
    found = cut(samples)
    ends = [stretch.end / RATE for stretch in found]
    assert 15 <= ends[0] <= 15.5
    assert 28 <= ends[1] <= 28.5
    assert all(len(stretch.samples) <= 20 * RATE for stretch in found)
    assert found[0].start == 0
    assert found[-1].end == len(samples)
    assert all(a.end == b.start for a, b in pairwise(found))
    assert max(len(s.samples) for s in cut(samples, SegmenterConfig(max_duration=5.0))) <= 5 * RATE


def test_the_audio_ends_while_a_cut_stretch_pauses():
    samples = scripted((19.968, 0.9), (0.32, 0.0))
    found = cut(samples)
    assert found[0].start == 0
    assert all(len(stretch.samples) > 0 for stretch in found)
    assert sum(len(stretch.samples) for stretch in found) <= len(samples)


def test_memory_does_not_grow_with_the_audio():
    segmenter = Segmenter(Script(), RATE)
    rng = np.random.default_rng(0)
    most = 0
    for i in range(200):  # a hundred minutes, half of them without a pause
        level = 0.9 if i % 100 < 50 else 0.0
        segmenter.feed(np.full(30 * RATE, level, np.float32) + rng.uniform(0, 0.05, 30 * RATE).astype(np.float32))
        most = max(most, len(segmenter.kept))
    assert most <= 21 * RATE


def test_whatever_is_not_silent_is_loud():
    detector = Loudness(RATE)
    tone = 0.01 * np.sin(np.arange(detector.frame * 4)).astype(np.float32)
    assert detector.probabilities(tone).tolist() == [1.0] * 4
    assert detector.probabilities(tone / 20).tolist() == [0.0] * 4
    click = np.zeros(RATE, np.float32)
    click[8000] = 1.0
    assert detector.probabilities(click).sum() == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.2},
        {"padding": 0.3},
        {"min_silence": float("inf")},
        {"min_speech": float("nan")},
        {"max_duration": 0.5},
        {"max_duration": float("inf")},
    ],
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SegmenterConfig(**wrong)


# --- silero ---


@pytest.fixture(scope="module")
def voices():
    pause = np.random.default_rng(0).normal(0, 1e-4, RATE)
    return np.concatenate([np.r_[soundfile.read(path)[0], pause] for path in QUICKSTART]).astype(np.float32)


def test_silero_heard_in_blocks_equals_silero_heard_whole(voices):
    from silero_vad import load_silero_vad

    threads = torch.get_num_threads()
    detector = SileroVad()
    assert torch.get_num_threads() == threads
    samples = voices[: len(voices) // 512 * 512]
    expected = load_silero_vad(sequence=True).audio_forward(samples)
    for _ in range(2):
        parts = [detector.probabilities(samples[i : i + 5120]) for i in range(0, len(samples), 5120)]
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-5)
        assert len(detector.probabilities(samples[:0])) == 0
        detector.reset()


def test_stretches_equal_those_of_the_silero_package(voices):
    from silero_vad import get_speech_timestamps_from_probs

    detector, config = SileroVad(), SegmenterConfig()
    probabilities = detector.probabilities(voices[: len(voices) // 512 * 512])
    expected = get_speech_timestamps_from_probs(
        probabilities,
        min_silence_duration_ms=int(1000 * config.min_silence),
        speech_pad_ms=int(1000 * config.padding),
        audio_length_samples=len(voices),
    )
    found = cut(voices, detector=SileroVad(), block=30_000)
    assert len(found) >= len(QUICKSTART)
    assert [s.start for s in found] == [e["start"] for e in expected]
    for stretch, other in zip(found, expected, strict=True):
        assert abs(stretch.end - other["end"]) <= 512

"""Words that nobody said are written as they sound: one word up to the seam, the other from there on."""

import numpy as np
import pytest

from asr.training.blends import Blends, Spoken, crossfade, seam, seams

RATE = 16000


def spoken(word: str, level: float, seed: int = 0) -> Spoken:
    """0.1 s for each letter, which fires in the middle; all samples are `level`, and the same letters sound alike."""
    rng = np.random.default_rng(seed)
    sounds = {letter: np.random.default_rng(ord(letter)).standard_normal(4) for letter in set(word)}
    frames = np.repeat([sounds[letter] for letter in word], 10, axis=0) + 0.01 * rng.standard_normal(
        (10 * len(word), 4)
    )
    return Spoken(word, np.full(1600 * len(word), level, np.float32), 0.1 * np.arange(len(word)) + 0.05, frames)


def test_where_a_seam_may_be_and_what_is_around_it():
    assert sorted(seams("DATE")) == [(1, (1, "DAT")), (2, (1, "ATE")), (2, (2, "DAT")), (3, (2, "ATE"))]
    assert seams("DA") == []


def test_a_word_goes_on_as_another_from_the_same_letters_on():
    native, rational = spoken("NATIVE", 1.0), spoken("RATIONAL", 2.0, 1)
    blends = Blends([native, rational])
    rng = np.random.default_rng(0)
    found = {}
    for _ in range(40):
        word, samples = blends.change(native, rng)
        found[word] = samples
    assert set(found) == {"NATIONAL", "RATIVE"}
    for word, before, after in (("NATIONAL", 1.0, 2.0), ("RATIVE", 2.0, 1.0)):
        samples = found[word]
        assert len(samples) == pytest.approx(1600 * len(word), abs=320)
        assert (samples[:2300] == before).all()
        assert (samples[5300:] == after).all()  # the seam is within ATI, the second to the fourth letter
        assert (np.diff(samples) * (after - before) >= 0).all()  # and there is one


def test_a_word_is_never_one_of_those_it_is_made_of():
    rng = np.random.default_rng(0)
    alone = spoken("NATIVE", 1.0)
    assert Blends([alone]).change(alone, rng) is None
    assert Blends([alone, spoken("NATIVE", 2.0), spoken("NAT", 1.0)]).change(alone, rng) is None
    assert Blends([alone, spoken("SO", 2.0)]).change(alone, rng) is None
    silent = Spoken("RATIONAL", np.zeros(0, np.float32), np.zeros(8), np.zeros((0, 4)))  # cut where there was no room
    assert Blends([alone, silent]).change(alone, rng) is None
    assert Blends([alone, silent]).change(silent, rng) is None


def test_the_seam_is_where_both_sound_alike_at_about_the_same_time():
    def of(frames):
        return Spoken("NATION", np.ones(9600, np.float32), 0.1 * np.arange(6) + 0.05, frames)

    frames = np.random.default_rng(0).standard_normal((60, 40))  # no two sound alike
    cost, left, right = seam(of(frames), 2, of(frames), 2)
    assert cost == 0
    assert left == right
    assert 1200 * 1.6 <= left <= 2800 * 1.6  # 30 ms around the spikes at most
    late = np.concatenate([frames[:1], frames[:-1]])
    cost, left, right = seam(of(frames), 2, of(late), 2)
    assert right - left == 160
    assert cost == pytest.approx(0.5)  # 10 ms, and nothing for the sound
    later = np.concatenate([frames[:8], frames[:-8]])
    assert seam(of(frames), 2, of(later), 2)[0] > 0.8  # alike 80 ms apart, or unlike at the same time


def test_of_several_partners_the_one_that_sounds_most_alike_is_taken():
    native = spoken("NATIVE", 1.0)
    good, bad = spoken("RATIONAL", 2.0, 1), spoken("STATION", 3.0, 2)
    bad = Spoken(bad.word, bad.samples, bad.letters, bad.frames + 3)
    blends = Blends([native, bad, good])
    rng = np.random.default_rng(0)
    words = {blends.change(native, rng)[0] for _ in range(40)}
    assert words == {"NATIONAL", "RATIVE"}  # and not NATION or STATIVE


def test_a_seam_keeps_to_the_word_whatever_was_spotted():
    early = Spoken("NATIVE", np.ones(9600, np.float32), np.full(6, -0.2), spoken("NATIVE", 1.0).frames)
    late = Spoken("RATION", np.ones(9600, np.float32), np.full(6, 9.0), spoken("RATION", 1.0).frames)
    assert seam(early, 2, late, 2)[1:] == (0, 59 * 160)


def test_a_crossfade_of_equals_is_heard_by_nobody():
    ones = np.ones(1000, np.float32)
    joined = crossfade(ones, 300, ones, 700)
    assert len(joined) == 600
    np.testing.assert_allclose(joined, 1, rtol=1e-6)
    assert len(crossfade(ones, 0, ones, 700)) == 300
    assert len(crossfade(ones, 1000, ones, 1000)) == 1000

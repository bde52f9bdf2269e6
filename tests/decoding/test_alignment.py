import json
import math
import sys
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import torch
from toy_speech import speak

import asr
from asr import cli
from asr.decoding.alignment import (
    FEATURES,
    Confidence,
    SpottedWord,
    WordTiming,
    align_batch,
    align_words,
    calibration_error,
    fit_confidence,
    fit_timing,
    fits,
    geometric_mean,
    place_words,
    spot_words,
)
from asr.errors import ModelError
from asr.model.word_lm import estimate, save_word_lm
from asr.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
STATE = 0.04  # s
PLAIN = WordTiming(pause=0.2, share=0.5, shift=0.0, lead=0.03, tail=0.05)


def spikes(places: list[tuple[str, int]], states: int, probability: float = 0.9) -> torch.Tensor:
    """(N, V) CTC log-probabilities: each character with `probability` in its state, blank elsewhere."""
    rest = (1 - probability) / (len(TOKENIZER) - 1)
    p = torch.full((states, len(TOKENIZER)), rest)
    p[:, TOKENIZER.blank_id] = probability
    for character, state in places:
        p[state] = rest
        p[state, TOKENIZER.encode(character)[0]] = probability
    return p.log()


def words_of(log_probs, text, **options):
    return align_words(log_probs, TOKENIZER.encode(text), TOKENIZER, STATE, **{"timing": PLAIN, **options})


def assert_in_order(words, duration):
    times = [t for w in words for t in (w.start, w.end)]
    assert all(a <= b + 1e-9 for a, b in pairwise(times)), times
    assert all(w.start < w.end for w in words)
    assert times[0] >= 0
    assert times[-1] <= duration + 1e-9


def test_times_follow_from_the_spikes():
    # AB fires in 0.40 .. 0.52 s and CD in 0.64 .. 0.76 s: no pause. EF fires in 1.60 .. 1.68 s, after one.
    places = [("A", 10), ("B", 12), (" ", 14), ("C", 16), ("D", 18), (" ", 20), ("E", 40), ("F", 41)]
    ab, cd, ef = words_of(spikes(places, 50), "AB CD EF")
    assert (ab.word, cd.word, ef.word) == ("AB", "CD", "EF")
    assert ab.start == pytest.approx(0.40 - 0.03)
    assert ab.end == cd.start == pytest.approx((0.52 + 0.64) / 2)
    assert cd.end == pytest.approx(0.76 + 0.05)
    assert ef.start == pytest.approx(1.60 - 0.03)
    assert ef.end == pytest.approx(1.68 + 0.05)
    later = words_of(spikes(places, 50), "AB CD EF", timing=WordTiming(0.2, 0.5, 0.02, 0.03, 0.05))
    assert later[0].end == later[1].start == pytest.approx((0.52 + 0.64) / 2 + 0.02)


def test_repeated_characters():
    places = [("B", 2), ("A", 4), ("L", 6), ("L", 8), ("O", 10), ("O", 12), ("N", 14), (" ", 15), ("S", 16), ("S", 18)]
    balloon, s = words_of(spikes(places, 20), "BALLOON SS")
    assert (balloon.word, s.word) == ("BALLOON", "SS")
    assert balloon.start == pytest.approx(2 * STATE - 0.03)
    assert balloon.end == s.start == pytest.approx((15 + 16) / 2 * STATE)
    assert s.end == pytest.approx(19 * STATE + 0.05 - 0.01)  # the end of the audio


def test_words_stay_inside_the_segment():
    (word,) = words_of(spikes([("A", 0), ("B", 9)], 10), "AB", duration=0.39)
    assert (word.start, word.end) == (0.0, 0.39)


def test_no_text_no_words():
    assert words_of(spikes([], 5), "") == []
    assert words_of(spikes([], 5), "  ") == []
    assert words_of(spikes([], 0), "A") == []
    assert [w.word for w in words_of(spikes([("A", 1), (" ", 2), (" ", 4), ("B", 6)], 9), "A  B")] == ["A", "B"]


def test_a_batch_is_its_utterances_one_by_one():
    one = spikes([("A", 1), (" ", 3), ("B", 5)], 8)
    two = spikes([("C", 2)], 4)
    padded = torch.full((2, 8, len(TOKENIZER)), math.nan)
    padded[0], padded[1, :4] = one, two
    batch = align_batch(
        padded, torch.tensor([8, 4]), [TOKENIZER.encode("A B"), TOKENIZER.encode("C")], TOKENIZER, STATE, timing=PLAIN
    )
    assert batch == [words_of(one, "A B"), words_of(two, "C")]


def test_where_ctc_has_no_room_attention_tells():
    text = "ABBA CC"  # 7 characters and 2 blanks between equal ones, in 8 states
    tokens = TOKENIZER.encode(text)
    assert not fits(tokens, 8)
    assert fits(tokens, 9)
    attention = torch.full((7, 8), 0.01)
    for u, n in enumerate([1, 2, 2, 3, 4, 5, 5]):
        attention[u, n] = 0.9
    first, second = words_of(spikes([], 8), text, attention=attention)
    assert (first.word, second.word) == ("ABBA", "CC")
    assert first.start == pytest.approx(1 * STATE - 0.03)
    assert first.end == second.start == pytest.approx((4 + 5) / 2 * STATE)
    assert second.end == pytest.approx(6 * STATE + 0.05)
    # One stray peak does not drag the words along.
    attention[1] = 0.01
    attention[1, 7] = 0.9
    assert words_of(spikes([], 8), text, attention=attention)[1].start == pytest.approx(second.start)


def test_without_attention_the_words_share_the_time():
    words = words_of(spikes([], 3), "AB CDEF")
    assert [w.word for w in words] == ["AB", "CDEF"]
    assert_in_order(words, 3 * STATE)
    assert words[1].end - words[1].start > words[0].end - words[0].start


@pytest.mark.parametrize("timing", [WordTiming(), PLAIN, WordTiming(0.1, 1.0, 0.3, -0.5, 0.9), WordTiming(0, 0, -1, 1)])
@pytest.mark.parametrize("states", [12, 40])
def test_words_never_overlap_whatever_the_model_says(timing, states):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        log_probs = (3 * torch.randn(states, len(TOKENIZER), generator=generator)).log_softmax(-1)
        attention = torch.rand(19, states, generator=generator).pow(4)
        for text in ("A BB C'S DOG", "AA BBBB CCCCC D EE", "I"):
            words = words_of(log_probs, text, timing=timing, attention=attention[: len(text)])
            assert " ".join(w.word for w in words) == text
            assert_in_order(words, states * STATE)


def test_fit_timing_finds_the_rule_that_made_the_times():
    rule = WordTiming(pause=0.18, share=0.25, shift=0.03, lead=0.01, tail=0.07)
    rng = np.random.default_rng(0)
    utterances = []
    for _ in range(30):
        at, spotted = 0.4, []
        for _ in range(12):
            first = (at, at + STATE)
            last = (at + 0.2, at + 0.2 + STATE)
            spotted.append(SpottedWord("AB", first, last, (0.0,) * len(FEATURES)))
            at = last[1] + STATE * float(rng.choice([1, 2, 3, 4, 8, 15]))
        utterances.append((spotted, place_words(spotted, rule, 100.0)))
    fitted = fit_timing(utterances)
    assert (fitted.pause, fitted.share) == (0.18, 0.25)
    assert (fitted.shift, fitted.lead, fitted.tail) == pytest.approx((0.03, 0.01, 0.07), abs=1e-3)
    with pytest.raises(ValueError, match="no word"):
        fit_timing([(spotted, [None] * len(spotted))])


# --- confidence ---


def test_features_are_the_means_and_minima_of_a_words_characters():
    log_probs = spikes([("A", 1), (" ", 2), ("B", 4), ("C", 6)], 8, probability=0.8)
    log_probs[6] = spikes([("C", 0)], 1, probability=0.5)[0]
    scores = (-0.1, -0.3, -0.2, -0.4, -0.6)  # A, space, B, C, EOS
    a, bc = spot_words(log_probs, TOKENIZER.encode("A BC"), TOKENIZER, STATE, scores)
    log8, log5 = math.log(0.8), math.log(0.5)
    assert a.features == pytest.approx((-0.2, -0.3, log8, log8, 0.0))
    assert bc.features == pytest.approx((-0.4, -0.6, (log8 + log5) / 2, log5, math.log(2)))
    plain = words_of(log_probs, "A BC", token_scores=scores)
    assert [w.confidence for w in plain] == pytest.approx([math.exp(-0.2), math.exp(-0.4)])
    assert words_of(log_probs, "A BC", token_scores=(2.0,) * 5)[0].confidence == 1.0  # length bonuses may add
    calibrated = words_of(log_probs, "A BC", token_scores=scores, confidence=Confidence(1.0, {"score_min": 2.0}))
    assert [w.confidence for w in calibrated] == pytest.approx([1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(0.2))])


def sure_of_itself(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Words of a model that is too sure: right with probability 1 / (1 + exp(-(2 + 6 score_mean)))."""
    rng = np.random.default_rng(seed)
    features = np.zeros((count, len(FEATURES)))
    features[:, 0] = -rng.exponential(0.3, count)
    features[:, 1] = features[:, 0] - rng.exponential(0.1, count)
    features[:, 2:4] = -rng.exponential(0.3, (count, 2))  # says nothing
    correct = rng.random(count) < 1 / (1 + np.exp(-(2 + 6 * features[:, 0])))
    return features, correct


def test_calibration_brings_the_confidence_down_to_the_share_of_right_words():
    confidence = fit_confidence(*sure_of_itself(20000, seed=0))
    features, correct = sure_of_itself(4000, seed=1)
    before = calibration_error(np.exp(features[:, 0]), correct)
    after = calibration_error(np.array([confidence(f) for f in features]), correct)
    assert before > 0.1
    assert after < 0.03
    assert confidence.bias == pytest.approx(2, abs=0.25)
    assert sum(confidence.weights.get(n, 0) for n in ("score_mean", "score_min")) == pytest.approx(6, abs=0.6)


def test_more_probable_characters_never_make_a_word_less_sure():
    features, correct = sure_of_itself(500, seed=2)
    features[:, 3] = -features[:, 0]  # speaks against being right
    confidence = fit_confidence(features, correct)
    assert "ctc_min" not in confidence.weights
    assert min(confidence.weights.values()) >= 0
    values = [confidence((x, x, -1.0, -1.0, 0.0)) for x in np.linspace(-5, 0, 20)]
    assert all(a < b for a, b in pairwise(values))
    assert 0 <= confidence((-1e6, -1e6, -1e6, -1e6, 0.0)) < values[0]


@pytest.mark.parametrize("right", [True, False])
def test_calibration_on_words_that_are_all_alike(right):
    features, _ = sure_of_itself(50, seed=3)
    confidence = fit_confidence(features, np.full(50, right))
    assert (confidence(features.mean(0)) > 0.9) == right


def test_calibration_error_by_hand():
    assert calibration_error(np.array([0.95, 0.95, 0.15]), np.array([True, False, False])) == pytest.approx(
        (2 * (0.95 - 0.5) + 0.15) / 3
    )
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


# --- the whole way ---


def test_a_transcript_with_words(toy_bundle):
    samples = np.concatenate([np.zeros(8000, np.float32), *[speak("ABLE BIRD CAVE", i) for i in range(16)]])
    result = asr.load_model(toy_bundle, "cpu", words=True).transcribe(samples)
    assert len(result.segments) >= 2
    everything = []
    for segment in result.segments:
        assert " ".join(w.word for w in segment.words) == " ".join(segment.text.split())
        assert all(segment.start <= w.start <= w.end <= segment.end for w in segment.words)
        everything += segment.words
        if segment.words:
            assert segment.confidence == pytest.approx(np.mean([w.confidence for w in segment.words]))
    assert everything
    assert_in_order(everything, result.duration)
    assert all(0 <= w.confidence <= 1 for w in everything)
    assert result.confidence == pytest.approx(np.mean([w.confidence for w in everything]))
    plain = asr.load_model(toy_bundle, "cpu").transcribe(samples)
    assert plain.text == result.text
    assert plain.confidence is None
    assert all(segment.words == () and segment.confidence is None for segment in plain.segments)


def test_words_on_the_command_line(toy_bundle, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.wav"
    soundfile.write(path, speak("ABLE BIRD CAVE"), 16000)
    segments = {}
    for words in ((), ("--words",)):
        arguments = ["transcribe", path, "--model", toy_bundle, "--format", "json", "--device", "cpu", *words]
        monkeypatch.setattr(sys, "argv", ["asr", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        (segments[bool(words)],) = json.loads(capsys.readouterr().out)["segments"]
    assert segments[False]["words"] == []
    assert segments[False]["confidence"] == segments[True]["confidence"]
    assert " ".join(w["word"] for w in segments[True]["words"]) == " ".join(segments[True]["text"].split()) != ""
    assert all(0 <= w["start"] <= w["end"] <= segments[True]["end"] for w in segments[True]["words"])
    assert 0 <= segments[True]["confidence"] <= 1


def test_a_models_own_calibration(toy_bundle):
    path = toy_bundle / "config.yaml"
    before = path.read_text()
    addition = "  word_times: {pause: 0.3}\n  confidence: {bias: -1.5, weights: {}}\n"
    path.write_text(before.replace("training:\n", "training:\n" + addition))
    recogniser = asr.load_model(toy_bundle, "cpu", words=True)
    assert recogniser.timing == WordTiming(pause=0.3)
    result = recogniser.transcribe(speak("ABLE BIRD CAVE"))
    assert result.segments[0].words
    assert result.confidence == pytest.approx(1 / (1 + math.exp(1.5)))
    save_word_lm(toy_bundle, estimate(["ABLE BIRD"] * 2), {"words": 2})
    assert recogniser.confidence == Confidence(-1.5, {})
    assert asr.load_model(toy_bundle, "cpu", words=True).confidence == Confidence(-1.5, {})
    for options in ({"beam": 1}, {"lm_weight": 0, "beam": 2}):  # scores of another kind than those that were fitted
        assert asr.load_model(toy_bundle, "cpu", words=True, **options).confidence is geometric_mean
    path.write_text(path.read_text().replace("training:\n", "training:\n  confidence_without_lm: {bias: 2.0}\n"))
    assert asr.load_model(toy_bundle, "cpu", words=True).confidence == Confidence(-1.5, {})
    assert asr.load_model(toy_bundle, "cpu", words=True, beam=1).confidence == Confidence(2.0, {})
    path.write_text(before.replace("training:\n", "training:\n  confidence: {weights: {luck: 1}}\n"))
    with pytest.raises(ModelError, match=r"no feature 'luck'; there are score_mean, .*fit them again"):
        asr.load_model(toy_bundle, "cpu", words=True)
    asr.load_model(toy_bundle, "cpu")  # whoever wants no words is not troubled


@pytest.mark.parametrize(
    "weights", [["score_mean"], {"score_mean": "x"}, {"score_mean": None}, {"colour": 1.0}, {"score_mean": True}]
)
def test_weights_that_make_no_sense(weights):
    with pytest.raises((TypeError, ValueError), match=r"weight|feature"):
        Confidence(0.0, weights)

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import soundfile
import yaml
from toy_speech import speak

import asr
from asr.decoding.beam_search import PRESETS
from asr.errors import AudioError, ConfigError, ModelError
from asr.model.word_lm import estimate, save_word_lm
from asr.transcriber import find_model, is_silent, pick_device, split_at_pauses
from asr.writers import Transcript


@pytest.fixture
def recogniser(toy_bundle):
    return asr.load_model(toy_bundle, "cpu")


def test_a_path_bytes_a_file_and_an_array_give_one_text(recogniser, tmp_path):
    samples = speak("ABLE BIRD")
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    expected = recogniser.transcribe(path)
    assert isinstance(expected, Transcript)
    assert expected.audio == str(path)
    assert expected.duration == pytest.approx(len(samples) / 16000)
    assert expected.model == "model"
    assert expected.real_time_factor > 0
    for source in (path.read_bytes(), io.BytesIO(path.read_bytes()), samples):
        assert recogniser.transcribe(source).text == expected.text
    assert asr.transcribe(path, recogniser.bundle.path, "cpu").text == expected.text


def test_many_sources_keep_their_order_and_equal_one_by_one(recogniser, tmp_path):
    texts = ["ABLE", "BIRD CAVE DUNE ECHO", "FISH GOLD", "HAND ABLE"]
    sources = [speak(text, i) for i, text in enumerate(texts)]
    sources.insert(2, tmp_path / "missing.wav")
    recogniser.batch_seconds = 3.0
    results = list(recogniser.transcribe_all(sources))
    assert [source is given for (source, _), given in zip(results, sources, strict=True)] == [True] * 5
    assert isinstance(results[2][1], AudioError)
    assert "missing.wav: no such file" in str(results[2][1])
    for source, result in results:
        if not isinstance(result, AudioError):
            assert result.text == recogniser.transcribe(source).text


@pytest.mark.parametrize("samples", [np.zeros(16000), np.full(1, 0.5), np.random.default_rng(0).normal(0, 3e-4, 8000)])
def test_silence_is_an_empty_transcript_not_an_error(recogniser, samples):
    result = recogniser.transcribe(samples.astype(np.float32))
    if len(samples) > 1:
        assert result.text == ""
    assert result.duration == len(samples) / 16000


def test_silence_is_told_from_a_soft_voice():
    assert is_silent(np.zeros(10, np.float32), 16000)
    assert not is_silent(0.02 * speak("A"), 16000)
    click = np.zeros(16000, np.float32)
    click[8000] = 1.0
    assert not is_silent(click, 16000)


def test_long_audio_is_cut_in_its_pauses():
    rate = 16000
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, 50 * rate).astype(np.float32)
    samples[15 * rate : int(15.5 * rate)] = 0
    samples[28 * rate : int(28.5 * rate)] = 0
    pieces = split_at_pauses(samples, rate, 20.0)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == len(samples)
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    assert all(end - start <= 20 * rate for start, end in pieces)
    assert 15 <= pieces[0][1] / rate <= 15.5
    assert 28 <= pieces[1][1] / rate <= 28.5
    assert split_at_pauses(samples[: 20 * rate], rate, 20.0) == [(0, 20 * rate)]


def test_long_audio_has_a_segment_for_each_piece(recogniser):
    result = recogniser.transcribe(np.tile(speak("ABLE BIRD CAVE"), 18))
    assert result.duration > 20
    assert len(result.segments) >= 2
    assert result.segments[-1].end == pytest.approx(result.duration)
    assert result.text == " ".join(segment.text for segment in result.segments if segment.text)


def test_models_and_devices_that_are_not_there():
    with pytest.raises(ModelError, match=r"nowhere: no such model folder; models that ship: "):
        find_model("nowhere")
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        pick_device("abacus")


def test_decoding_settings_are_checked(toy_bundle):
    with pytest.raises(ConfigError, match="decoding: beam must be at least 1"):
        asr.load_model(toy_bundle, "cpu", beam=0)
    with pytest.raises(ConfigError, match="width"):
        asr.load_model(toy_bundle, "cpu", width=3)
    assert asr.load_model(toy_bundle, "cpu").decoding.beam == 1
    assert asr.load_model(toy_bundle, "cpu", beam=4).decoding.ctc_weight > 0


@pytest.fixture
def with_lm(toy_bundle):
    """The toy model with a language model, and settings for both."""
    save_word_lm(toy_bundle, estimate(["ABLE BIRD", "ABLE BIRD CAVE", "CAVE"]), {"words": 6})
    path = toy_bundle / "language_model.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(settings | {"decoding": {"beam": 3, "lm_weight": 0.7, "word_bonus": -1.0}}))
    return toy_bundle


def test_the_models_language_model_is_used_unless_it_is_turned_off(with_lm, toy_bundle):
    decoding = asr.load_model(with_lm, "cpu").decoding
    assert (decoding.beam, decoding.lm_weight, decoding.word_bonus) == (3, 0.7, -1.0)
    assert decoding.ctc_weight == PRESETS["beam_ctc_lm"].ctc_weight
    recogniser = asr.load_model(with_lm, "cpu", lm_weight=0)
    assert recogniser.decoding == PRESETS["greedy_ctc"]
    assert recogniser.language_model is None
    assert asr.load_model(with_lm, "cpu", beam=1).decoding == PRESETS["greedy_ctc"]
    assert asr.load_model(with_lm, "cpu", beam=2).decoding.word_bonus == -1.0
    assert asr.load_model(with_lm, "cpu", lm_weight=0, beam=2).decoding == replace(PRESETS["beam_ctc"], beam=2)
    decoding = asr.load_model(with_lm, "cpu", lm_weight=0.1, beam=1).decoding
    assert (decoding.beam, decoding.lm_weight, decoding.word_bonus) == (1, 0.1, -1.0)
    samples = speak("ABLE BIRD CAVE")
    texts = {w: asr.load_model(with_lm, "cpu", lm_weight=w).transcribe(samples).text for w in (0, 3.0)}
    assert texts[0] != texts[3.0]


def test_a_language_model_that_is_not_there(toy_bundle):
    with pytest.raises(ConfigError, match=r"lm_weight is 0.3, but .*model has no language model; set it to 0"):
        asr.load_model(toy_bundle, "cpu", lm_weight=0.3)


def test_settings_of_the_language_model_that_make_no_sense(with_lm):
    path = with_lm / "language_model.yaml"
    settings = yaml.safe_load(path.read_text())
    for wrong in ({"beam": 0}, {"colour": 1}, [1]):
        path.write_text(yaml.safe_dump(settings | {"decoding": wrong}))
        with pytest.raises(ModelError, match=r"language_model.yaml: .*tune.py save=true"):
            asr.load_model(with_lm, "cpu")
    assert asr.load_model(with_lm, "cpu", lm_weight=0).decoding.lm_weight == 0

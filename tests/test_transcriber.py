import io
import tracemalloc
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import pytest
import soundfile
import torch
import yaml
from toy_speech import speak

import asr
from asr.decoding.beam_search import PRESETS, DecodingConfig
from asr.errors import AudioError, ConfigError, ModelError
from asr.frontend import warp_bands
from asr.model.word_lm import estimate, save_word_lm
from asr.segmenter import Loudness, SegmenterConfig
from asr.transcriber import BATCHES_AHEAD, BLOCK_SECONDS, Transcriber, find_model, pick_device
from asr.writers import Segment, Transcript


class Counting(Loudness):
    """A detector with a state: speech is what is loud, but for every third second."""

    def reset(self) -> None:
        self.seen = 0

    def probabilities(self, samples):
        loud = super().probabilities(samples)
        numbers = self.seen + np.arange(len(loud))
        self.seen += len(loud)
        return np.where(numbers // 32 % 3 == 2, 0.0, loud).astype(np.float32)


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
    recogniser.batch_size = 1
    assert len(sources) > BATCHES_AHEAD
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


def test_a_segment_for_each_stretch_of_speech(toy_bundle):
    recogniser = asr.load_model(toy_bundle, "cpu", words=True)
    pause = np.zeros(16000, np.float32)
    first, second = speak("ABLE BIRD"), speak("CAVE", 1)
    result = recogniser.transcribe(np.concatenate([pause, first, pause, second, pause]))
    assert len(result.segments) == 2
    for segment, start, samples in zip(result.segments, (1.0, 2.0 + len(first) / 16000), (first, second), strict=True):
        assert start - 0.25 <= segment.start <= start + 0.3
        assert segment.end <= start + len(samples) / 16000 + 0.25
        assert all(segment.start <= word.start < word.end <= segment.end for word in segment.words)
        assert 0 <= segment.confidence <= 1
    assert result.text == " ".join(segment.text for segment in result.segments)


def test_the_longest_segment_is_a_setting(toy_bundle):
    samples = np.tile(speak("ABLE BIRD CAVE"), 6)
    lengths = {}
    for longest in (3.0, 20.0):
        recogniser = asr.load_model(toy_bundle, "cpu", segmentation=SegmenterConfig(max_duration=longest))
        segments = recogniser.transcribe(samples).segments
        lengths[longest] = len(segments)
        assert max(s.end - s.start for s in segments) <= longest
    assert lengths[3.0] > lengths[20.0]


def _lecture(path, minutes):
    """A file of toy speech, written block by block."""
    part = np.concatenate([speak("ABLE BIRD"), np.zeros(16000, np.float32), speak("CAVE DUNE"), np.zeros(9000)])
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        while file.frames < minutes * 60 * 16000:
            file.write(part)
    return path


def test_long_audio_is_never_whole_in_memory(recogniser, tmp_path, monkeypatch):
    recogniser.batch_size = 2
    monkeypatch.setattr(
        recogniser, "_recognise_pieces", lambda pieces, _: [Segment(p.start, p.end, "A") for p in pieces]
    )
    peaks = {}
    for minutes in (2, 8):
        path = _lecture(tmp_path / f"{minutes}.wav", minutes)
        tracemalloc.start()
        result = recogniser.transcribe(path)
        peaks[minutes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert result.duration == pytest.approx(soundfile.info(path).duration)
        assert len(result.segments) > 20 * minutes
    assert peaks[8] < 1.3 * peaks[2] < 8 * 60 * 16000 * 4  # NumPy reports its arrays to tracemalloc


def test_results_come_as_soon_as_they_are_there(recogniser, tmp_path):
    recogniser.batch_size = 1
    read = []

    def sources():
        for i in range(4):
            read.append(i)
            yield _lecture(tmp_path / f"{i}.wav", 0.15)

    told = []
    seen = []
    for _, result in recogniser.transcribe_all(sources(), list("abcd"), lambda *a: told.append(a)):
        seen.append((result.audio, len(read)))
    assert [name for name, _ in seen] == ["a", "b", "c", "d"]
    assert seen[0][1] < 4
    assert sum(seconds for _, seconds in told) == pytest.approx(4 * soundfile.info(tmp_path / "0.wav").duration)
    assert {name for name, _ in told} == {"a", "b", "c", "d"}


def test_out_of_order_none_waits_for_those_before_it(recogniser, monkeypatch):
    recogniser.batch_size = 1
    sources = [speak(text) for text in ("ABLE BIRD CAVE", "DUNE ECHO", "FISH")]  # the shortest are decoded first
    decoded = []
    recognise = recogniser._recognise_pieces
    monkeypatch.setattr(recogniser, "_recognise_pieces", lambda *a: decoded.append(1) or recognise(*a))
    seen = [(result.audio, len(decoded)) for _, result in recogniser.transcribe_all(sources, "abc", in_order=False)]
    assert seen == [("c", 1), ("b", 2), ("a", 3)]
    decoded.clear()
    seen = [(result.audio, len(decoded)) for _, result in recogniser.transcribe_all(sources, "abc")]
    assert seen == [("a", 3), ("b", 3), ("c", 3)]


def test_two_are_listened_to_at_a_time(toy_bundle):
    def blocks(first: int):
        samples = np.concatenate([speak("ABLE BIRD", first), np.zeros(16000, np.float32), speak("CAVE", first + 1)])
        return (samples[start : start + 1600] for start in range(0, len(samples), 1600))

    recogniser = asr.load_model(toy_bundle, "cpu", vad=False)
    recogniser._detector = Counting(recogniser.sample_rate)
    alone = [list(recogniser.listen(blocks(first))) for first in (0, 5)]
    assert all(alone)
    together: list[list[Segment]] = [[], []]
    for pair in zip_longest(*(recogniser.listen(blocks(first)) for first in (0, 5))):
        for heard, segment in zip(together, pair, strict=True):
            heard += [segment] if segment else []
    assert together == alone


def test_a_file_that_breaks_off_costs_only_its_own_result(recogniser, tmp_path):
    long = _lecture(tmp_path / "long.flac", 2 * BLOCK_SECONDS / 60)
    long.write_bytes(long.read_bytes()[: int(0.9 * long.stat().st_size)])
    short = speak("GOLD")
    results = [result for _, result in recogniser.transcribe_all([short, long, short])]
    assert results[0].text == results[2].text == recogniser.transcribe(short).text
    assert isinstance(results[1], AudioError)
    assert "long.flac: damaged or truncated" in str(results[1])


def test_listening_gives_segments_as_pauses_end_them(recogniser):
    samples = np.concatenate([speak("ABLE BIRD"), np.zeros(16000, np.float32), speak("CAVE", 1)])
    fed = []

    def blocks():
        for start in range(0, len(samples), 1600):
            fed.append(start)
            yield samples[start : start + 1600]

    heard = [(segment, len(fed)) for segment in recogniser.listen(blocks())]
    expected = recogniser.transcribe(samples).segments
    assert [segment for segment, _ in heard] == list(expected)
    assert heard[0][1] < len(samples) / 1600 - 5


def test_what_a_long_block_ends_is_decoded_a_batch_at_a_time(toy_bundle, monkeypatch):
    recogniser = asr.load_model(toy_bundle, "cpu", batch_size=2, vad=False)
    search, sizes = recogniser.search, []
    monkeypatch.setattr(recogniser, "search", lambda h, lengths: sizes.append(len(h)) or search(h, lengths))
    pause = np.zeros(16000, np.float32)
    block = np.concatenate([part for i in range(5) for part in (speak("CAVE", i), pause)])
    assert len(list(recogniser.listen([block]))) == 5
    assert sizes == [2, 2, 1]


@torch.inference_mode()
def test_the_encoder_hears_other_voices_too(toy_bundle):
    frames = torch.randn(40, 40, generator=torch.Generator().manual_seed(3))  # the toy has 40 mel bands
    recogniser = asr.load_model(toy_bundle, "cpu", phases=2, warp=0.1)
    reduction = recogniser.bundle.model.encoder.config.reduction
    h, lengths = recogniser.encode([frames])
    total = 0.0
    for factor, moved in ((0.9, frames), (1.1, torch.cat([frames[:1], frames]))):
        heard = warp_bands(moved[None], torch.tensor([factor]), 16000)
        total = total + recogniser.bundle.model.encoder(heard, torch.tensor([len(moved)]))[0][:, : 40 // reduction]
    torch.testing.assert_close(h, total / 2, atol=1e-5, rtol=1e-4)
    assert lengths.tolist() == [40 // reduction]
    alone, _ = asr.load_model(toy_bundle, "cpu", phases=1, warp=0.1).encode([frames])  # there is nothing to spread over
    torch.testing.assert_close(alone, asr.load_model(toy_bundle, "cpu", phases=1).encode([frames])[0])


@pytest.mark.parametrize("voice", ["file", "all"])
def test_a_second_search_is_used_to_the_voice(toy_bundle, voice, tmp_path):
    """Each source is decoded with what its own voice, or that of all, has taught; and the time and work are counted."""
    sources = [
        speak("ABLE BIRD CAVE"),
        tmp_path / "missing.wav",
        np.zeros(16000, np.float32),
        speak("DUNE ECHO FISH", 1),
    ]
    recogniser = asr.load_model(
        toy_bundle, "cpu", adapt=voice, batch_size=1, segmentation=SegmenterConfig(max_duration=1)
    )
    taught, used, told = [], [], []
    learn = recogniser.adapt

    def adapting(groups, on_progress):
        before = len(used)
        adaptation = learn(groups, on_progress)
        taught.append((sum(map(len, groups)), adaptation))
        assert used[before:] == [None] * len(groups)
        del used[before:]  # the first search
        return adaptation

    recogniser.adapt = adapting
    encode = recogniser.encode
    recogniser.encode = lambda frames, adaptation=None: used.append(adaptation) or encode(frames, adaptation)
    results = [r for _, r in recogniser.transcribe_all(sources, list("abcd"), lambda *a: told.append(a))]
    assert [r.audio for r in (results[0], results[2], results[3])] == ["a", "c", "d"]
    assert isinstance(results[1], AudioError)
    assert results[2].text == ""
    assert [count for count, _ in taught] == ([2, 2] if voice == "file" else [4])
    expected = [adaptation for count, adaptation in taught for _ in range(count)]
    assert all(a is b for a, b in zip(used, expected, strict=True))
    assert all(any(values.any() for pair in adaptation for values in pair) for _, adaptation in taught)
    assert sum(seconds for _, seconds in told) == pytest.approx(
        sum(r.duration for r in results if isinstance(r, Transcript))
    )
    assert len(told) >= 8
    assert all(seconds > -1e-6 for _, seconds in told)


@pytest.mark.parametrize(("ctc_weight", "part"), [(0.0, "ctc"), (1.0, "speller")])
def test_a_voice_is_learned_from_what_searches(toy_bundle, ctc_weight, part):
    decoding = DecodingConfig(beam=2, ctc_weight=ctc_weight)
    recogniser = Transcriber(asr.load_model(toy_bundle, "cpu").bundle, decoding, adapt="file")
    for values in getattr(recogniser.bundle.model, part).parameters():
        values.fill_(torch.nan)
    frames = [recogniser.bundle.encode(torch.from_numpy(speak("ABLE BIRD")))]
    learned = [values for pair in recogniser.adapt([frames]) for values in pair]
    assert all(values.isfinite().all() and values.any() for values in learned)


def test_a_voice_that_is_neither_a_files_nor_alls(toy_bundle):
    with pytest.raises(ConfigError, match="adapt 'each': use file or all"):
        asr.load_model(toy_bundle, "cpu", adapt="each")


def test_the_n_best_readings_of_a_segment(toy_bundle):
    recogniser = asr.load_model(toy_bundle, "cpu", beam=4, nbest=3)
    (segment,) = recogniser.transcribe(speak("ABLE BIRD")).segments
    assert 1 < len(segment.nbest) <= 3
    assert segment.nbest[0].text == segment.text
    scores = [reading.score for reading in segment.nbest]
    assert scores == sorted(scores, reverse=True)
    assert len({reading.text for reading in segment.nbest}) == len(segment.nbest)
    with pytest.raises(ConfigError, match="nbest"):
        asr.load_model(toy_bundle, "cpu", beam=2, nbest=3)


RATE, SECONDS = 16_000, 6
TIME = np.arange(RATE * SECONDS) / RATE


def _music():
    """Chords of decaying strings."""
    rng, sound = np.random.default_rng(0), np.zeros(len(TIME))
    for start in range(0, len(TIME), RATE // 2):
        passed = TIME[: len(TIME) - start]
        for pitch in rng.choice([220, 262, 294, 330, 392, 440, 523], 3, False):
            sound[start:] += sum(np.sin(2 * np.pi * pitch * k * passed) / k for k in range(1, 8)) * np.exp(-3 * passed)
    return 0.5 * sound / np.abs(sound).max()


def _clicks():
    sound = np.zeros(len(TIME))
    sound[np.random.default_rng(0).integers(0, len(TIME), 30)] = 0.9
    return sound


NOT_SPEECH = {
    "silence": np.zeros(len(TIME)),
    "white noise": np.random.default_rng(0).normal(0, 0.1, len(TIME)),
    "loud white noise": np.random.default_rng(1).normal(0, 0.3, len(TIME)),
    "hum": 0.3 * np.sin(2 * np.pi * 50 * TIME) + 0.1 * np.sin(2 * np.pi * 150 * TIME),
    "tone": 0.3 * np.sin(2 * np.pi * 440 * TIME),
    "clicks": _clicks(),
    "music": _music(),
}


@pytest.fixture(scope="module")
def shipped():
    return asr.load_model(device="cpu", beam=1)


@pytest.mark.parametrize("kind", NOT_SPEECH)
def test_what_is_no_speech_gives_no_words(real_vad, shipped, kind):
    result = shipped.transcribe(NOT_SPEECH[kind].astype(np.float32))
    assert (result.text, result.segments) == ("", ())
    assert result.duration == SECONDS


def test_speech_amid_noise_and_music_is_found(real_vad, shipped):
    path = find_model().parents[2] / "recipes/quickstart/audio/garden.flac"
    voice = soundfile.read(path, dtype="float32")[0]
    alone = shipped.transcribe(voice)
    assert "GARDEN" in alone.text
    around = [NOT_SPEECH[kind].astype(np.float32) for kind in ("white noise", "music")]
    result = shipped.transcribe(np.concatenate([around[0], np.zeros(RATE, np.float32), voice, *around[1:]]))
    assert "GARDEN" in result.text
    assert all(s.start > SECONDS and s.end < SECONDS + 1 + len(voice) / RATE + 0.5 for s in result.segments)


def test_models_and_devices_that_are_not_there():
    with pytest.raises(ModelError, match=r"nowhere: no such model folder; models that ship: "):
        find_model("nowhere")
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        pick_device("abacus")
    with pytest.raises(ConfigError, match="use auto, cpu or cuda"):
        pick_device("mps")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


def test_decoding_settings_are_checked(toy_bundle):
    with pytest.raises(ConfigError, match="decoding: beam must be at least 1"):
        asr.load_model(toy_bundle, "cpu", beam=0)
    with pytest.raises(ConfigError, match="decoding: lm_weight must be finite, got inf"):
        asr.load_model(toy_bundle, "cpu", lm_weight=float("inf"))
    for size in (-1, 2.5, "4"):
        with pytest.raises(ConfigError, match=f"batch_size must be a whole number of at least 1, got {size!r}"):
            asr.load_model(toy_bundle, "cpu", batch_size=size)
    for wrong in ({"beam": "8"}, {"beam": 8.0}, {"beam": 4, "nbest": 2.0}, {"merge_words": 1.5}, {"phases": 2.0}):
        with pytest.raises(ConfigError, match=f"decoding.{list(wrong)[-1]} should be int, not"):
            asr.load_model(toy_bundle, "cpu", **wrong)
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


def test_a_setting_that_was_saved_when_there_was_one(with_lm):
    path = with_lm / "language_model.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"decoding": {"adapt": 0, "beam": 5}}))
    assert asr.load_model(with_lm, "cpu").decoding.beam == 5


@pytest.mark.parametrize(
    ("decoding", "segments"),
    [
        (DecodingConfig(beam=1), 32),
        (DecodingConfig(beam=8), 32),
        (DecodingConfig(beam=64), 4),
        (DecodingConfig(beam=128, prune=7.0), 16),  # most of these hypotheses are not there
        (DecodingConfig(beam=4, prune=7.0), 32),
    ],
)
def test_the_wider_the_beam_the_fewer_segments_at_a_time(recogniser, decoding, segments):
    assert Transcriber(recogniser.bundle, decoding).batch_size == segments
    assert Transcriber(recogniser.bundle, decoding, batch_size=3).batch_size == 3

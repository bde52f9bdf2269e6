"""Text read aloud: what is read, by whom, how it is written down, and that a folder can be gone on with."""

import importlib.util
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from toy_speech import speak

from asr.corpus import chapters, librispeech, synthetic
from asr.corpus.synthetic import (
    FliteVoice,
    HibariVoice,
    PicoVoice,
    Speaker,
    SpeakerRanges,
    SyntheticConfig,
    draw_speaker,
    make_voice,
    synthesize,
)
from asr.corpus.text import PreparedText, prepare_text
from asr.errors import ConfigError, CorpusError
from asr.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[2]
CONFIG = SyntheticConfig(speakers=3, chapter_minutes=0.25, min_seconds=1.0, max_seconds=6.0, max_words=9)
AS_IT_IS = Speaker(pitch=1, intonation=1, formants=1, pace=1, breath=0, pauses=0, level=-26, snr=60, hiss_slope=0)


class ToyVoice:
    """Tones, so that nothing has to be installed."""

    def __call__(self, sentence, speaker, rng):
        return speak(sentence, seed=int(rng.integers(1000)))


def toy_voice(name):
    return ToyVoice()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    animals, verbs, places = ["CAT", "DOG", "BIRD"], ["SAT", "SLEPT", "DIDN'T SIT"], ["MAT", "ROOF", "WALL", "TREE"]
    lines = [f"{n} OLD {a} {v} ON THE {p}" for n in ("A", "NO", "ONE") for a in animals for v in verbs for p in places]
    (folder / "lines.txt").write_text("\n".join([*lines, "THIS ONE IS OF MORE THAN NINE WORDS AS YOU CAN COUNT"]))
    prepare_text([folder / "lines.txt"], folder / "text", held_out=0.3)
    return folder / "text"


def read_aloud(text, output, hours=0.0125, config=CONFIG, **options):
    return synthesize(text, output, hours, config, make_voice=toy_voice, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_is_a_subset_of_sentences_that_are_not_held_out(text, tmp_path):
    read_aloud(text, tmp_path)
    [scan] = librispeech.prepare(tmp_path, ["synthetic"], tmp_path / "manifests")
    assert scan.dropped == []
    assert scan.speakers == {"T0000", "T0001", "T0002"}
    assert scan.hours == pytest.approx(0.0125, rel=0.5)  # three chapters of about 15 s
    tokenizer, part = CharTokenizer(), PreparedText(text, "train")
    train = {tokenizer.decode(part[i].tolist()) for i in range(len(part))}
    spoken = []
    for utterance in scan.utterances:
        assert utterance.sample_rate == 16000
        assert 1.0 <= utterance.duration <= 6.0
        words = utterance.text.split(" ")
        while words:
            size = next(n for n in (8, 7) if " ".join(words[:n]) in train)
            spoken.append(" ".join(words[:size]))
            del words[:size]
    assert len(spoken) == len(set(spoken)) > len(scan.utterances)  # nothing twice, and some are joined


def test_a_folder_is_gone_on_with_and_grows(text, tmp_path):
    whole, other = read_aloud(text, tmp_path / "whole"), tmp_path / "stopped"
    expected = contents(whole)
    folder = read_aloud(text, other, hours=0.008)
    assert len(list(folder.rglob("*.trans.txt"))) == 2
    next(folder.rglob("*.trans.txt")).unlink()  # as if stopped in the middle of its chapter
    untouched = next(folder.rglob("*.trans.txt"))
    stamp = untouched.stat().st_mtime_ns
    read_aloud(text, other)
    assert contents(folder) == expected
    assert untouched.stat().st_mtime_ns == stamp
    assert contents(read_aloud(text, tmp_path / "two", processes=2)) == expected
    assert contents(read_aloud(text, tmp_path / "seed", config=replace(CONFIG, seed=2))) != expected


def test_fewer_hours_than_asked_for_are_told(text, tmp_path, caplog):
    folder = read_aloud(text, tmp_path)
    seconds = sum(soundfile.info(path).duration for path in folder.rglob("*.flac"))
    assert seconds < 0.9 * 0.0125 * 3600
    assert f"only {seconds / 3600:.2f} of 0.0125 hours, for the sentences are short; raise hours" in caplog.text
    caplog.clear()
    read_aloud(text, tmp_path, hours=0.001)
    assert not caplog.text


def test_what_cannot_work_is_said_in_one_line(text, tmp_path, monkeypatch):
    def fails(error, match, *arguments, **options):
        with pytest.raises(error, match=match) as caught:
            read_aloud(*arguments, **options)
        assert "\n" not in str(caught.value)

    fails(CorpusError, "no prepared text there", tmp_path / "nowhere", tmp_path)
    fails(CorpusError, r"long enough for 0\.\d+ hours, not 1; add text or lower hours", text, tmp_path, hours=1)
    fails(ConfigError, "hours must be above 0", text, tmp_path, hours=0)
    fails(ConfigError, "hours should be float, not 'abc'", text, tmp_path, hours="abc")
    with pytest.raises(ValueError, match="seed must be 0 or more"):
        replace(CONFIG, seed=-1)
    fails(CorpusError, "no sentence read aloud lasts from 7", text, tmp_path,
          config=replace(CONFIG, min_seconds=7.0, max_seconds=7.1))  # fmt: skip
    read_aloud(text, tmp_path / "a", hours=0.001)
    again = tmp_path / "text" / "again"  # in whose place another text is prepared, as when overlap_with is added
    shutil.copytree(text, again)
    read_aloud(again, tmp_path / "again", hours=0.001)
    (again / "lines.txt").write_text(
        "\n".join(PreparedText(text, "train").lines()[1:] + PreparedText(text, "held_out").lines())
    )
    prepare_text([again / "lines.txt"], again, held_out=0.3)
    fails(ConfigError, r"settings.json: was made with other settings", again, tmp_path / "again", hours=0.001)
    fails(ConfigError, r"settings.json: was made with other settings", text, tmp_path / "a",
          config=replace(CONFIG, seed=2))  # fmt: skip
    (tmp_path / "file").write_text("")
    fails(ConfigError, "cannot write there .*; choose another output", text, tmp_path / "file")
    monkeypatch.setattr(chapters.shutil, "disk_usage", lambda _: namedtuple("usage", "free")(1000))
    fails(ConfigError, "0.0 GB free, but 0.0 GB needed; free space there", text, tmp_path / "b")
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'asr\[tts\]'"):
        HibariVoice()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="flite is not installed; on Debian and Ubuntu: apt-get install flite"):
        FliteVoice("slt")
    monkeypatch.setitem(sys.modules, "ttspico", None)
    with pytest.raises(ConfigError, match=r"ttspico is not installed; pip install 'asr\[pico\]' .*C compiler"):
        PicoVoice("us")
    for wrong in (
        {"speakers": 0},
        {"prefix": "AB"},
        {"prefix": ""},
        {"chapter_minutes": 0.0},
        {"min_seconds": 9.0, "max_seconds": 8.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SyntheticConfig(**wrong)
    with pytest.raises(ValueError, match=r"voices must be some of hibari, flite-awb, .*; got hibari, flite-nobody"):
        SyntheticConfig(voices=("hibari", "flite-nobody"))
    with pytest.raises(ValueError, match="got none"):
        SyntheticConfig(voices=())
    with pytest.raises(ValueError, match="pace must be two numbers, the lower first"):
        SpeakerRanges(pace=(1.1, 0.9))


def test_speakers_differ_within_the_ranges_and_high_voices_have_high_formants():
    ranges = SpeakerRanges()
    speakers = [draw_speaker(ranges, 1, number) for number in range(200)]
    assert speakers[7] == draw_speaker(ranges, 1, 7) != draw_speaker(ranges, 2, 7)
    for field in fields(Speaker):
        drawn = [getattr(speaker, field.name) for speaker in speakers]
        low, high = getattr(ranges, field.name)
        assert low <= min(drawn) < low + (high - low) / 5
        assert high >= max(drawn) > high - (high - low) / 5
    formants, pitch = ([getattr(speaker, name) for speaker in speakers] for name in ("formants", "pitch"))
    assert 0.7 < np.corrcoef(formants, pitch)[0, 1] < 0.99


def test_pseudo_speakers_have_the_voices_in_turn(text, tmp_path):
    asked = []

    class Named(ToyVoice):
        def __init__(self, name):
            asked.append(name)
            self.seed = ("hibari", "flite-slt").index(name)

        def __call__(self, sentence, speaker, rng):
            said.append((speaker, self.seed))
            return super().__call__(sentence, speaker, rng)

    said: list = []
    config = replace(CONFIG, speakers=2, prefix="UV", voices=("hibari", "flite-slt"))
    folder = synthesize(text, tmp_path, 0.0125, config, make_voice=Named)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"UV0000", "UV0001"}
    assert asked == ["hibari", "flite-slt"]  # each is loaded once for the three chapters
    assert {draw_speaker(config.ranges, 1, i): i for i in (0, 1)} == dict(said)


def test_a_sentence_is_punctuated():
    rng = np.random.default_rng(0)
    assert synthetic.punctuate("I SAID I'D GO AND 'TWAS SO", 0.0, rng) == "I said I'd go and 'twas so."
    assert synthetic.punctuate("I SAID I'D GO AND RUN", 1.0, rng) == "I said I'd go, and run."


def test_hiss_falls_by_its_slope_and_lies_below_the_speech():
    rng = np.random.default_rng(0)
    noise = synthetic.hiss(160000, 6.0, rng)
    assert np.mean(noise**2) == pytest.approx(1.0, rel=1e-3)
    power, frequency = np.abs(np.fft.rfft(noise)) ** 2, np.fft.rfftfreq(160000, 1 / 16000)
    octaves = [power[(frequency > f) & (frequency < 1.1 * f)].mean() for f in (500, 1000, 2000)]
    assert np.diff(10 * np.log10(octaves)) == pytest.approx([-6, -6], abs=0.5)


def test_level_and_noise_of_a_recording_are_the_speakers(text, tmp_path):
    config = replace(CONFIG, ranges=SpeakerRanges(level=(-30, -30), snr=(20, 20)))
    folder = read_aloud(text, tmp_path, config=config)
    levels, floors = [], []
    for path in folder.rglob("*.flac"):
        samples, _ = soundfile.read(path)
        levels.append(10 * np.log10(np.mean(samples**2)))
        floors.append(10 * np.log10(np.mean(samples[:1000] ** 2)))  # toy speech begins with silence
    assert np.mean(levels) == pytest.approx(-30, abs=2)
    assert np.std(levels) > 0.2
    assert np.mean(floors) - np.mean(levels) == pytest.approx(-20, abs=2)


def test_the_recipe_says_what_is_wrong_and_ends_with_2(tmp_path):
    script = ROOT / "recipes" / "synthetic" / "prepare.py"
    command = [sys.executable, str(script), f"text={tmp_path}", f"output={tmp_path}"]
    for extra, said in (([], "no prepared text there"), (["ranges.pitch=[1.2,0.8]"], "pitch must be two numbers")):
        done = subprocess.run(command + extra, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


SENTENCE = "WE WERE AWAY A YEAR AGO"


def check_pace_and_formants(voice):
    """What says a sentence as a speaker with some changes, and the sentence without any."""

    def say(**changes):
        return voice(SENTENCE, replace(AS_IT_IS, **changes), np.random.default_rng(0))

    plain = say()
    assert np.array_equal(plain, say())
    assert len(say(pace=0.8)) == pytest.approx(len(plain) / 0.8, rel=0.05)
    assert len(say(formants=0.85)) == pytest.approx(len(plain), rel=0.05)
    assert centroid(say(formants=0.85)) < 0.95 * centroid(plain)
    return say, plain


@pytest.mark.skipif(not importlib.util.find_spec("hibari"), reason="hibari-tts is not installed (extra tts)")
def test_pitch_formants_and_pace_of_the_voice_are_the_speakers():
    voice = HibariVoice()

    say, plain = check_pace_and_formants(voice)
    assert pitch(say(pitch=0.7)) == pytest.approx(0.7 * pitch(plain), rel=0.1)
    assert pitch(say(formants=0.85)) == pytest.approx(pitch(plain), rel=0.1)


@pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed")
@pytest.mark.parametrize("name", FliteVoice.PITCHES)
def test_pitch_formants_and_pace_of_flites_voices_are_the_speakers(name):
    voice = make_voice(f"flite-{name}")

    say, plain = check_pace_and_formants(voice)
    if name == "rms":  # whose pitch cannot be set
        assert pitch(say(pitch=1.3)) == pitch(plain)
    else:
        assert pitch(plain) == pytest.approx(FliteVoice.PITCHES[name], rel=0.1)
        assert pitch(say(pitch=1.3)) == pytest.approx(1.3 * pitch(plain), rel=0.1)
        assert pitch(say(formants=0.85)) == pytest.approx(pitch(plain), rel=0.1)


@pytest.mark.skipif(not importlib.util.find_spec("ttspico"), reason="ttspico is not installed (extra pico)")
@pytest.mark.parametrize("name", PicoVoice.LANGUAGES)
def test_pitch_formants_and_pace_of_picos_voices_are_the_speakers(name):
    voice = make_voice(f"pico-{name}")

    say, plain = check_pace_and_formants(voice)
    assert pitch(say(pitch=0.7)) == pytest.approx(0.7 * pitch(plain), rel=0.1)
    assert pitch(say(formants=0.85)) == pytest.approx(pitch(plain), rel=0.1)
    assert not np.array_equal(plain, make_voice("pico-gb" if name == "us" else "pico-us")(SENTENCE, AS_IT_IS, None))


def pitch(samples) -> float:
    """Hz, the median over the loud frames of where the autocorrelation peaks."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::160]
    loud = frames[np.square(frames).mean(1) > np.square(samples).mean()]
    correlation = np.fft.irfft(np.abs(np.fft.rfft(loud * np.hanning(1024), 2048)) ** 2)
    return float(np.median(16000 / (40 + correlation[:, 40:200].argmax(1))))


def centroid(samples) -> float:
    """Hz, mean of the logarithmic spectrum below 4 kHz."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequency = np.fft.rfftfreq(len(samples), 1 / 16000)
    low = frequency < 4000
    return float((frequency[low] * spectrum[low]).sum() / spectrum[low].sum())

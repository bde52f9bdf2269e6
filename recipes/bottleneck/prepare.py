"""Utterances of 1 to 12 spoken words, said by a synthetic voice -> lhotse manifests. No download.

python recipes/bottleneck/prepare.py output=data/bottleneck

The voice is hibari-tts's `heart` (Apache-2.0, in the `tts` extra). Its words are changed in pitch, tempo and
spectral tilt, as if by different speakers, cut out, and joined with pauses: the number of words in an utterance is
chosen, all else is drawn. The pseudo-speakers of the development and test sets say nothing in the training set.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import librosa
import numpy as np
import soundfile
import soxr
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.progress import MofNCompleteColumn

from asr._exit import friendly_errors
from asr.config import from_mapping, to_mapping
from asr.corpus import librispeech
from asr.errors import ConfigError
from asr.tokenizer import normalize_text
from asr.writers import make_writable, write_atomically

SAMPLE_RATE = 16000  # Hz, of the corpus
VOICE_RATE = 24000  # Hz, of hibari
TRIM_DB = 35  # below the loudest; quieter ends of a word are cut off
MARGIN = 0.2  # seconds of quiet before the first word and after the last

Say = Callable[[str, float], np.ndarray]  # a word, times the voice's tempo -> samples at VOICE_RATE


@dataclass(frozen=True)
class WordCorpus:
    """Settings, see conf/corpus/bottleneck.yaml; pairs are ranges that are drawn from evenly."""

    words: tuple[str, ...]
    repeats: bool
    longest: int
    subsets: Mapping[str, Mapping[str, int]]  # name -> voices, and utterances or words of every length
    renditions: int
    jitter: float
    pitch: tuple[float, float]
    tempo: tuple[float, float]
    tilt: tuple[float, float]
    gain: tuple[float, float]
    pause: tuple[float, float]
    noise: float
    seed: int
    name: str = "bottleneck"

    def __post_init__(self) -> None:
        if not self.repeats and self.longest > len(self.words):
            raise ValueError(
                f"longest is {self.longest}, but only {len(self.words)} words can be said without a repetition"
            )


@dataclass(frozen=True)
class Voice:
    """A pseudo-speaker: changes to the synthetic voice."""

    pitch: float
    tempo: float
    tilt: float

    def speak(self, word: str, say: Say, jitter: float, rng: random.Random) -> np.ndarray:
        """The word, never twice quite the same, without silence around it, at SAMPLE_RATE and a peak of 1."""
        pitch, tempo = (value * rng.uniform(1 - jitter, 1 + jitter) for value in (self.pitch, self.tempo))
        spoken, _ = librosa.effects.trim(say(word, tempo / pitch), top_db=TRIM_DB, frame_length=512, hop_length=128)
        samples = soxr.resample(spoken, VOICE_RATE * pitch, SAMPLE_RATE)  # played faster: higher, and shorter
        samples[1:] += self.tilt * samples[:-1].copy()
        return samples / np.abs(samples).max()


def draw_voice(corpus: WordCorpus, rng: random.Random) -> Voice:
    return Voice(*(rng.uniform(*limits) for limits in (corpus.pitch, corpus.tempo, corpus.tilt)))


def join(cuts: Sequence[np.ndarray], corpus: WordCorpus, rng: random.Random, noise: np.random.Generator) -> np.ndarray:
    """Words with pauses between them, in a little noise: samples (T,)."""
    quiet = np.zeros(round(MARGIN * SAMPLE_RATE), np.float32)
    parts = [quiet]
    for cut in cuts:
        pause = rng.uniform(*corpus.pause) if len(parts) > 1 else 0.0
        parts += [np.zeros(round(pause * SAMPLE_RATE), np.float32), cut]
    samples = np.concatenate([*parts, quiet]) * 10 ** (rng.uniform(*corpus.gain) / 20)
    return samples + 10 ** (corpus.noise / 20) * noise.standard_normal(len(samples))


def write_subset(root: Path, subset: str, corpus: WordCorpus, say: Say) -> None:
    """Audio and transcripts of one subset, laid out like LibriSpeech; every utterance is one voice's."""
    size = corpus.subsets[subset]
    rng = random.Random(f"{corpus.seed}-{subset}")
    noise = np.random.default_rng(rng.getrandbits(32))
    lengths = [
        n for n in range(1, corpus.longest + 1) for _ in range(size.get("utterances") or max(1, size["words"] // n))
    ]
    rng.shuffle(lengths)
    draw = rng.choices if corpus.repeats else rng.sample
    with librispeech.progress_bar(MofNCompleteColumn()) as progress:
        for number in progress.track(range(size["voices"]), description=subset):
            voice = draw_voice(corpus, rng)
            cuts = {
                word: [voice.speak(word, say, corpus.jitter, rng) for _ in range(corpus.renditions)]
                for word in corpus.words
            }
            speaker = f"{subset.rpartition('-')[2]}{number:03d}"
            folder = root / subset / speaker / "0"
            folder.mkdir(parents=True, exist_ok=True)
            lines = []
            for i in range(number, len(lengths), size["voices"]):
                words = draw(corpus.words, k=lengths[i])
                samples = join([rng.choice(cuts[word]) for word in words], corpus, rng, noise)
                identity = f"{speaker}-0-{i:05d}"
                soundfile.write(folder / f"{identity}.flac", samples, SAMPLE_RATE, subtype="PCM_16")
                lines.append(f"{identity} {normalize_text(' '.join(words))}\n")
            with write_atomically(folder / f"{speaker}-0.trans.txt") as file:
                file.writelines(lines)


def synthetic_voice() -> Say:
    try:
        from hibari import Hibari
    except ImportError as error:
        raise ConfigError("the voice is not installed; run: pip install -e '.[tts]'") from error
    voice = Hibari()
    return lambda word, tempo: voice(word, speed=tempo, seed=0)


def prepare(corpus: WordCorpus, output: Path, say: Say | None = None) -> None:
    """Synthesise, then manifests as of any folder in LibriSpeech's layout; nothing where that is done already."""
    done = output / "corpus.yaml"
    settings: dict[str, Any] = to_mapping(corpus)
    if done.is_file() and yaml.safe_load(done.read_text()) == settings:
        print(f"{output}: is there already")
        return
    say = say or synthetic_voice()
    root = output / "audio"
    make_writable(root, "output")
    # No longer true from here on, also where this is interrupted: what is written, and what it says.
    for stale in (done, *(path for subset in corpus.subsets for path in output.glob(f"*_{subset}.jsonl.gz"))):
        stale.unlink(missing_ok=True)
    for subset in corpus.subsets:
        shutil.rmtree(root / subset, ignore_errors=True)  # other settings' utterances, which would be scanned too
        write_subset(root, subset, corpus, say)
    scans = librispeech.prepare(root, list(corpus.subsets), output, check="header")
    librispeech.print_summary(scans, output)
    with write_atomically(done) as file:
        yaml.safe_dump(settings, file, sort_keys=False)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="prepare_bottleneck")
@friendly_errors
def main(config: DictConfig) -> None:
    settings: dict[str, Any] = OmegaConf.to_container(config.corpus, resolve=True)  # type: ignore[assignment]
    prepare(from_mapping(WordCorpus, settings, "corpus"), Path(config.output))


if __name__ == "__main__":
    main()

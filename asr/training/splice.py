"""New utterances made of a speaker's recorded words.

    splice_subset("data", "an4-train", "data/spliced", "runs/an4/model")
    splice_subset("data", "train-clean-5", "data/spliced", "mini", SpliceConfig(run=4))

A small corpus says the same sequences over and over, and a recogniser learns those rather than their sounds. Here a
trained model finds the words (`asr.decoding.alignment`), each is cut out at its quietest borders, and copies of the
utterances are put together with other words of the same speaker (aligned data augmentation, Lam et al. 2021, which
exchanges any words of any speakers): either letters change places with letters and digits with digits, or runs of a few
words from anywhere are joined. A copy depends on the settings, the model and the utterance's id alone.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from asr import audio
from asr.bundle import load_bundle
from asr.config import to_mapping
from asr.corpus.chapters import COPY, SAMPLE_RATE, Samples, claim_folder, write_chapter, write_chapters
from asr.corpus.librispeech import Utterance, is_evaluation, progress_bar, scan
from asr.decoding.alignment import SpottedWord, WordTiming, fits, spot_words
from asr.decoding.beam_search import DecodingConfig
from asr.errors import ConfigError
from asr.transcriber import Transcriber, find_model, word_settings

__all__ = ["SpliceConfig", "borders", "cut", "join", "leads", "meetings", "splice", "splice_subset"]

QUIET = 0.02  # s; over so much the level is measured when the quietest place is looked for
STEP = 0.005  # s; levels are measured so far apart
PAUSE = 0.12  # s; a quiet stretch of this length is no closure of a plosive
PAUSE_LEVEL = 0.25  # of the way from an utterance's quiet to its loud places
ENOUGH = 5  # pauses before a word that say how it begins
NEAR = 0.07  # s; a word begins within so much of where it is expected to
SHORTEST = 0.03  # s; less is no word: where two words' searches meet, one of them may be left with nothing
FADE = 0.005  # s; out of one word, and into the next
BLUR = 0.03  # s; how far words that follow each other closely meet from where the spikes say
BLUR_COST = (
    5.0  # dB louder at that distance; with both, `meetings` is 25 ms from the MFA's borders in dev-2spk, `borders` 34
)

Piece = tuple[str, Samples]  # a word and how it sounds

KINDS = (
    "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "ZERO OH ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE",
    "TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY",
)


@dataclass(frozen=True)
class SpliceConfig:
    copies: int = 3  # of every utterance
    exchanged: float = 0.7  # share of the words of a kind that another takes the place of
    kinds: Sequence[str] = KINDS  # words, with spaces between them, that may take each other's place
    run: float = 0  # mean number of words in a row that copies are joined from instead; 0: words are exchanged
    seed: int = 1

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies must be at least 1; got {self.copies}")
        if not 0 <= self.exchanged <= 1:
            raise ValueError(f"exchanged must be from 0 to 1; got {self.exchanged:g}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more; got {self.seed}")
        if self.run and self.run < 1:
            raise ValueError(f"run must be 0 or at least 1; got {self.run:g}")


def _levels(samples: Samples) -> np.ndarray:
    """dB of each hop of `STEP`, over `QUIET` seconds."""
    step, width = round(STEP * SAMPLE_RATE), round(QUIET * SAMPLE_RATE)
    energy = np.convolve(np.square(samples, dtype=np.float64), np.ones(width) / width, mode="same")
    return 10 * np.log10(energy[::step] + 1e-10)


def leads(utterances: Sequence[tuple[Samples, Sequence[SpottedWord]]]) -> dict[str, float]:
    """How long before its first spike a word begins, in seconds, the median over where it follows a pause.

    CTC fires where a word can first be told from the others: in S at the end, in T at the beginning. Words that seldom
    follow a pause are left out.
    """
    found = defaultdict(list)
    for samples, spotted in utterances:
        levels = _levels(samples)
        low, high = np.quantile(levels, (0.1, 0.95))
        quiet = levels < low + PAUSE_LEVEL * (high - low)
        for before, word in pairwise(spotted):
            a, b = round(before.last[1] / STEP), round(word.first[0] / STEP)
            stretch = np.flatnonzero(~quiet[a:b])
            edges = np.concatenate([[-1], stretch, [b - a]])
            gaps = np.diff(edges) - 1
            if gaps.max() * STEP >= PAUSE:
                end = int(edges[int(gaps.argmax()) + 1])
                found[word.word].append((b - a - end) * STEP)
    return {word: float(np.median(times)) for word, times in found.items() if len(times) >= ENOUGH}


def borders(samples: Samples, spotted: Sequence[SpottedWord], lead: Mapping[str, float]) -> list[int]:
    """Where the words of an utterance (T,) at 16 kHz end, in samples, all but the last.

    That is the quietest place, over `QUIET` seconds, within `NEAR` of where the next word is expected to begin, and
    between the spikes.

    lead: what `leads` found
    """
    levels = _levels(samples)
    usual = float(np.median(list(lead.values()))) if lead else 0.0
    found = []
    for word, after in pairwise(spotted):
        expected = after.first[0] - lead.get(after.word, usual)
        low, high = word.last[0] + 0.25 * (word.last[1] - word.last[0]), after.first[1]
        start, end = max(low, expected - NEAR), min(high, expected + NEAR)
        if end - start < 2 * STEP:  # the word is expected to begin before the one before it fires
            start, end = low - STEP, low + STEP
        a = min(max(0, round(start / STEP)), len(levels) - 1)
        b = max(round(end / STEP), a + 1)
        found.append((a + int(levels[a:b].argmin())) * round(STEP * SAMPLE_RATE))
    return np.maximum.accumulate(found).tolist() if found else []


def meetings(samples: Samples, spotted: Sequence[SpottedWord], timing: WordTiming) -> list[int]:
    """Where the words of an utterance (T,) of running speech end, in samples, all but the last.

    There a word seldom follows a pause and `leads` knows little; the spikes alone say more. Of the places around where
    `timing` has neighbours meet, that is the quietest, and in a pause anywhere in it.
    """
    levels = _levels(samples)
    found = []
    for word, after in pairwise(spotted):
        gap = after.first[0] - word.last[1]
        expected = word.last[1] + timing.share * gap + timing.shift
        reach = max(BLUR, gap / 2 if gap > timing.pause else 0.0)
        a = min(max(0, round((expected - reach) / STEP)), len(levels) - 1)
        b = min(max(a, round((expected + reach) / STEP)) + 1, len(levels))
        distance = (np.arange(a, b) * STEP - expected) / BLUR
        cost = levels[a:b] + (BLUR_COST * distance**2 if reach == BLUR else 0.0)
        found.append((a + int(cost.argmin())) * round(STEP * SAMPLE_RATE))
    return np.maximum.accumulate(found).tolist() if found else []


def cut(samples: Samples, spotted: Sequence[SpottedWord], ends: Sequence[int]) -> list[Piece]:
    """The words of an utterance (T,), which together are the whole of it.

    ends: of all words but the last, in samples
    """
    return [(word.word, samples[a:b]) for word, (a, b) in zip(spotted, pairwise([0, *ends, len(samples)]), strict=True)]


def splice(
    pieces: Sequence[Piece], others: Mapping[str, Sequence[Piece]], exchanged: float, rng: np.random.Generator
) -> tuple[str, Samples]:
    """Text and samples of an utterance of which a share of the words has been exchanged.

    Seams fade out and in over `FADE`; words that were neighbours before still meet as they did.

    others: by word, what may take its place
    """
    chosen, fresh = [], []
    for piece in pieces:
        choice = others.get(piece[0], ())
        fresh.append(bool(choice) and rng.random() < exchanged)
        chosen.append(choice[int(rng.integers(len(choice)))] if fresh[-1] else piece)
    parts = [
        _faded(samples, any(fresh[max(0, i - 1) : i + 1]), any(fresh[i : i + 2]))
        for i, (_, samples) in enumerate(chosen)
    ]
    return " ".join(word for word, _ in chosen), np.concatenate(parts)


def _faded(samples: Samples, start: bool, end: bool) -> Samples:
    """A copy that fades in at its start and out at its end."""
    ramp = np.linspace(0, 1, min(round(FADE * SAMPLE_RATE), len(samples)), dtype=np.float32)
    faded = samples.copy()
    if start:
        faded[: len(ramp)] *= ramp
    if end:
        faded[len(faded) - len(ramp) :] *= ramp[::-1]
    return faded


def join(
    utterances: Sequence[Sequence[Piece]], words: int, run: float, rng: np.random.Generator
) -> tuple[str, Samples]:
    """Text and samples of an utterance of at least so many words, joined from runs of the words of `utterances`.

    A run begins at any word and has 1 + Poisson(run - 1) words, as far as its utterance goes; then each of its ends
    moves by a word where that border is quieter.
    """
    lengths = np.array([len(pieces) for pieces in utterances])
    text: list[str] = []
    parts = []
    while len(text) < words:
        pieces = utterances[int(rng.choice(len(utterances), p=lengths / lengths.sum()))]
        start = int(rng.integers(len(pieces)))
        end = min(start + 1 + int(rng.poisson(run - 1)), len(pieces))
        start = min(range(max(0, start - 1), min(start + 1, end - 1) + 1), key=lambda i: _loudness(pieces, i))
        end = min(range(max(start + 1, end - 1), min(end + 1, len(pieces)) + 1), key=lambda i: _loudness(pieces, i))
        text += [word for word, _ in pieces[start:end]]
        parts.append(_faded(np.concatenate([samples for _, samples in pieces[start:end]]), start=True, end=True))
    return " ".join(text), np.concatenate(parts)


def _loudness(pieces: Sequence[Piece], i: int) -> float:
    """Mean square over `QUIET` around the border before piece i; the ends of an utterance are quiet."""
    if not 0 < i < len(pieces):
        return 0.0
    half = round(QUIET / 2 * SAMPLE_RATE)
    around = np.concatenate([pieces[i - 1][1][-half:], pieces[i][1][:half]])
    return float(np.square(around, dtype=np.float64).mean()) if len(around) else 0.0


def splice_subset(
    root: str | Path, subset: str, output: str | Path, model_dir: str | Path, config: SpliceConfig | None = None
) -> Path:
    """Write copies of every utterance that CTC can place the words of as subset `<subset>-spliced`; returns its folder.

    Chapters that are newer than the model are not written again.

    root: the folder that holds LibriSpeech/, or the LibriSpeech folder itself
    model_dir: the folder, or the name, of one that knows the speech well, such as one trained on it

    Raises:
        ConfigError: a setting cannot work, the folder was made with others, or the disk is too full.
        CorpusError: speech is missing or cannot be read.
        ModelError: there is no such model.
    """
    config = config or SpliceConfig()
    if is_evaluation(subset):
        raise ConfigError(f"{subset} is an evaluation set; splice training sets")
    model = find_model(model_dir)
    recogniser = Transcriber(load_bundle(model), DecodingConfig())
    utterances = scan(root, subset).utterances  # without the damaged ones, as prepare.py takes them
    folder = Path(output) / "LibriSpeech" / f"{subset}-spliced"
    claim_folder(folder, {"root": str(root), "model_dir": str(model_dir), **to_mapping(config)})
    speakers: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        speakers[utterance.speaker].append(utterance)

    def transcript(chapter: tuple[str, str]) -> Path:
        name = f"{COPY}{chapter[0]}"
        return folder / name / chapter[1] / f"{name}-{chapter[1]}.trans.txt"

    trained = (model / "model.safetensors").stat().st_mtime
    chapters = {(u.speaker, u.chapter or "0"): None for spoken in speakers.values() for u in spoken}
    left = [c for c in chapters if not transcript(c).is_file() or transcript(c).stat().st_mtime < trained]
    if not left:
        return folder

    said: Callable[[str], list[tuple[Utterance, list[Piece]]]]  # what a speaker said, word by word
    if config.run:
        timing = word_settings(recogniser.bundle, recogniser.decoding)[0]

        @lru_cache(maxsize=1)  # one speaker at a time: a large corpus need not fit in memory
        def said(speaker: str) -> list[tuple[Utterance, list[Piece]]]:
            found = _hear(speakers[speaker], recogniser)
            return [(u, cut(samples, words, meetings(samples, words, timing))) for u, samples, words in found]
    else:  # how late the words fire is learned from all speakers
        with progress_bar(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
            heard = list(_hear(progress.track(utterances, description="find words"), recogniser))
        lead = leads([(samples, words) for _, samples, words in heard])
        everything: dict[str, list[tuple[Utterance, list[Piece]]]] = defaultdict(list)
        for utterance, samples, words in heard:
            pieces = cut(samples, words, borders(samples, words, lead))
            everything[utterance.speaker].append((utterance, pieces))
        said = everything.__getitem__

    def write(chapter: tuple[str, str]) -> None:
        pieces = said(chapter[0])
        of_chapter = [(utterance, words) for utterance, words in pieces if (utterance.chapter or "0") == chapter[1]]
        if of_chapter:
            write_chapter(transcript(chapter), _copies(of_chapter, [words for _, words in pieces], config))

    seconds = config.copies * sum(u.duration for u in utterances if (u.speaker, u.chapter or "0") in left)
    write_chapters(f"splice {subset}", folder, left, len(chapters) - len(left), seconds, write, processes=1)
    return folder


def _hear(
    utterances: Iterable[Utterance], recogniser: Transcriber
) -> Iterator[tuple[Utterance, Samples, list[SpottedWord]]]:
    """Those that CTC can place the words of, with their samples at 16 kHz."""
    rate = recogniser.bundle.frontend.config.sample_rate
    for utterance in utterances:
        samples = audio.load(utterance.path, SAMPLE_RATE)
        heard = samples if rate == SAMPLE_RATE else audio.load(utterance.path, rate)
        if words := _spot(heard, utterance.text, recogniser):
            yield utterance, samples, words


@torch.inference_mode()
def _spot(samples: Samples, text: str, recogniser: Transcriber) -> list[SpottedWord]:
    """The words of an utterance (T,) at the model's rate; none where CTC cannot place them."""
    bundle = recogniser.bundle
    tokens = bundle.tokenizer.encode(text)
    h, _ = recogniser.encode([bundle.encode(torch.from_numpy(samples))])
    log_probs = bundle.model.ctc(h)[0].log_softmax(-1)
    if not fits(tokens, len(log_probs)):
        return []
    return spot_words(log_probs, tokens, bundle.tokenizer, recogniser.seconds_per_state)


def _copies(
    chapter: Sequence[tuple[Utterance, list[Piece]]], recorded: Sequence[Sequence[Piece]], config: SpliceConfig
) -> Iterator[tuple[str, str, Samples]]:
    """Id, text and samples of the copies of a chapter's utterances, from what its speaker has `recorded`."""
    others: dict[str, Sequence[Piece]] = {}
    for words in config.kinds:
        kind = words.split()
        members = tuple(
            piece
            for pieces in recorded
            for piece in pieces
            if piece[0] in kind and len(piece[1]) >= SHORTEST * SAMPLE_RATE
        )
        others |= dict.fromkeys(kind, members)
    for utterance, pieces in chapter:
        rng = np.random.default_rng([config.seed, zlib.crc32(utterance.id.encode())])
        for i in range(config.copies):
            if config.run:
                copy = join(recorded, len(pieces), config.run, rng)
            else:
                copy = splice(pieces, others, config.exchanged, rng)
            yield f"{COPY}{utterance.id}-{i + 1}", *copy

"""Measure word times against a reference alignment, and fit them and the confidences.

python recipes/librispeech/word_times.py model_dir=runs/mini/model corpus.manifests=data/mini corpus.decode=[dev-2spk] \
    alignments=dev-2spk-alignments.tar.xz decoding=beam_ctc output=runs/mini/word_times

Times are measured on correctly recognised words, fitted and calibrated figures always on speakers that were not fitted
on. Writes word_times.json, reliability.svg and reliability.png; with save=true the coefficients, fitted on everything,
go into the model folder's config.yaml. forced=true aligns the reference transcripts, without recognising anything.
Where the model has a language model and the search leaves it out, the confidences are kept beside those with it, and
the times stay as they are.
"""

from __future__ import annotations

import json
import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from asr._exit import friendly_errors
from asr.bundle import load_bundle
from asr.config import as_list, from_mapping, to_mapping
from asr.corpus.dataset import cut_text, load_cuts
from asr.decoding.alignment import (
    FEATURES,
    Confidence,
    SpottedWord,
    WordTiming,
    calibration_error,
    fit_confidence,
    fit_timing,
    geometric_mean,
    place_words,
    spot_words,
)
from asr.decoding.beam_search import DecodingConfig
from asr.errors import ConfigError, CorpusError
from asr.plots import save_figure
from asr.scoring import score
from asr.training.evaluate import batches, check_audio
from asr.training.settings import check_batch_seconds, use_threads
from asr.transcriber import Transcriber, confidence_key, find_model, pick_device, word_settings
from asr.writers import make_writable, write_atomically

log = logging.getLogger(__name__)

SILENCES = ("", "sil", "sp", "spn", "<eps>")  # what aligners write where no word is
NEAR = 0.2  # s; a boundary within this is good enough for subtitles
Interval = tuple[str, float, float]  # label, start, end in seconds


# --- reference alignments ---

_TIER = re.compile(r'name = "((?:[^"]|"")*)"(.*?)(?=\bname = "|\Z)', re.S)
_INTERVAL = re.compile(r'xmin = ([-\d.eE+]+)\s+xmax = ([-\d.eE+]+)\s+text = "((?:[^"]|"")*)"')


def read_textgrid(content: bytes, tier: str = "words") -> list[Interval]:
    """Intervals of one tier of a TextGrid in Praat's long text format, without its silences.

    Raises:
        CorpusError: it is no such TextGrid, or has no such tier.
    """
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"not a TextGrid: {error}") from error
    tiers = {name.replace('""', '"'): body for name, body in _TIER.findall(text)}
    if "ooTextFile" not in text[:100] or tier not in tiers:
        raise CorpusError(f"no long-format TextGrid with a tier {tier!r}; its tiers: {', '.join(tiers) or 'none'}")
    found = ((label.replace('""', '"').strip(), float(a), float(b)) for a, b, label in _INTERVAL.findall(tiers[tier]))
    return [interval for interval in found if interval[0].lower() not in SILENCES]


def _textgrids(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*.TextGrid")):
            yield file.stem, file.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".TextGrid"):
                    yield Path(member.name).stem, archive.extractfile(member).read()  # type: ignore[union-attr]
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"{path}: neither a folder nor a readable tar archive ({error})") from error


def read_alignments(path: str | Path) -> dict[str, list[Interval]]:
    """Utterance id -> its words, from the TextGrids in a folder or a (compressed) tar archive.

    Raises:
        CorpusError: there are none, or one is damaged.
    """
    path, found = Path(path), {}
    for name, content in _textgrids(path):
        try:
            found[name] = read_textgrid(content)
        except CorpusError as error:
            raise CorpusError(f"{path}: {name}: {error}") from error
    if not found:
        raise CorpusError(f"{path}: no .TextGrid files in it")
    return found


# --- words to measure on ---


@dataclass(frozen=True)
class Utterance:
    speaker: str
    duration: float  # s
    spotted: list[SpottedWord]
    correct: list[bool]  # of each spotted word
    times: list[tuple[float, float] | None]  # (start, end) of each spotted word that is correct, where it is known

    @property
    def features(self) -> np.ndarray:
        return np.array([word.features for word in self.spotted]).reshape(-1, len(FEATURES))  # (W, F)


@torch.inference_mode()
def collect(settings: Mapping[str, Any], recogniser: Transcriber) -> list[Utterance]:
    """Recognise, or with `forced` take the transcripts, and match with transcripts and alignments."""
    if not settings["alignments"]:
        raise ConfigError("alignments= must name a folder or tar archive of TextGrids")
    tiers = read_alignments(settings["alignments"])
    bundle = recogniser.bundle
    cuts = sorted(load_cuts(settings["corpus"]["manifests"], settings["corpus"]["decode"]), key=lambda c: c.duration)
    if not any(cut.id in tiers for cut in cuts):
        raise ConfigError(f"alignments={settings['alignments']}: none has the name of an utterance to decode")
    check_audio(cuts)
    spotted: dict[str, list[SpottedWord]] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("aligning", total=sum(c.duration for c in cuts))
        for group, frames in batches(cuts, bundle, settings["batch_seconds"]):
            h, lengths = recogniser.encode(frames)
            log_probs = bundle.model.ctc(h).log_softmax(-1).cpu()
            found = [None] * len(group) if settings["forced"] else [n[0] for n in recogniser.search(h, lengths)]
            for cut, row, length, best in zip(group, log_probs, lengths.tolist(), found, strict=True):
                tokens = best.tokens if best else bundle.tokenizer.encode(cut_text(cut))
                scores, attention = (best.token_scores, best.attention) if best else (None, None)
                spotted[cut.id] = spot_words(
                    row[:length], tokens, bundle.tokenizer, recogniser.seconds_per_state, scores, attention
                )
                progress.advance(task, cut.duration)
    transcripts = {cut.id: cut_text(cut) for cut in cuts}
    recognised = _matches(transcripts, {i: [word.word for word in words] for i, words in spotted.items()})
    aligned = _matches(transcripts, {i: [word.upper() for word, *_ in tiers.get(i, ())] for i in transcripts})
    utterances = []
    for cut in cuts:
        spans = {r: tiers[cut.id][k][1:] for k, r in aligned[cut.id].items()}
        positions = [recognised[cut.id].get(k) for k in range(len(spotted[cut.id]))]
        utterances.append(
            Utterance(
                speaker=cut.supervisions[0].speaker or cut.id,
                duration=cut.duration,
                spotted=spotted[cut.id],
                correct=[position is not None for position in positions],
                times=[None if position is None else spans.get(position) for position in positions],
            )
        )
    if not any(time for utterance in utterances for time in utterance.times):
        raise ConfigError("not one word was recognised correctly; try a better model, or forced=true")
    return utterances


def _matches(references: Mapping[str, str], words: Mapping[str, Sequence[str]]) -> dict[str, dict[int, int]]:
    """Of each utterance, the words that are right: position among `words` -> position in the reference."""
    result: dict[str, dict[int, int]] = {}
    for utterance in score(references, {i: " ".join(w) for i, w in words.items()}).per_utterance:
        matched, said, heard = {}, 0, 0
        for edit in utterance.alignment:
            if edit.kind == "C":
                matched[heard] = said
            said += edit.reference is not None
            heard += edit.hypothesis is not None
        result[utterance.id] = matched
    return result


def folds(utterances: Sequence[Utterance]) -> list[tuple[list[Utterance], list[Utterance]]]:
    """Two ways to split into (fit, test): half of the speakers each, or of the utterances of a single speaker."""
    speakers = sorted({u.speaker for u in utterances})
    if len(speakers) > 1:
        half = [speakers.index(u.speaker) % 2 for u in utterances]
    else:
        half = [i % 2 for i in range(len(utterances))]
    halves = [[u for u, h in zip(utterances, half, strict=True) if h == side] for side in (0, 1)]
    return [(halves[0], halves[1]), (halves[1], halves[0])]


# --- figures ---


def time_errors(utterances: Sequence[Utterance], timing: WordTiming) -> np.ndarray:
    """(W, 2) start and end minus the reference, in seconds, of all words with a reference."""
    errors = [
        (start - time[0], end - time[1])
        for u in utterances
        for (start, end), time in zip(place_words(u.spotted, timing, u.duration), u.times, strict=True)
        if time
    ]
    return np.array(errors).reshape(-1, 2)


def time_figures(errors: np.ndarray) -> dict[str, float]:
    """Mean absolute errors and biases in ms, and the share of words with start, end and both within NEAR."""
    size, near = np.abs(errors), np.abs(errors) <= NEAR
    return {
        "words": len(errors),
        "start_mae_ms": round(1000 * float(size[:, 0].mean()), 1),
        "end_mae_ms": round(1000 * float(size[:, 1].mean()), 1),
        "start_bias_ms": round(1000 * float(errors[:, 0].mean()), 1),
        "end_bias_ms": round(1000 * float(errors[:, 1].mean()), 1),
        "start_within_200ms": round(float(near[:, 0].mean()), 4),
        "end_within_200ms": round(float(near[:, 1].mean()), 4),
        "both_within_200ms": round(float(near.all(1).mean()), 4),
    }


def confidences(utterances: Sequence[Utterance], confidence: Callable[[Sequence[float]], float]) -> np.ndarray:
    return np.array([confidence(word.features) for u in utterances for word in u.spotted])


def labels(utterances: Sequence[Utterance]) -> np.ndarray:
    return np.array([right for u in utterances for right in u.correct], dtype=bool)


def fitted_confidence(utterances: Sequence[Utterance]) -> Confidence:
    return fit_confidence(np.concatenate([u.features for u in utterances]), labels(utterances))


def confidence_figures(values: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    return {
        "words": len(values),
        "correct": round(float(correct.mean()), 4),
        "mean_confidence": round(float(values.mean()), 4),
        "calibration_error": round(calibration_error(values, correct), 4),
        "brier": round(float(np.mean((values - correct) ** 2)), 4),
    }


def plot_reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path, bins: int = 10) -> None:
    """Share of correct words by confidence, and how many words there are; `path` with the endings svg and png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="as sure as right")
    edges = np.linspace(0, 1, bins + 1)
    for name, (values, correct) in curves.items():
        bin_of = np.minimum((values * bins).astype(int), bins - 1)
        filled = [b for b in range(bins) if (bin_of == b).any()]
        top.plot(
            [values[bin_of == b].mean() for b in filled],
            [correct[bin_of == b].mean() for b in filled],
            marker="o",
            label=f"{name}: ECE {calibration_error(values, correct, bins):.1%}",
        )
        bottom.hist(values, edges, histtype="step", linewidth=1.5)
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of words that are right")
    top.legend(loc="upper left", frameon=False)
    bottom.set(xlabel="confidence", ylabel="words")
    for suffix in (".svg", ".png"):
        save_figure(figure, path.with_suffix(suffix))


# --- the recipe ---


def save_settings(folder: Path, fitted: Mapping[str, Any]) -> None:
    """Put what was fitted into `training` of the model folder's config.yaml."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["training"] = {**(config.get("training") or {}), **fitted}
    with write_atomically(path) as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)


@friendly_errors
def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    use_threads(settings["threads"])
    check_batch_seconds(settings["batch_seconds"])
    decoding = from_mapping(DecodingConfig, settings["decoding"], "decoding")
    folder = find_model(settings["model_dir"])
    bundle = load_bundle(folder, pick_device(settings["device"]))
    recogniser = Transcriber(bundle, decoding)
    timing, confidence = word_settings(bundle, decoding)
    key = confidence_key(bundle, decoding)
    output = Path(settings["output"]).resolve()
    make_writable(output, "output")

    utterances = collect(settings, recogniser)
    halves = folds(utterances)
    usable = all(any(t for u in side for t in u.times) for side, _ in halves)
    times = {"as set": time_errors(utterances, timing)}
    if usable:
        held_out = [time_errors(test, fit_timing([(u.spotted, u.times) for u in fit])) for fit, test in halves]
        times["fitted to the other half"] = np.concatenate(held_out)
    fitted: dict[str, Any] = {"word_times": to_mapping(fit_timing([(u.spotted, u.times) for u in utterances]))}
    result: dict[str, Any] = {
        "model": bundle.name,
        "subsets": as_list(settings["corpus"]["decode"]),
        "aligned": "reference transcripts" if settings["forced"] else "recognised words",
        "times": {name: time_figures(errors) for name, errors in times.items()},
    }
    if not settings["forced"]:
        sure = {"geometric mean" if confidence is geometric_mean else "as set": confidences(utterances, confidence)}
        curves = {name: (values, labels(utterances)) for name, values in sure.items()}
        if usable:
            values = np.concatenate([confidences(test, fitted_confidence(fit)) for fit, test in halves])
            curves["calibrated on the other half"] = values, np.concatenate([labels(test) for _, test in halves])
        fitted[key] = to_mapping(fitted_confidence(utterances))
        result["confidence"] = {name: confidence_figures(*curve) for name, curve in curves.items()}
        plot_reliability(curves, output / "reliability")
    result["fitted"] = fitted
    with write_atomically(output / "word_times.json") as file:
        file.write(json.dumps(result, indent=2) + "\n")
    if settings["save"]:
        save_settings(folder, fitted if settings["forced"] or key == "confidence" else {key: fitted[key]})
    report(result)
    log.info("wrote %s%s", output, f" and {folder / 'config.yaml'}" if settings["save"] else "")
    return result


def report(result: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(
        "word times", "words", "start MAE", "end MAE", "start bias", "end bias", "both within 200 ms", box=None
    )
    for name, f in result["times"].items():
        milliseconds = [f"{f[key]:.0f} ms" for key in ("start_mae_ms", "end_mae_ms", "start_bias_ms", "end_bias_ms")]
        table.add_row(name, str(f["words"]), *milliseconds, f"{f['both_within_200ms']:.1%}")
    console.print(table)
    if "confidence" in result:
        table = Table("confidence", "words", "right", "mean confidence", "calibration error", "Brier score", box=None)
        for name, f in result["confidence"].items():
            shares = [f"{f[key]:.1%}" for key in ("correct", "mean_confidence", "calibration_error")]
            table.add_row(name, str(f["words"]), *shares, f"{f['brier']:.3f}")
        console.print(table)


@hydra.main(version_base="1.3", config_path="../../conf", config_name="word_times")
def main(config: DictConfig) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    measure(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

"""Decode prepared subsets with a trained model and score them: what every recipe's `decode.py` calls."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse.cut import MonoCut
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from asr.bundle import Bundle, load_bundle
from asr.config import from_mapping
from asr.corpus.dataset import audio_path, cut_text, load_cuts, load_samples
from asr.decoding.beam_search import DecodingConfig
from asr.errors import CorpusError
from asr.scoring import Score, bootstrap_interval, write_scores
from asr.training.failures import readable_failures
from asr.training.settings import check_batch_seconds, use_threads
from asr.transcriber import Transcriber, find_model, pick_device
from asr.writers import make_writable, write_atomically

__all__ = ["batches", "check_audio", "decode", "pick_evenly"]

log = logging.getLogger(__name__)


def pick_evenly(cuts: Sequence[MonoCut], count: int) -> Sequence[MonoCut]:
    """So many of the cuts, at equal steps through their order; all where there are no more, or for 0."""
    if not 0 < count < len(cuts):
        return cuts
    step = len(cuts) / count
    return [cuts[int((i + 0.5) * step)] for i in range(count)]


def check_audio(cuts: Sequence[MonoCut]) -> None:
    """Read all of it, an hour in two seconds, so that what is missing or damaged shows before hours of search.

    Raises:
        CorpusError: a recording is not there, or damaged.
    """
    for cut in cuts:
        if not Path(path := audio_path(cut)).is_file():
            raise CorpusError(f"{path}: not there; put it back, or run prepare.py again")
        load_samples(cut, cut.sampling_rate)


def batches(
    cuts: Sequence[MonoCut],
    bundle: Bundle,
    batch_seconds: float,
    change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> Iterator[tuple[Sequence[MonoCut], list[torch.Tensor]]]:
    """Cuts from short to long, in groups of `batch_seconds`, with the normalised frames (T, n_mels) of each.

    change: what is heard instead of an utterance: its id and samples (T,) at the model's rate -> samples

    Raises:
        CorpusError: a recording is not there, or damaged.
    """
    rate = bundle.frontend.config.sample_rate
    start = 0
    while start < len(cuts):
        end = start + 1
        while end < len(cuts) and (end - start + 1) * cuts[end].duration <= batch_seconds:
            end += 1
        group = cuts[start:end]
        heard = [load_samples(cut, rate) for cut in group]
        if change:
            heard = [change(cut.id, samples) for cut, samples in zip(group, heard, strict=True)]
        yield group, [bundle.encode(torch.from_numpy(samples)) for samples in heard]
        start = end


def _voices(cuts: Sequence[MonoCut]) -> list[list[MonoCut]]:
    """The cuts of each speaker, in their order."""
    voices: dict[str | None, list[MonoCut]] = {}
    for cut in cuts:
        voices.setdefault(cut.supervisions[0].speaker, []).append(cut)
    return list(voices.values())


def _advance(progress: Progress, task: TaskID, seconds: float, share: float) -> None:
    progress.advance(task, share * seconds)


@torch.inference_mode()
def decode(settings: Mapping[str, Any]) -> Score:
    """Decode as `settings` say (`model_dir`, `corpus`, `decoding`, `device`, `threads`, `batch_seconds`, `output`).

    `language_model`, if there, is the folder of another language model than the model's own. With `adapt` each speaker
    is searched twice, and in between the encoder gets used to the voice (`Transcriber.adapt`).
    Writes `ref.trn`, `hyp.trn`, `wer.txt`, `wer.json` and `nbest.jsonl` into the output folder.
    """
    use_threads(settings["threads"])
    check_batch_seconds(settings["batch_seconds"])
    decoding = from_mapping(DecodingConfig, settings["decoding"], "decoding")
    bundle = load_bundle(find_model(settings["model_dir"]), pick_device(settings["device"]))
    if settings.get("language_model"):
        bundle.language_model_path = Path(settings["language_model"])
    recogniser = Transcriber(bundle, decoding)
    cuts = sorted(load_cuts(settings["corpus"]["manifests"], settings["corpus"]["decode"]), key=lambda c: c.duration)
    if not cuts:
        raise CorpusError(f"{settings['corpus']['manifests']}: no utterances to decode")
    output = Path(settings["output"]).resolve()
    make_writable(output, "output")
    check_audio(cuts)
    nbest: dict[str, list[dict[str, Any]]] = {}
    processor, wall = time.process_time(), time.perf_counter()
    lower = f"batch_seconds (now {settings['batch_seconds']:g}) or decoding.beam (now {decoding.beam})"
    out_of_memory = f"out of memory after {{}} utterances; lower {lower}"
    with Progress(transient=True) as progress, readable_failures(output, lambda: out_of_memory.format(len(nbest))):
        task = progress.add_task("decoding", total=sum(c.duration for c in cuts) * (3 if settings.get("adapt") else 1))
        for voice in _voices(cuts) if settings.get("adapt") else [cuts]:
            groups: Iterable[tuple[Sequence[MonoCut], list[torch.Tensor]]]
            adaptation, groups = None, batches(voice, bundle, settings["batch_seconds"])
            if settings.get("adapt"):
                groups = list(groups)
                advance = partial(_advance, progress, task, 2 * sum(c.duration for c in voice))
                adaptation = recogniser.adapt([frames for _, frames in groups], advance)
            for group, frames in groups:
                for cut, hypotheses in zip(group, recogniser.recognise(frames, adaptation), strict=True):
                    nbest[cut.id] = [{"text": h.text, "score": round(h.score, 4)} for h in hypotheses]
                    progress.advance(task, cut.duration)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall

    references = {cut.id: cut_text(cut) for cut in cuts}
    score = write_scores(output, references, {i: n[0]["text"] if n else "" for i, n in nbest.items()})
    with write_atomically(output / "nbest.jsonl") as file:
        for cut_id, ranked in sorted(nbest.items()):
            line = {"id": cut_id, "reference": references[cut_id], "hypotheses": ranked}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    seconds = sum(c.duration for c in cuts)
    low, high = bootstrap_interval(score)
    log.info(
        "WER %.2f %% (95 %% interval %.2f-%.2f), CER %.2f %%, S/D/I %d/%d/%d of %d words, %d utterances, "
        "real-time factor %.4f (processor %.4f)\nwrote %s",
        100 * score.wer, 100 * low, 100 * high, 100 * score.cer, score.substitutions, score.deletions,
        score.insertions, score.reference_words, score.utterances, wall / seconds, processor / seconds, output,
    )  # fmt: skip
    return score

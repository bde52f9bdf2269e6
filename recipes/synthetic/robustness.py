"""WER of a model in rooms, in noise, over the telephone: a subset is changed as augment.py would, and decoded.

python recipes/synthetic/robustness.py model_dir=mini corpus.manifests=data/mini "corpus.decode=[dev-clean-2]" \
    noises=data/noise decoding=greedy_ctc output=runs/robustness

Each change is decoded by itself, on the same utterances with the same random numbers. Prints a table and writes
robustness.json into the output folder.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from asr._exit import friendly_errors
from asr.bundle import load_bundle
from asr.config import from_mapping
from asr.corpus.augment import AugmentConfig, augment_utterance, find_recordings
from asr.corpus.chapters import SAMPLE_RATE
from asr.corpus.dataset import cut_text, load_cuts
from asr.decoding.beam_search import DecodingConfig
from asr.errors import ConfigError, CorpusError
from asr.scoring import bootstrap_interval, score
from asr.training.evaluate import batches, check_audio, pick_evenly
from asr.training.settings import check_batch_seconds, check_count, use_threads
from asr.transcriber import Transcriber, find_model, pick_device
from asr.writers import make_writable, write_atomically

UNCHANGED = {"rooms": 0.0, "noise": 0.0, "telephone": 0.0, "mp3": 0.0, "gain": (0.0, 0.0)}


@torch.inference_mode()
def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{change: {"wer", "low", "high"}} as the settings say, each a share of the words.

    Raises:
        ConfigError: a change needs noise and there is none, or the model hears at another rate than 16 kHz.
    """
    use_threads(settings["threads"])
    check_batch_seconds(settings["batch_seconds"])
    bundle = load_bundle(find_model(settings["model_dir"]), pick_device(settings["device"]))
    recogniser = Transcriber(bundle, from_mapping(DecodingConfig, settings["decoding"], "decoding"))
    if bundle.frontend.config.sample_rate != SAMPLE_RATE:
        raise ConfigError(
            f"model_dir={settings['model_dir']}: rooms and noise are made at {SAMPLE_RATE} Hz, its speech is not"
        )
    cuts = sorted(load_cuts(settings["corpus"]["manifests"], settings["corpus"]["decode"]), key=lambda c: c.duration)
    if not cuts:
        raise CorpusError(f"{settings['corpus']['manifests']}: no utterances to decode")
    check_count(settings["utterances"], "utterances", 0, optional=True)
    cuts = list(pick_evenly(cuts, settings["utterances"] or 0))
    if wrong := [name for name, given in settings["changes"].items() if not isinstance(given, Mapping)]:
        raise ConfigError(f"changes.{wrong[0]} should be settings of augment.py, not {settings['changes'][wrong[0]]!r}")
    changes = {
        name: from_mapping(AugmentConfig, {**UNCHANGED, **given}, f"changes.{name}")
        for name, given in settings["changes"].items()
    }
    noises = find_recordings(settings["noises"]) if settings["noises"] else []
    if needing := [name for name, config in changes.items() if config.noise and not noises]:
        raise ConfigError(f"changes.{needing[0]} needs noises=FOLDER; or take it out: ~changes.{needing[0]}")
    check_audio(cuts)
    references = {cut.id: cut_text(cut) for cut in cuts}
    results: dict[str, Any] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("decoding", total=len(changes) * len(cuts))
        for name, config in changes.items():
            hypotheses: dict[str, str] = {}
            change = partial(augment_utterance, noises=noises, config=config)
            for group, frames in batches(cuts, bundle, settings["batch_seconds"], change):
                for cut, found in zip(group, recogniser.recognise(frames), strict=True):
                    hypotheses[cut.id] = found[0].text if found else ""
                progress.advance(task, len(group))
            scored = score(references, hypotheses)
            low, high = bootstrap_interval(scored)
            results[name] = {"wer": scored.wer, "low": low, "high": high}
    return {"utterances": len(cuts), "words": scored.reference_words, "changes": results}


@hydra.main(version_base="1.3", config_path="../../conf", config_name="robustness")
@friendly_errors
def main(config: DictConfig) -> None:
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")
    output = Path(settings["output"]).resolve()
    make_writable(output, "output")
    report = measure(settings)
    with write_atomically(output / "robustness.json") as file:
        file.write(json.dumps(report, indent=2) + "\n")
    table = Table(title=f"{report['utterances']} utterances, {report['words']} words")
    for column in ("change", "WER", "95 % interval"):
        table.add_column(column)
    for name, row in report["changes"].items():
        table.add_row(name, f"{100 * row['wer']:.1f} %", f"{100 * row['low']:.1f}-{100 * row['high']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"wrote {output / 'robustness.json'}")


if __name__ == "__main__":
    main()

"""WER of a model in rooms, in noise, over the telephone: a subset is changed as augment.py would, and decoded.

python recipes/synthetic/robustness.py model_dir=mini corpus.manifests=data/mini "corpus.decode=[dev-clean-2]" \
    noises=data/noise decoding=greedy_ctc output=runs/robustness

Each change is decoded by itself, on the same utterances with the same random numbers. Prints a table and writes
robustness.json into the output folder.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from lhotse.cut import MonoCut
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from asr._exit import friendly_errors
from asr.bundle import load_bundle
from asr.config import from_mapping
from asr.corpus.augment import AugmentConfig, augment, find_recordings
from asr.corpus.chapters import SAMPLE_RATE
from asr.corpus.dataset import cut_text, load_cuts
from asr.decoding.beam_search import DecodingConfig
from asr.errors import ConfigError, CorpusError
from asr.scoring import bootstrap_interval, score
from asr.transcriber import Transcriber, find_model, pick_device
from asr.writers import write_atomically


def pick(cuts: Sequence[MonoCut], count: int) -> list[MonoCut]:
    """So many of the cuts, evenly by duration, from short to long; all for 0."""
    ordered = sorted(cuts, key=lambda cut: cut.duration)
    if not 0 < count < len(ordered):
        return ordered
    return [ordered[i * len(ordered) // count] for i in range(count)]


def changed(cut: MonoCut, noises: Sequence[Path], config: AugmentConfig, rate: int) -> torch.Tensor:
    """Samples (T,) at `rate` of an utterance, changed; what is drawn depends on the seed and its id alone."""
    samples = (cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)).load_audio()[0]
    rng = np.random.default_rng([config.seed, zlib.crc32(cut.id.encode())])
    heard = torch.from_numpy(augment(samples, noises, config, rng))
    if rate != SAMPLE_RATE:
        from torchaudio.functional import resample

        heard = resample(heard, SAMPLE_RATE, rate)
    return heard


@torch.inference_mode()
def measure(settings: Mapping[str, Any]) -> dict[str, Any]:
    """{change: {"wer", "low", "high"}} as the settings say, each a share of the words.

    Raises:
        ConfigError: a change needs noise and there is none.
    """
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    bundle = load_bundle(find_model(settings["model_dir"]), pick_device(settings["device"]))
    recogniser = Transcriber(bundle, from_mapping(DecodingConfig, settings["decoding"], "decoding"))
    cuts = load_cuts(settings["corpus"]["manifests"], settings["corpus"]["decode"])
    if not cuts:
        raise CorpusError(f"{settings['corpus']['manifests']}: no utterances to decode")
    cuts = pick(cuts, settings["utterances"])
    changes = {name: from_mapping(AugmentConfig, given or {}, name) for name, given in settings["changes"].items()}
    noises = find_recordings(settings["noises"]) if settings["noises"] else []
    if not noises and any(config.noise for config in changes.values()):
        needing = next(name for name, config in changes.items() if config.noise)
        raise ConfigError(f"changes.{needing} needs noises=FOLDER; or take it out: ~changes.{needing}")
    references = {cut.id: cut_text(cut) for cut in cuts}
    longest = max(cut.duration for cut in cuts)
    size = max(1, int(settings["batch_seconds"] // longest))
    results: dict[str, Any] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("decoding", total=len(changes) * len(cuts))
        for name, config in changes.items():
            hypotheses: dict[str, str] = {}
            for start in range(0, len(cuts), size):
                group = cuts[start : start + size]
                rate = bundle.frontend.config.sample_rate
                frames = [bundle.encode(changed(cut, noises, config, rate)) for cut in group]
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
    report = measure(settings)
    output = Path(settings["output"]).resolve()
    output.mkdir(parents=True, exist_ok=True)
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

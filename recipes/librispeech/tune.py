"""Find the settings of the search that suit a model and its language model, on development speech.

python recipes/librispeech/tune.py model_dir=runs/mini/model corpus.manifests=data/mini corpus.decode=[dev-2spk] \
    grid.lm_weight=[0,0.4,0.6] grid.word_bonus=[0,-1.5,-3] output=runs/mini/tune
python recipes/librispeech/tune.py strategy=coordinate grid.ctc_weight=[0.4,0.5,0.6] ... max_utterances=60 save=true

The encoder runs once; its states are kept (fp16) beside the results. Every point measured is a line of tune.jsonl and
is not measured again, so a run that was stopped, or one with another grid, goes on from there. best.yaml has the best
settings; with save=true the language model's YAML file gets them too, and `asr transcribe` uses them.
Every setting, with what it means: conf/tune.yaml.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import hydra
import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asr._exit import friendly_errors
from asr.bundle import Bundle, load_bundle
from asr.config import as_list, from_mapping, to_mapping
from asr.corpus.dataset import audio_path, audio_stamp, cut_text, load_cuts
from asr.decoding.beam_search import DecodingConfig, beam_search
from asr.errors import ConfigError, CorpusError
from asr.model.language_model import SETTINGS, WEIGHTS
from asr.scoring import score
from asr.training.evaluate import batches, check_audio, pick_evenly
from asr.training.settings import check_batch_seconds, check_count, use_threads
from asr.transcriber import Transcriber, find_model, pick_device
from asr.writers import make_writable, write_atomically

HEARD = ("phases", "warp")  # of a search's settings, what the encoder hears
Point = dict[str, Any]  # the varied settings
Record = dict[str, Any]  # a line of tune.jsonl


@dataclass(frozen=True)
class States:
    """Encoder states of a batch of utterances."""

    ids: list[str]
    texts: list[str]  # what was said
    h: Tensor  # (B, N, d) fp16
    lengths: Tensor  # (B,)


# --- what is decoded ---


def fingerprint(*parts: Any) -> str:
    """Twelve digits that change with the content of the files and with the other values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def encoded(settings: Mapping[str, Any], bundle: Bundle, folder: Path) -> tuple[str, list[States]]:
    """A key for the model and the speech, and the encoder's states, computed only where the folder does not have them.

    Raises:
        ConfigError: the speech is a test set.
        CorpusError: there is none.
    """
    subsets = as_list(settings["corpus"]["decode"])
    if tests := [name for name in subsets if "test" in name]:
        raise ConfigError(f"corpus.decode has {tests[0]}: what is tuned on a test set cannot be tested on it")
    cuts = sorted(load_cuts(settings["corpus"]["manifests"], subsets), key=lambda c: c.duration)
    if not cuts:
        raise CorpusError(f"{settings['corpus']['manifests']}: no utterances to tune on")
    check_count(settings["max_utterances"], "max_utterances", optional=True)
    cuts = list(pick_evenly(cuts, settings["max_utterances"] or 0))
    weights = find_model(settings["model_dir"])
    speech = [(c.id, round(c.duration, 3), cut_text(c), audio_path(c), audio_stamp([c])) for c in cuts]
    heard = {name: settings["decoding"][name] for name in HEARD}
    files = (weights / "model.safetensors", weights / "config.yaml")
    key = fingerprint(*files, speech, settings["batch_seconds"], heard)
    path = folder / f"states-{key}.safetensors"
    if path.is_file() and (kept := _read_states(path)):
        return key, kept
    check_audio(cuts)
    recogniser, found = Transcriber(bundle, DecodingConfig(**heard)), []
    with Progress(transient=True) as progress:
        task = progress.add_task("encoding", total=sum(c.duration for c in cuts))
        for group, frames in batches(cuts, bundle, settings["batch_seconds"]):
            h, lengths = recogniser.encode(frames)
            found.append(States([c.id for c in group], [cut_text(c) for c in group], h.half().cpu(), lengths.cpu()))
            progress.advance(task, sum(c.duration for c in group))
    tensors = {f"{name}.{i}": getattr(s, name) for i, s in enumerate(found) for name in ("h", "lengths")}
    names = json.dumps([[s.ids, s.texts] for s in found])
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"utterances": names})
    partial.rename(path)
    return key, found


def _read_states(path: Path) -> list[States]:
    """Nothing where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            names = json.loads(file.metadata()["utterances"])
            return [
                States(ids, texts, file.get_tensor(f"h.{i}"), file.get_tensor(f"lengths.{i}"))
                for i, (ids, texts) in enumerate(names)
            ]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return []


# --- points ---


def grid_of(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that vary, with their values.

    Raises:
        ConfigError: one is no setting of the search, or has no list of values.
    """
    known = {field.name for field in fields(DecodingConfig)} - set(HEARD)  # the encoder runs once
    grid = {name: values for name, values in settings.items() if values is not None}
    for name, values in grid.items():
        if name not in known:
            raise ConfigError(f"grid.{name}: no setting of the search; there are: {', '.join(sorted(known))}")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid.{name} should be a list such as [0, 0.3], not {values!r}")
    if not grid:
        raise ConfigError("grid: nothing to vary; try grid.lm_weight=[0,0.3,0.6]")
    return grid


def full_grid(grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def coordinate_search(
    grid: Mapping[str, Sequence[Any]], start: Point, measured: Callable[[Sequence[Point]], Sequence[float]]
) -> Point:
    """Try all values of one setting with the others at their best, then of the next, until a round changes nothing.

    Args:
        grid: values of the settings.
        start: where to begin.
        measured: points -> what is to be small.
    """
    best, least = start, measured([start])[0]
    changed = True
    while changed:
        changed = False
        for name, values in grid.items():
            points = [{**best, name: value} for value in values]
            for point, value in zip(points, measured(points), strict=True):
                if value < least:
                    best, least, changed = point, value, True
    return best


# --- measuring ---


@torch.inference_mode()
def decode(states: Sequence[States], bundle: Bundle, config: DecodingConfig) -> Iterator[tuple[str, str, str]]:
    """Id, what was said and what was recognised, of every utterance."""
    language_model = bundle.language_model if config.lm_weight else None
    for batch in states:
        h, lengths = batch.h.to(bundle.device).float(), batch.lengths.to(bundle.device)
        found = beam_search(bundle.model, h, lengths, config, bundle.tokenizer, language_model)
        yield from zip(batch.ids, batch.texts, (hypotheses[0].text for hypotheses in found), strict=True)


class Tuner:
    """Measures points, and remembers them in `tune.jsonl`."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        self.base: dict[str, Any] = settings["decoding"]
        self.bundle = load_bundle(find_model(settings["model_dir"]), pick_device(settings["device"]))
        if settings["language_model"]:
            self.bundle.language_model_path = Path(settings["language_model"])
        self.key, self.states = encoded(settings, self.bundle, folder)
        lm = self.bundle.language_model_path
        self.lm_key = None
        if lm and self.bundle.language_model:
            # A mixed model's share stands in the YAML file alone, whose `decoding` changes with save=true.
            share = self.bundle.language_model_settings.get("share")
            self.lm_key = fingerprint(lm / WEIGHTS, *(() if share is None else (share,)))
        self.path = folder / "tune.jsonl"
        self.done = {self._name(record): record for record in self._read()}
        self.records: list[Record] = []  # of this run, in its order

    def _read(self) -> list[Record]:
        try:
            return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.path}: damaged ({error}); mend or remove it") from error

    @staticmethod
    def _name(record: Record) -> str:
        return json.dumps([record["speech"], record["language_model"], record["decoding"]], sort_keys=True)

    def config(self, point: Point) -> DecodingConfig:
        return from_mapping(DecodingConfig, {**self.base, **point}, "decoding")

    def measure(self, points: Sequence[Point]) -> list[Record]:
        """One record a point, in their order; those that are known cost nothing."""
        configs = [self.config(point) for point in points]  # all are checked before time is spent
        if self.lm_key is None and any(c.lm_weight for c in configs):
            raise ConfigError("lm_weight is above 0, but there is no language model; name one: language_model=DIR")
        records = []
        with Progress(transient=True) as progress:
            task = progress.add_task("decoding", total=len(points) * sum(len(s.ids) for s in self.states))
            for point, config in zip(points, configs, strict=True):
                record: Record = {
                    "speech": self.key,
                    "language_model": self.lm_key if config.lm_weight else None,
                    "decoding": to_mapping(config),
                }
                name = self._name(record)
                if name not in self.done:
                    record |= self._decoded(config, lambda: progress.advance(task))
                    with self.path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
                    self.done[name] = record
                else:
                    progress.advance(task, sum(len(s.ids) for s in self.states))
                record = self.done[name]
                records.append(record)
                if not any(r is record for r in self.records):
                    self.records.append(record)
                progress.console.print(describe(point, record), highlight=False, soft_wrap=True)
        return records

    def _decoded(self, config: DecodingConfig, advance: Callable[[], None]) -> Record:
        references, hypotheses = {}, {}
        began = time.process_time()
        for name, said, heard in decode(self.states, self.bundle, config):
            references[name], hypotheses[name] = said, heard
            advance()
        seconds = time.process_time() - began
        result = score(references, hypotheses)
        return {
            "wer": result.wer,
            "cer": result.cer,
            "substitutions": result.substitutions,
            "deletions": result.deletions,
            "insertions": result.insertions,
            "reference_words": result.reference_words,
            "processor_seconds": round(seconds, 2),
        }


# --- results ---


def written(value: Any) -> str:
    """As one would write it on the command line."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def describe(point: Point, record: Record) -> str:
    values = " ".join(f"{name}={written(value)}" for name, value in point.items())
    return f"{values}: WER {100 * record['wer']:.2f} %, {record['processor_seconds']:.0f} s"


def surface(records: Sequence[Record], names: Sequence[str]) -> Table:
    """WER of every point, the best one marked; times are relative to the first point."""
    table = Table(*names, "WER", "S", "D", "I", "CER", "time", box=None)
    least, first = min(r["wer"] for r in records), records[0]["processor_seconds"]
    for r in records:
        edits = [str(r[name]) for name in ("substitutions", "deletions", "insertions")]
        row = [written(r["decoding"][name]) for name in names]
        share = r["processor_seconds"] / first if first else math.nan
        style = "bold" if r["wer"] == least else None
        table.add_row(*row, f"{r['wer']:.2%}", *edits, f"{r['cer']:.2%}", f"{share:.2f} x", style=style)
    return table


def save_settings(folder: Path, decoding: Mapping[str, Any]) -> None:
    """Put these into `decoding` of the language model's settings."""
    path = folder / SETTINGS
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["decoding"] = dict(decoding)
    with write_atomically(path) as file:
        yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)


@friendly_errors
def tune(settings: Mapping[str, Any]) -> Record:
    use_threads(settings["threads"])
    check_batch_seconds(settings["batch_seconds"])
    grid = grid_of(settings["grid"])
    if settings["strategy"] not in ("grid", "coordinate"):
        raise ConfigError(f"strategy should be grid or coordinate, not {settings['strategy']!r}")
    folder = Path(settings["output"]).resolve()
    make_writable(folder, "output")
    tuner = Tuner(settings, folder)
    if settings["strategy"] == "grid":
        tuner.measure(full_grid(grid))
    else:
        start = {name: settings["decoding"][name] for name in grid}
        coordinate_search(grid, start, lambda points: [record["wer"] for record in tuner.measure(points)])
    best = min(tuner.records, key=lambda r: (r["wer"], r["processor_seconds"]))
    with write_atomically(folder / "best.yaml") as file:
        yaml.safe_dump(best["decoding"], file, sort_keys=False)
    console = Console()
    console.print(surface(tuner.records, list(grid)))
    saved = ""
    if settings["save"]:
        lm = tuner.bundle.language_model_path
        if lm is None or not best["decoding"]["lm_weight"]:
            console.print("not saved: the best settings use no language model")
        else:
            save_settings(lm, best["decoding"])
            saved = f" and {lm / SETTINGS}"
    console.print(f"wrote {folder / 'best.yaml'}{saved}", highlight=False, soft_wrap=True)
    return best


@hydra.main(version_base="1.3", config_path="../../conf", config_name="tune")
def main(config: DictConfig) -> None:
    tune(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

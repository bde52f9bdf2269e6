"""One training run from manifests to a model folder: what every recipe's `train.py` calls."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
import yaml
from lhotse.cut import MonoCut
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from asr.bundle import load_bundle, save_bundle
from asr.config import as_list, from_mapping, to_mapping
from asr.corpus.chapters import COPY
from asr.corpus.dataset import (
    BatchLoader,
    FeatureCache,
    FrameSource,
    JoinedCaches,
    Portion,
    SpeechDataset,
    default_workers,
    draw_epoch,
    load_cuts,
    plan_epoch,
    split_trainable,
)
from asr.corpus.passages import PassageSource
from asr.corpus.text import PreparedText
from asr.errors import ConfigError, CorpusError, ModelError
from asr.frontend import FrontendConfig, Normalizer
from asr.model import ModelConfig
from asr.model.language_model import load_language_model
from asr.plots import save_figure
from asr.training.checkpoint import (
    BestCheckpoint,
    DurableCheckpointIO,
    ExponentialAverage,
    JointEarlyStopping,
    SafeCheckpoint,
    StopOnSignal,
    average_checkpoints,
    latest_checkpoint,
    load_checkpoint,
)
from asr.training.failures import TrainingStoppedError, readable_failures
from asr.training.module import LasModule, TrainingConfig
from asr.training.plots import AttentionPlots
from asr.training.settings import checked_settings
from asr.transcriber import find_model
from asr.writers import make_writable, write_atomically

__all__ = ["SpeechData", "dev_records", "export", "find_learning_rate", "train"]

log = logging.getLogger(__name__)


DEV_BATCH = 32  # utterances; a search takes its steps for all of them at once
NORMALIZER_SAMPLE = 1000  # utterances that mean and variance are taken over where there is no cache: some hours


class SpeechData(lightning.LightningDataModule):
    """Training and development batches of a prepared corpus; `load` before use."""

    def __init__(self, settings: Mapping[str, Any], module: LasModule) -> None:
        super().__init__()
        c = self.settings = settings
        self.seed, self.ctc_only_epochs = module.settings.seed, module.settings.ctc_only_epochs
        self.tokenizer, self.frontend = module.tokenizer, module.frontend
        self.portions, self.dropped = self._portions(module.model.encoder.config.reduction)
        self.cuts = [cut for portion in self.portions for cut in portion.cuts]
        if not self.cuts:
            raise CorpusError(f"{c['manifests']}: nothing left to train on in {', '.join(c['train'])}")
        self.dev_cuts = self._dev_cuts(module.model.encoder.config.reduction)
        self.cache_folder = Path(c["cache_dir"] or c["manifests"]) if c["cache"] else None
        workers = c.get("workers")
        if workers is None:  # what a cache holds is read faster than it is handed from process to process
            workers = 0 if c["cache"] else default_workers(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        self.workers: int = workers

    def _portions(self, reduction: int) -> tuple[list[Portion], list[tuple[str, str]]]:
        """One of each subset that has anything to train on, and (id, reason) of the utterances dropped."""
        c, portions, dropped = self.settings, [], []
        shares, unperturbed = c.get("shares") or {}, as_list(c.get("unperturbed"))
        if not isinstance(shares, Mapping):
            raise ConfigError(f"corpus.shares should be shares by the names of subsets, not {shares!r}")
        for name, named in (("shares", shares), ("unperturbed", unperturbed)):
            if unknown := sorted({*named} - {*c["train"]}):
                raise ConfigError(f"corpus.{name}: {', '.join(unknown)} not in corpus.train={list(c['train'])}")
        subset_of: dict[str, str] = {}
        for subset in c["train"]:
            share = shares.get(subset, 1.0)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ConfigError(f"corpus.shares.{subset} must be above 0 and at most 1; got {share!r}")
            speeds = (1.0,) if subset in unperturbed else tuple(float(s) for s in c["speeds"])
            cuts = load_cuts(c["manifests"], [subset])
            for cut in cuts:
                if (other := subset_of.setdefault(cut.id, subset)) != subset:
                    raise CorpusError(
                        f"utterance {cut.id} is in both {other} and {subset}; prepare them together, which leaves it "
                        f"out of one, or leave one out of corpus.train"
                    )
            limits = reduction, c["max_duration"], max(speeds), self.frontend.hop
            cuts, lost = split_trainable(cuts, self.tokenizer, *limits)
            dropped += lost
            if cuts:
                portions.append(Portion(cuts, speeds, share))
        return portions, dropped

    def _dev_cuts(self, reduction: int) -> list[MonoCut]:
        """Those long enough for an encoder state, the longest first."""
        c = self.settings
        cuts = sorted(load_cuts(c["manifests"], c["dev"]), key=lambda cut: -cut.duration)
        heard = [cut for cut in cuts if int(cut.duration / self.frontend.hop) + 1 >= reduction]
        if not heard:
            raise CorpusError(f"{c['manifests']}: no utterances in {', '.join(c['dev'])} to choose checkpoints by")
        if short := cuts[len(heard) :]:
            log.warning("dev WER is without %d that are too short to be heard: %s", len(short), short[0].id)
        ids, speakers = ({heard for cut in self.cuts for heard in _heard(name(cut))} for name in (_id, _speaker))
        if known := [cut.id for cut in heard if cut.id in ids]:
            log.warning("dev WER says little: %d utterances are trained on too, such as %s", len(known), known[0])
        elif known := sorted({str(s) for s in map(_speaker, heard) if s in speakers}):
            log.warning("dev WER is of voices that are trained on too: %s", ", ".join(known[:5]))
        return heard

    @property
    def cached(self) -> list[tuple[list[MonoCut], list[float]]]:
        """Cuts and the speeds to keep them at, one pair a cache; speed 1 is what the normalisation is fitted to."""
        cuts: dict[tuple[float, ...], list[MonoCut]] = {}
        for portion in self.portions:
            cuts.setdefault(tuple(sorted({1.0, *portion.speeds})), []).extend(portion.cuts)
        return [(found, list(speeds)) for speeds, found in cuts.items()]

    @property
    def cache_bytes(self) -> int:
        """What `load` will write."""
        if self.cache_folder is None:
            return 0
        return sum(
            FeatureCache.missing_bytes(self.cache_folder, cuts, speeds, self.frontend)
            for cuts, speeds in [*self.cached, (self.dev_cuts, [1.0])]
        )

    def load(self, normalizer: Normalizer | None) -> None:
        """Open or fill the feature caches, if there are any; fit `normalizer` to what the first epoch hears."""
        heard = sorted((cut for cut, _ in draw_epoch(self.portions, epoch=0, seed=self.seed)), key=lambda cut: cut.id)
        if self.cache_folder is None:
            self.train_set = SpeechDataset(self.cuts, self.tokenizer, frontend=self.frontend)
            self.dev_set = SpeechDataset(self.dev_cuts, self.tokenizer, frontend=self.frontend)
            if normalizer:
                if len(heard) > NORMALIZER_SAMPLE:
                    heard = random.Random(self.seed).sample(heard, NORMALIZER_SAMPLE)
                source = FrameSource(heard, [(cut.id, 1.0) for cut in heard], self.frontend)
                source.fit_normalizer(normalizer, self.workers)
            return
        features = JoinedCaches(
            [FeatureCache.open(self.cache_folder, cuts, speeds, self.frontend) for cuts, speeds in self.cached]
        )
        if normalizer:
            features.fit_normalizer(normalizer, [cut.id for cut in heard])
        self.train_set = SpeechDataset(self.cuts, self.tokenizer, features)
        dev_features = FeatureCache.open(self.cache_folder, self.dev_cuts, (1.0,), self.frontend)
        self.dev_set = SpeechDataset(self.dev_cuts, self.tokenizer, dev_features)

    @property
    def hours(self) -> float:
        return sum(cut.duration for cut in self.cuts) / 3600

    def train_dataloader(self) -> BatchLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        plan = plan_epoch(
            self.portions,
            epoch=epoch,
            seed=self.seed,
            batch_seconds=self.settings["batch_seconds"],
            ascending=epoch < self.settings["ascending_epochs"],
            # .. and once more when the speller joins in: what runs out of memory then should do so at once as well.
            longest_first=epoch in (0, math.ceil(self.ctc_only_epochs)),
        )
        return BatchLoader(
            self.train_set,
            plan,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            pin_memory=torch.cuda.is_available(),
            num_workers=self.workers,
        )

    def val_dataloader(self) -> BatchLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = max(1, min(DEV_BATCH, len(self.dev_cuts) // world_size))  # every process needs a batch
        return self._dev_loader(size, rank, world_size)

    def whole_dev_set(self) -> BatchLoader:
        return self._dev_loader(DEV_BATCH)

    def _dev_loader(self, size: int, rank: int = 0, world_size: int = 1) -> BatchLoader:
        keys = [(cut.id, 1.0) for cut in self.dev_cuts]
        plan = [keys[i : i + size] for i in range(0, len(keys), size)]
        # Nothing twice: the counts are summed.
        return BatchLoader(self.dev_set, plan[rank::world_size], num_workers=self.workers)


def _id(cut: MonoCut) -> str:
    return str(cut.id)


def _heard(name: str | None) -> set[str | None]:
    """Of an utterance or speaker, and of what it is a copy of: A1-2-3 of 1-2-3, A1-2-3-4 spliced of its words."""
    if name is None or not name.startswith(COPY):
        return {name}
    original = name.lstrip(COPY)
    return {name, original, re.sub(r"-\d+$", "", original)}


def _speaker(cut: MonoCut) -> str | None:
    return cut.supervisions[0].speaker if cut.supervisions else None


class History(callbacks.Callback):
    """One JSON line a validation in `history.jsonl`: the log of dev WER by epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        values = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items()}
        minutes = round((time.monotonic() - self.started) / 60, 1)
        record = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "minutes": minutes, **values}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            log.error("%s: NOT written (%s): %s", self.path, error.strerror, record)


def train(settings: Mapping[str, Any], extra: Sequence[callbacks.Callback] = ()) -> Path:
    """Train as `settings` say (`corpus`, `model`, `training`, `frontend`, `trainer`, `output`, `resume`).

    `extra` callbacks look on; they come after the run's own.

    Returns the model folder. The output folder then holds `config.yaml`, `history.jsonl`, `dropped.txt`,
    `checkpoints/`, TensorBoard's events and `model/`.

    Raises:
        AsrError: the settings, the corpus or the disk will not do, or training cannot usefully go on.
        TrainingInterrupted: Ctrl-C or SIGTERM; all is saved.
    """
    settings = checked_settings(settings)
    output = Path(settings["output"])
    checkpoints = output / "checkpoints"
    resume = _resume_from(settings, checkpoints)
    seed = from_mapping(TrainingConfig, settings["training"], "training").seed
    lightning.seed_everything(seed, workers=True, verbose=False)  # the first weights depend on it
    module = LasModule.from_settings(settings)
    data = SpeechData(settings["corpus"], module)
    started = bool(settings.get("init_from")) and resume is None
    reads = started and _start_from(module, settings["init_from"])
    if resume is None:
        _take_reader(module, settings.get("reader_from"), reads)
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0:
        _prepare_disk(settings, checkpoints, module, data, resume)
    data.load(None if started else module.normalizer)
    corpus = settings["corpus"]
    module.data = {"corpora": list(corpus["train"]), "hours": round(data.hours, 2), "dev": list(corpus["dev"])}
    if corpus.get("text"):
        text = PreparedText(corpus["text"], "train", module.tokenizer)
        module.text = PassageSource(text, module.tokenizer, corpus["text_characters"], seed=seed)
        module.data["text"] = {"sentences": len(text), "characters": int(text.lengths.sum())}

    t = settings["trainer"]
    if module.settings.find_learning_rate:  # the finder ends it, and dev WER tells it nothing
        t = {**t, "max_epochs": 10_000, "max_steps": -1, "validate_every": 10_000}
    chosen, best, epochs = _callbacks(settings, module)
    if t["max_steps"] > 0:
        log.warning("max_steps=%d may end the run within an epoch, which is then not validated", t["max_steps"])
    elif t["max_epochs"] % t["validate_every"]:
        log.warning("the last epochs will not be validated: max_epochs is no multiple of validate_every")
    devices, nodes = count_processes(t)
    trainer = lightning.Trainer(
        accelerator=choose_accelerator(t["accelerator"]),
        devices=devices,
        num_nodes=nodes,
        # Until CTC alone is over, the speller has no gradient to wait for.
        strategy=DDPStrategy(find_unused_parameters=module.settings.ctc_only_epochs > 0)
        if devices * nodes > 1
        else "auto",
        precision=choose_precision(t["precision"]),
        max_epochs=t["max_epochs"],
        max_steps=t["max_steps"],
        check_val_every_n_epoch=t["validate_every"],
        accumulate_grad_batches=t["accumulate"],
        deterministic=("warn" if torch.cuda.is_available() else True) if t["deterministic"] else None,  # CTC's is not
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=t["log_every"],
        logger=TensorBoardLogger(output, name="", version="tensorboard"),
        callbacks=[*chosen, *extra],
        plugins=[DurableCheckpointIO()],
        default_root_dir=output,
        enable_model_summary=False,
    )
    if trainer.is_global_zero:
        log.info(
            "%.2f h of speech in %d utterances (%d dropped: %s), %.1f M parameters%s",
            data.hours, len(data.cuts), len(data.dropped), output / "dropped.txt", module.model.num_parameters / 1e6,
            f"; going on from {resume}" if resume else "",
        )  # fmt: skip
    with readable_failures(output, partial(_out_of_memory, module, settings)):
        if module.settings.find_learning_rate:
            return find_learning_rate(trainer, module, data, output)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    if not trainer.is_global_zero:
        return output / "model"
    ranked = [Path(p) for p in sorted(best.best_k_models, key=best.best_k_models.__getitem__)]
    if resume and _is_newer(output / "model", ranked or [Path(epochs.best_model_path)]):  # the run was over already
        log.info("%s is there already", output / "model")  # what later stages made with it need not be made again
        return output / "model"
    if len(ranked) > 1:
        single, mean = float(best.best_k_models[str(ranked[0])]), _dev_wer_of_mean(ranked, trainer, module, data)
        log.info("dev WER %.2f %% of the best, %.2f %% of the mean of %d", 100 * single, 100 * mean, len(ranked))
        if mean <= single:
            return export(ranked, output, dev_wer=mean)
    return export(ranked[:1] or [Path(epochs.best_model_path)], output)


def _callbacks(
    settings: Mapping[str, Any], module: LasModule
) -> tuple[list[callbacks.Callback], BestCheckpoint, SafeCheckpoint]:
    """All of them, and among them those that keep the best checkpoints and the newest epoch's."""
    t, output = settings["trainer"], Path(settings["output"])
    folder, keep = output / "checkpoints", module.settings.average
    best = BestCheckpoint(
        folder,
        "best" if keep == 1 else "best-{step:07d}",
        "dev/wer",
        save_top_k=keep,
        auto_insert_metric_name=False,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    newest: dict[str, Any] = {"monitor": "step", "mode": "max", "auto_insert_metric_name": False}
    newest["enable_version_counter"] = False
    interval = timedelta(minutes=t["checkpoint_minutes"])
    regular = SafeCheckpoint(folder, "step-{step:07d}", train_time_interval=interval, **newest)
    epochs = SafeCheckpoint(folder, "epoch-{epoch:04d}", save_on_train_epoch_end=True, **newest)
    chosen: list[callbacks.Callback] = [best, regular, epochs, StopOnSignal(regular), History(output / "history.jsonl")]
    if t["average_decay"]:
        chosen.insert(0, ExponentialAverage(t["average_decay"]))
    if t["early_stop_epochs"]:
        chosen.append(JointEarlyStopping("dev/wer", patience=t["early_stop_epochs"], check_on_train_epoch_end=False))
    if t["plots"]:
        chosen.append(AttentionPlots(count=t["plots"]))
    chosen.append(callbacks.RichProgressBar() if t["progress"] else callbacks.TQDMProgressBar(refresh_rate=0))
    return chosen, best, epochs


def find_learning_rate(trainer: lightning.Trainer, module: LasModule, data: SpeechData, output: Path) -> Path:
    """Raise the learning rate from step to step and see how the loss takes it (Smith 2017).

    Logs the rate at which the loss falls fastest, draws `learning_rate.png` and returns its path. Nothing is trained.
    """
    from lightning.pytorch.tuner import Tuner
    from matplotlib.figure import Figure

    if trainer.world_size > 1:
        raise ConfigError("training.find_learning_rate=true wants one process; start it without torchrun")
    module.sets_learning_rate = False
    found = Tuner(trainer).lr_find(module, datamodule=data, min_lr=1e-5, max_lr=0.3, update_attr=False)
    assert found is not None
    rates, losses = np.array(found.results["lr"]), np.array(found.results["loss"])
    rate = steepest_fall(rates, losses)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(rates, losses)
    axes.axvline(rate, linestyle=":", color="black")
    axes.set(xlabel="learning rate", ylabel="training loss", title=f"falls fastest at {rate:.1e}")
    path = save_figure(figure, output / "learning_rate.png")
    log.info("the loss falls fastest at training.learning_rate=%.1e; see %s", rate, path)
    return path


def steepest_fall(rates: np.ndarray, losses: np.ndarray) -> float:
    """The rate where a smoothed loss falls fastest by the logarithm of the rate, the first tenth left out.

    (Lightning's own suggestion takes the slope by the rate itself, which is steepest where steps are smallest.)
    """
    skip = len(rates) // 10
    known = np.isfinite(losses) & (np.arange(len(rates)) >= skip)
    if known.sum() < 10:
        raise TrainingStoppedError("too few steps with a finite loss to suggest a learning rate")
    slope = np.gradient(losses[known], np.log(rates[known]))
    return float(rates[known][slope.argmin()])


def _out_of_memory(module: LasModule, settings: Mapping[str, Any]) -> str:
    corpus = settings["corpus"]
    return (
        f"out of memory at step {module.trainer.global_step}, at a batch of {module.batch_shape}; lower "
        f"corpus.batch_seconds (now {corpus['batch_seconds']:g}; trainer.accumulate=2 makes up for half), "
        f"corpus.max_duration (now {corpus['max_duration']:g} s) or the model's size"
    )


def _prepare_disk(
    settings: Mapping[str, Any], checkpoints: Path, module: LasModule, data: SpeechData, resume: Path | None
) -> None:
    """Make the folders, write what is known, and see that there is room for the rest.

    Raises:
        ConfigError: a folder cannot be written to, or has too little room.
    """
    output = checkpoints.parent
    make_writable(checkpoints, "output")
    for kind in ("step-*.ckpt", "epoch-*.ckpt"):  # a run that goes on only replaces what it wrote itself
        for old in sorted(checkpoints.glob(kind))[:-2]:
            if resume is None or old.resolve() != resume.resolve():
                old.unlink()
    copies = 4 if settings["trainer"]["average_decay"] else 3  # weights and Adam's two moments, and their average
    one = module.model.num_parameters * 4 * copies
    kept = module.settings.average + 2  # the best, the newest, the last epoch's
    there = sum(path.stat().st_size for path in checkpoints.glob("*.ckpt"))
    needs = {output: (max(one, (kept + 1) * one - there), f"about {kept + 1} checkpoints of {_size(one)}", "output")}
    if data.cache_bytes:
        folder, what = data.cache_folder or output, f"features of {data.hours:.1f} h"
        make_writable(folder, "corpus.cache_dir")
        if folder.stat().st_dev == output.stat().st_dev:
            needs[output] = (needs[output][0] + data.cache_bytes, f"{needs[output][1]} and {what}", "output")
        else:
            needs[folder] = (data.cache_bytes, what, "corpus.cache_dir")
    for folder, (size, what, name) in needs.items():
        free = shutil.disk_usage(folder).free
        if free < size:
            has = f"{_size(free)} free, but {_size(size)} needed"
            raise ConfigError(f"{folder}: {has} for {what}; free space or choose another {name}=")
    with write_atomically(output / "config.yaml") as file:
        yaml.safe_dump(dict(settings), file, sort_keys=False)
    with write_atomically(output / "dropped.txt") as file:
        file.writelines(f"{i}\t{reason}\n" for i, reason in data.dropped)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _is_newer(model: Path, checkpoints: Sequence[Path]) -> bool:
    """Whether a model folder was written after these checkpoints."""
    weights = model / "model.safetensors"
    return weights.is_file() and all(weights.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in checkpoints)


@torch.inference_mode()
def _dev_wer_of_mean(paths: Sequence[Path], trainer: lightning.Trainer, module: LasModule, data: SpeechData) -> float:
    """Dev WER of the mean of these checkpoints' weights, by the first process alone; overwrites `module`'s."""
    module.load_state_dict(average_checkpoints(paths)["state_dict"])
    device = trainer.strategy.root_device
    module.to(device).eval()
    counts: Counter[str] = Counter()
    with trainer.precision_plugin.val_step_context():
        for batch in data.whole_dev_set():
            batch = move_data_to_device(batch, device)
            h, lengths = module.model.encoder(module.normalizer(batch.frames, batch.lengths), batch.lengths)
            counts += module.count_errors(batch.texts, h, lengths, module.model.ctc(h), index=1)
    return counts[f"{module.search} errors"] / max(1, counts[f"{module.search} words"])


def export(
    checkpoints: Sequence[Path],
    run: Path,
    folder: Path | None = None,
    dev_wer: float | None = None,
    int8: bool = False,
) -> Path:
    """A run's checkpoint, or the mean of several, -> a model folder, by default `model/` in the run's.

    With `int8` its matrices take 8 bits a weight (`save_bundle`).

    Raises:
        ModelError: a checkpoint is missing or damaged, or the run is not a recogniser's.
    """
    records = dev_records(run)
    state = average_checkpoints(checkpoints)
    module = LasModule.from_settings(state["hyper_parameters"])
    module.load_state_dict(state["state_dict"])
    record = records.get(state["global_step"], {}) if len(checkpoints) == 1 else {"dev/wer": dev_wer}
    summary = {
        **(state.get("data") or _data_of(run)),
        "epochs": state["epoch"] + 1,
        "steps": state["global_step"],
        "averaged": len(checkpoints) if len(checkpoints) > 1 else None,
        "dev_wer": record.get("dev/wer"),
        "dev_wer_ctc": record.get("dev/wer_ctc"),
        "dev_wer_attention": record.get("dev/wer_attention"),
        "date": time.strftime("%Y-%m-%d"),
    }
    summary = {key: value for key, value in summary.items() if value is not None}
    folder = folder or run / "model"
    try:
        save_bundle(folder, module.model, module.normalizer, module.frontend, module.tokenizer, summary, int8)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write there ({error.strerror})") from error
    log.info("wrote %s", folder)
    return folder


def dev_records(run: Path) -> dict[int, dict[str, Any]]:
    """The lines of a run's `history.jsonl` by their step; of two of one step, the later.

    Raises:
        ModelError: the run is not a recogniser's.
    """
    path = run / "history.jsonl"
    records = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(json.JSONDecodeError):  # the last line before a power cut
            record = json.loads(line)
            if "step" not in record:
                raise ModelError(f"{path}: not a recogniser's run; a language model's is in {run / 'model'} already")
            records[record["step"]] = record
    return records


def _data_of(run: Path) -> dict[str, Any]:
    """Names of the corpora, for checkpoints from before they were noted there."""
    path = run / "config.yaml"
    corpus = yaml.safe_load(path.read_text())["corpus"] if path.is_file() else {}
    return {"corpora": corpus.get("train"), "dev": corpus.get("dev")}


def count_processes(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Processes on this machine and machines: what torchrun says, else what the settings say."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", settings["devices"]))
    if "LOCAL_WORLD_SIZE" in os.environ:
        return local, int(os.environ["WORLD_SIZE"]) // local
    return local, settings["num_nodes"]


def _start_from(module: LasModule, folder: str) -> bool:
    """Take over a model folder's weights and its normalisation, which they were trained with; whether it has a reader.

    The run's encoder may have more residual layers at its top, and its speller positions and a reader. Positions begin
    as if they were not there, and so do layers above a model without residual ones; above residual layers they are
    stacked.
    """
    bundle = load_bundle(find_model(folder))
    given, wanted = bundle.model.config, module.model.config
    added = wanted.encoder.layers - given.encoder.layers
    if added > 0:
        encoder = replace(given.encoder, layers=wanted.encoder.layers, residual=given.encoder.residual + added)
        given = replace(given, encoder=encoder)
    for part in ("positions", "reader"):
        if not getattr(given.speller, part):
            given = replace(given, speller=replace(given.speller, **{part: getattr(wanted.speller, part)}))
    if differences(to_mapping(given), to_mapping(wanted)):
        difference = differences(to_mapping(bundle.model.config), to_mapping(wanted))
        raise ConfigError(
            f"init_from={folder} has another model ({difference}); give this run the same settings, but for "
            "model.speller.positions, model.speller.reader or as many layers in model.encoder.layers as in "
            "model.encoder.residual"
        )
    module.model.load_state_dict(module.model.state_dict() | bundle.model.state_dict())
    module.model.encoder.stack(bundle.model.config.encoder)
    module.normalizer.load_state_dict(bundle.normalizer.state_dict())
    return bundle.model.speller.reader is not None


def _take_reader(module: LasModule, folder: str | None, reads: bool) -> None:
    """Have the speller's reader begin as the language model at `folder`; with none, see that it `reads` already."""
    speller = module.model.speller
    if folder is None:
        if speller.reader is not None and not reads:
            raise ConfigError(
                f"model.speller.reader={speller.config.reader} has read nothing yet; reader_from=FOLDER names a "
                "character language model of that size, which recipes/language_model/train.py makes"
            )
        return
    try:
        speller.take_reader(load_language_model(folder, module.tokenizer))
    except ValueError as error:
        raise ConfigError(f"reader_from={folder} does not fit model.speller.reader: {error}") from error


def choose_accelerator(wanted: str) -> str:
    """`auto` is CUDA or the CPU; Lightning's would be Apple's MPS, which lacks the double precision that CTC needs."""
    if wanted in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ConfigError(f"trainer.accelerator={wanted}: this machine has no CUDA GPU that PyTorch can use; use cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def choose_precision(wanted: str) -> Any:
    if str(wanted).startswith("16"):  # its scaled gradients would be clipped as they are
        raise ConfigError(f"trainer.precision={wanted} cannot be trained with; use bf16-mixed, 32-true or auto")
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    # Without native bf16 instructions a CPU only emulates it, slower than fp32; and Intel's without AMX have them at
    # less than fp32's rate, AMD's at more than twice it (recipes/benchmark/README.md).
    if torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _bf16_is_quicker()):
        return "bf16-mixed"
    return "32-true"


def _bf16_is_quicker(size: int = 512, times: int = 5) -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32, by the best of some tries of each: 20 ms."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=dtype)
        torch.mm(a, a)  # the first prepares
        took = []
        for _ in range(times):
            began = time.perf_counter()
            torch.mm(a, a)
            took.append(time.perf_counter() - began)
        best[dtype] = min(took)
    return best[torch.bfloat16] < best[torch.float32]


def _resume_from(settings: Mapping[str, Any], checkpoints: Path) -> Path | None:
    """Which checkpoint to go on from; ConfigError before any time is lost where that cannot work."""
    resume = settings["resume"]
    if resume == "never":
        if any(checkpoints.glob("*.ckpt")):
            raise ConfigError(
                f"{checkpoints.parent} holds a run already: resume=auto goes on, or choose another output="
            )
        return None
    path = latest_checkpoint(checkpoints) if resume == "auto" else Path(resume)
    if path is None:
        return None
    state = load_checkpoint(path)
    module = LasModule.from_settings(settings)
    for part, kind in (("model", ModelConfig), ("frontend", FrontendConfig)):
        then = to_mapping(from_mapping(kind, state["hyper_parameters"][part], part))  # with what has been added since
        keys = differences(then, module.hparams[part])
        if keys:
            raise ConfigError(f"{path}: was trained with other {part} settings ({keys}); set them back or start anew")
    output = checkpoints.parent
    if resume == "auto" and _is_newer(output / "model", [path]):  # the run is over
        heard = load_bundle(output / "model").training.get("corpora")
        if heard and set(heard) != set(settings["corpus"]["train"]):
            raise ConfigError(f"{output} holds a finished run on {', '.join(heard)}; choose another output=")
    return path


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    found = []
    for key in sorted({*then, *now}):
        a, b = then.get(key), now.get(key)
        if key == "dropout":
            continue  # no part of the architecture: it may change in mid-run
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.append(differences(a, b, f"{prefix}{key}."))
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return ", ".join(f for f in found if f)

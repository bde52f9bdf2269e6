"""One training run from manifests to a model folder: what every recipe's `train.py` calls."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from asr.bundle import load_bundle, save_bundle
from asr.config import from_mapping, to_mapping
from asr.corpus.dataset import BatchLoader, FeatureCache, SpeechDataset, load_cuts, plan_epoch, split_trainable
from asr.errors import ConfigError, CorpusError
from asr.training.checkpoint import DurableCheckpointIO, ExponentialAverage, latest_checkpoint
from asr.training.module import LasModule, TrainingConfig
from asr.training.plots import AttentionPlots
from asr.transcriber import find_model
from asr.writers import write_atomically

__all__ = ["SpeechData", "train"]

log = logging.getLogger(__name__)


class SpeechData(lightning.LightningDataModule):
    """Training and development batches of a prepared corpus."""

    def __init__(self, settings: Mapping[str, Any], module: LasModule) -> None:
        super().__init__()
        c = self.settings = settings
        self.seed = module.settings.seed
        reduction = module.model.encoder.config.reduction
        tokenizer, frontend = module.tokenizer, module.frontend
        speeds = tuple(float(s) for s in c["speeds"])
        cuts = load_cuts(c["manifests"], c["train"])
        self.cuts, self.dropped = split_trainable(cuts, tokenizer, reduction, c["max_duration"], max(speeds))
        if not self.cuts:
            raise CorpusError(f"{c['manifests']}: nothing left to train on in {', '.join(c['train'])}")
        self.dev_cuts = sorted(load_cuts(c["manifests"], c["dev"]), key=lambda cut: -cut.duration)
        if c["cache"]:
            folder = Path(c["cache_dir"] or c["manifests"])
            all_speeds = sorted({1.0, *speeds})
            features = FeatureCache.open(folder, self.cuts, all_speeds, frontend)
            dev_features = FeatureCache.open(folder, self.dev_cuts, (1.0,), frontend)
            features.fit_normalizer(module.normalizer, [cut.id for cut in self.cuts])
            self.train_set = SpeechDataset(self.cuts, tokenizer, features)
            self.dev_set = SpeechDataset(self.dev_cuts, tokenizer, dev_features)
        else:
            raise ConfigError("corpus.cache=false is not supported yet; leave it true")

    @property
    def hours(self) -> float:
        return sum(cut.duration for cut in self.cuts) / 3600

    def train_dataloader(self) -> BatchLoader:
        epoch = self.trainer.current_epoch if self.trainer else 0
        plan = plan_epoch(
            self.cuts,
            epoch=epoch,
            seed=self.seed,
            batch_seconds=self.settings["batch_seconds"],
            speeds=self.settings["speeds"],
            ascending=epoch < self.settings["ascending_epochs"],
            longest_first=epoch == 0,
        )
        return BatchLoader(
            self.train_set,
            plan,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> BatchLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        keys = [(cut.id, 1.0) for cut in self.dev_cuts]
        size = max(1, min(16, len(keys) // world_size))  # every process needs a batch
        plan = [keys[i : i + size] for i in range(0, len(keys), size)]
        return BatchLoader(self.dev_set, plan[rank::world_size])  # nothing twice: the counts are summed


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
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")


def train(settings: Mapping[str, Any]) -> Path:
    """Train as `settings` say (`corpus`, `model`, `training`, `frontend`, `trainer`, `output`, `resume`).

    Returns the model folder. The output folder then holds `config.yaml`, `history.jsonl`, `dropped.txt`,
    `checkpoints/`, TensorBoard's events and `model/`.
    """
    output = Path(settings["output"])
    checkpoints = output / "checkpoints"
    resume = _resume_from(settings, checkpoints)
    seed = from_mapping(TrainingConfig, settings["training"], "training").seed
    lightning.seed_everything(seed, workers=True, verbose=False)  # the first weights depend on it
    module = LasModule.from_settings(settings)
    data = SpeechData(settings["corpus"], module)
    if settings.get("init_from") and resume is None:
        _start_from(module, settings["init_from"])
    first = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        if first:
            with write_atomically(output / "config.yaml") as file:
                yaml.safe_dump(dict(settings), file, sort_keys=False)
            with write_atomically(output / "dropped.txt") as file:
                file.writelines(f"{i}\t{reason}\n" for i, reason in data.dropped)
            for kind in ("step-*.ckpt", "epoch-*.ckpt"):  # a run that goes on only replaces what it wrote itself
                for old in sorted(checkpoints.glob(kind))[:-2]:
                    old.unlink()
    except OSError as error:
        raise ConfigError(f"{output}: cannot write there ({error.strerror}); choose another output=") from error
    log.info(
        "%.2f h of speech in %d utterances (%d dropped: %s), %.1f M parameters",
        data.hours, len(data.cuts), len(data.dropped), output / "dropped.txt", module.model.num_parameters / 1e6,
    )  # fmt: skip

    t = settings["trainer"]
    best = callbacks.ModelCheckpoint(
        checkpoints, "best", "dev/wer", enable_version_counter=False, save_on_train_epoch_end=False
    )
    newest: dict[str, Any] = {"monitor": "step", "mode": "max", "auto_insert_metric_name": False}
    regular = callbacks.ModelCheckpoint(
        checkpoints, "step-{step:07d}", train_time_interval=timedelta(minutes=t["checkpoint_minutes"]), **newest
    )
    epochs = callbacks.ModelCheckpoint(checkpoints, "epoch-{epoch:04d}", save_on_train_epoch_end=True, **newest)
    chosen: list[callbacks.Callback] = [best, regular, epochs, History(output / "history.jsonl")]
    if t["average_decay"]:
        chosen.insert(0, ExponentialAverage(t["average_decay"]))
    if t["early_stop_epochs"]:
        chosen.append(
            callbacks.EarlyStopping("dev/wer", patience=t["early_stop_epochs"], check_on_train_epoch_end=False)
        )
    if t["plots"]:
        chosen.append(AttentionPlots(count=t["plots"]))
    chosen.append(callbacks.RichProgressBar() if t["progress"] else callbacks.TQDMProgressBar(refresh_rate=0))
    if t["max_steps"] < 0 and t["max_epochs"] % t["validate_every"]:
        log.warning("the last epochs will not be validated: max_epochs is no multiple of validate_every")
    devices, nodes = _processes(t)
    trainer = lightning.Trainer(
        accelerator=t["accelerator"],
        devices=devices,
        num_nodes=nodes,
        # Until CTC alone is over, the speller has no gradient to wait for.
        strategy=DDPStrategy(find_unused_parameters=module.settings.ctc_only_epochs > 0)
        if devices * nodes > 1
        else "auto",
        precision=_precision(t["precision"]),
        max_epochs=t["max_epochs"],
        max_steps=t["max_steps"],
        check_val_every_n_epoch=t["validate_every"],
        accumulate_grad_batches=t["accumulate"],
        deterministic=t["deterministic"] or None,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=t["log_every"],
        logger=TensorBoardLogger(output, name="", version="tensorboard"),
        callbacks=chosen,
        plugins=[DurableCheckpointIO()],
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    if not trainer.is_global_zero:
        return output / "model"
    return export(Path(best.best_model_path or epochs.best_model_path), output / "model", settings, data.hours)


def export(checkpoint: Path, folder: Path, settings: Mapping[str, Any], hours: float) -> Path:
    """A training checkpoint -> a model folder."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module = LasModule.from_settings(state["hyper_parameters"])
    module.load_state_dict(state["state_dict"])
    history = folder.parent / "history.jsonl"
    records = [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
    record: dict[str, Any] = next((r for r in reversed(records) if r["step"] == state["global_step"]), {})
    summary = {
        "corpora": list(settings["corpus"]["train"]),
        "hours": round(hours, 2),
        "epochs": state["epoch"] + 1,
        "steps": state["global_step"],
        "dev": list(settings["corpus"]["dev"]),
        "dev_wer": record.get("dev/wer"),
        "dev_wer_ctc": record.get("dev/wer_ctc"),
        "date": time.strftime("%Y-%m-%d"),
    }
    save_bundle(folder, module.model, module.normalizer, module.frontend, module.tokenizer, summary)
    log.info("wrote %s", folder)
    return folder


def _processes(settings: Mapping[str, Any]) -> tuple[int, int]:
    """Processes on this machine and machines: what torchrun says, else what the settings say."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", settings["devices"]))
    if "LOCAL_WORLD_SIZE" in os.environ:
        return local, int(os.environ["WORLD_SIZE"]) // local
    return local, settings["num_nodes"]


def _start_from(module: LasModule, folder: str) -> None:
    """Take over a model folder's weights and its normalisation, which they were trained with."""
    bundle = load_bundle(find_model(folder))
    if bundle.model.config != module.model.config:
        difference = _differences(to_mapping(bundle.model.config), to_mapping(module.model.config))
        raise ConfigError(f"init_from={folder} has another model ({difference}); give this run the same settings")
    module.model.load_state_dict(bundle.model.state_dict())
    module.normalizer.load_state_dict(bundle.normalizer.state_dict())


def _precision(wanted: str) -> Any:
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
    # Without native bf16 instructions a CPU only emulates it, slower than fp32.
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


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
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint")
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    module = LasModule.from_settings(settings)
    for part in ("model", "frontend"):
        keys = _differences(state["hyper_parameters"][part], module.hparams[part])
        if keys:
            raise ConfigError(f"{path}: was trained with other {part} settings ({keys}); set them back or start anew")
    return path


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    found = []
    for key in sorted({*then, *now}):
        a, b = then.get(key), now.get(key)
        if key == "dropout":
            continue  # no part of the architecture: it may change in mid-run
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.append(_differences(a, b, f"{prefix}{key}."))
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return ", ".join(f for f in found if f)

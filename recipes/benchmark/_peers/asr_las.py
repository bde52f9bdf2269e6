"""This project: the model of a preset of `conf/`, and the loss and optimiser that its trainer uses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from _step import BOS, EOS, N_MELS, VOCABULARY, Batch
from torch import Tensor

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))


def preset(name: str) -> dict[str, Any]:
    """What `train.py experiment=NAME` would train with."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={name}"])
    return {k: OmegaConf.to_container(config[k], resolve=True) for k in ("corpus", "model", "training", "frontend")}


class AsrSystem:
    def __init__(self, experiment: str = "small") -> None:
        from asr import __version__
        from asr.training.module import LasModule

        self.module = LasModule.from_settings(preset(experiment))
        self.model = self.module.model
        self.version = __version__
        self.description = f"preset {experiment}"
        tokenizer, config = self.module.tokenizer, self.model.config
        if (config.speller.vocabulary, config.encoder.n_mels) != (VOCABULARY, N_MELS):
            raise ValueError(f"the benchmark's batches have {N_MELS} mel bands and {VOCABULARY} characters")
        if (tokenizer.blank_id, tokenizer.bos_id, tokenizer.eos_id) != (0, BOS, EOS):
            raise ValueError("the benchmark's batches have other ids for blank, BOS and EOS than the tokenizer")

    def loss(self, batch: Batch) -> Tensor:
        from asr.training.module import joint_loss

        out = self.model(batch.frames, batch.lengths, batch.characters[:, :-1])
        settings = self.module.settings
        attention, ctc = joint_loss(
            out.logits,
            out.ctc_logits,
            out.lengths,
            batch.characters,
            batch.character_lengths,
            settings.label_smoothing,
        )
        return (1 - settings.ctc_weight) * attention + settings.ctc_weight * ctc

    def optimizer(self) -> torch.optim.Optimizer:
        return self.module.configure_optimizers()


build = AsrSystem

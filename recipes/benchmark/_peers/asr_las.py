"""This project: the model of a preset of `conf/`, the loss and optimiser that its trainer uses, and its beam search."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _decode import Decode, Search
from _step import BOS, EOS, N_MELS, VOCABULARY, Batch
from torch import Tensor

if TYPE_CHECKING:
    from asr.decoding.scorers import Beams, Step

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))


def preset(name: str) -> dict[str, Any]:
    """What `train.py experiment=NAME` would train with."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={name}"])
    return {k: OmegaConf.to_container(config[k], resolve=True) for k in ("corpus", "model", "training", "frontend")}


class FixedLength:
    """A scorer (asr/decoding/scorers.py) that forbids EOS before `tokens` characters and everything else after them."""

    weight = 1.0

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def start(self, h: Tensor, lengths: Tensor) -> Tensor:
        state = torch.zeros(2, 1, VOCABULARY, device=h.device)
        state[0, :, EOS] = -math.inf
        state[1] = -math.inf
        state[1, :, EOS] = 0.0
        return state

    def score(self, state: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        return state[int(step.position >= self.tokens)], state

    def keep(self, state: Tensor, utterances: Tensor) -> Tensor:
        return state

    def select(self, state: Tensor, rows: Tensor, tokens: Tensor, beams: Beams) -> Tensor:
        return state

    def most(self, state: Tensor, remaining: Tensor) -> float:
        return 0.0


class AsrSystem:
    def __init__(self, experiment: str = "small") -> None:
        from asr import __version__
        from asr.training.module import LasModule

        self.module = LasModule.from_settings(preset(experiment))
        self.model = self.module.model
        self.encoder = self.model.encoder
        self.version = __version__
        self.description = f"preset {experiment}"
        tokenizer, config = self.module.tokenizer, self.model.config
        if (config.speller.vocabulary, config.encoder.n_mels) != (VOCABULARY, N_MELS):
            raise ValueError(f"the benchmark's batches have {N_MELS} mel bands and {VOCABULARY} characters")
        if (tokenizer.blank_id, tokenizer.bos_id, tokenizer.eos_id) != (0, BOS, EOS):
            raise ValueError("the benchmark's batches have other ids for blank, BOS and EOS than the tokenizer")

    def loss(self, batch: Batch) -> Tensor:
        from asr.model.loss import joint_loss

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

    def searcher(self, search: Search) -> str:
        return "beam_search"

    def decoder(self, search: Search) -> Decode:
        from asr.decoding.beam_search import DecodingConfig, beam_search

        config = DecodingConfig(beam=search.beam, ctc_weight=search.ctc_weight)
        ends = FixedLength(search.tokens)
        self.model.speller.pack()  # as load_bundle does

        def decode(h: Tensor) -> list[list[int]]:
            lengths = torch.full(h.shape[:1], h.shape[1], device=h.device)
            found = beam_search(self.model, h, lengths, config, self.module.tokenizer, extra_scorers=[ends])
            return [list(hypotheses[0].tokens) for hypotheses in found]

        return decode


build = AsrSystem

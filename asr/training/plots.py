"""Attention weights as pictures: characters down, time along."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from asr.plots import plot_attention
from asr.training.module import LasModule

__all__ = ["AttentionPlots"]


class AttentionPlots(Callback):
    """After each validation, the attention of the same few development utterances in TensorBoard."""

    def __init__(self, count: int = 2) -> None:
        self.count = count

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, LasModule)
        last = trainer.num_val_batches[0] - 1
        if batch_idx != last or trainer.sanity_checking or trainer.logger is None or not trainer.is_global_zero:
            return  # the last batch holds the shortest utterances: the easiest to read
        out = pl_module.model(
            pl_module.normalizer(batch.frames, batch.lengths), batch.lengths, batch.characters[:, :-1]
        )
        if out.weights is None:
            return
        for i in range(min(self.count, len(batch.ids))):
            length = int(batch.character_lengths[i]) + 1
            figure = plot_attention(
                out.weights[i, :length, : int(out.lengths[i])].float().cpu().numpy(),
                pl_module.tokenizer.pieces(batch.characters[i, 1 : length + 1].tolist()),
                batch.frames[i, : int(batch.lengths[i])].float().cpu().numpy(),
                hop=pl_module.frontend.hop,
                title=batch.ids[i],
            )
            trainer.logger.experiment.add_figure(f"attention/{batch.ids[i]}", figure, trainer.global_step)  # type: ignore[attr-defined]

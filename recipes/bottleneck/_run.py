"""One run of the grid: asr's own training, watched, and the CER by length of the decoder alone in the end."""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback

from asr.config import to_mapping
from asr.decoding.beam_search import PRESETS
from asr.errors import ConfigError
from asr.model.loss import joint_loss
from asr.scoring import Score
from asr.training import evaluate, run
from asr.training.module import LasModule
from asr.writers import write_atomically

__all__ = ["Watch", "characters_by_length", "train"]

log = logging.getLogger(__name__)


def train(settings: Mapping[str, Any]) -> None:
    """Train as `asr.training.run.train` does, then write `result.json`, unless it is there or another process is at it.

    Raises:
        AsrError: as `asr.training.run.train`.
    """
    output = Path(settings["output"])
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / "lock")
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is at it", output)
        return
    except OSError as error:
        raise ConfigError(f"{output}: cannot write there ({error.strerror}); choose another output=") from error
    with lock:
        if (output / "result.json").is_file():
            log.info("%s: finished before", output)
            return
        watch = Watch(output, **settings["watch"])
        run.train(settings, [watch])
        _write_result(settings, output, watch)


class Watch(Callback):
    """Looks on: loss on the development set and attention of one utterance as they change, and processor time.

    Writes `curve.jsonl` (step and teacher-forced loss, nats a character) and `attention/step-*.npz`.

    Args:
        output: the run's folder.
        every: steps between two losses.
        attention_steps: when to keep the attention matrix; beside them, at the end.
        words: length of the utterance, the first such of the development set.
    """

    def __init__(self, output: Path, every: int, attention_steps: list[int], words: int) -> None:
        self.output, self.every, self.attention_steps, self.words = output, every, set(attention_steps), words
        self.times = {"steps": 0, "step_seconds": 0.0, "seconds": 0.0}  # of the processor
        self._started = self._step_started = time.process_time()

    def state_dict(self) -> dict[str, Any]:
        return {**self.times, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.times = dict(state_dict)

    def _seconds(self) -> float:
        return self.times["seconds"] + time.process_time() - self._started

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._started = time.process_time()
        if trainer.global_step == 0:
            self._look(trainer, pl_module, final=False)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_started = time.process_time()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.times["steps"] += 1
        self.times["step_seconds"] += time.process_time() - self._step_started
        self._look(trainer, pl_module, final=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._look(trainer, pl_module, final=True)
        self.times["seconds"] = self._seconds()

    @torch.no_grad()
    def _look(self, trainer: lightning.Trainer, module: lightning.LightningModule, final: bool) -> None:
        assert isinstance(module, LasModule)
        step = trainer.global_step
        module.eval()
        if step % self.every == 0:
            with open(self.output / "curve.jsonl", "a") as file:
                file.write(json.dumps({"step": step, "loss": self._dev_loss(trainer, module)}) + "\n")
        if step in self.attention_steps or final:
            self._keep_attention(trainer, module)
        module.train()

    def _dev_loss(self, trainer: lightning.Trainer, module: LasModule) -> float:
        total, characters = 0.0, 0
        for batch in trainer.datamodule.whole_dev_set():  # type: ignore[attr-defined]
            frames = module.normalizer(batch.frames, batch.lengths)
            out = module.model(frames, batch.lengths, batch.characters[:, :-1])
            loss, _ = joint_loss(out.logits, out.ctc_logits, out.lengths, batch.characters, batch.character_lengths)
            count = int(batch.character_lengths.sum()) + len(batch.ids)  # with EOS
            total, characters = total + float(loss) * count, characters + count
        return round(total / characters, 4)

    def _keep_attention(self, trainer: lightning.Trainer, module: LasModule) -> None:
        data: run.SpeechData = trainer.datamodule  # type: ignore[attr-defined]
        ids = [i for i, text in sorted(data.dev_set.texts.items()) if len(text.split()) == self.words]
        if not ids:
            raise ConfigError(f"watch.words={self.words}: no utterance of the development set has so many")
        batch = data.dev_set[[(ids[0], 1.0)]]
        out = module.model(module.normalizer(batch.frames, batch.lengths), batch.lengths, batch.characters[:, :-1])
        if out.weights is None:
            return
        folder = self.output / "attention"
        folder.mkdir(exist_ok=True)
        np.savez_compressed(
            folder / f"step-{trainer.global_step:05d}.npz",
            weights=out.weights[0].numpy().astype(np.float16),
            log_mel=batch.frames[0].numpy().astype(np.float16),
            labels=module.tokenizer.pieces(batch.characters[0, 1:].tolist()),
            step=trainer.global_step,
            id=ids[0],
        )


def _write_result(settings: Mapping[str, Any], output: Path, watch: Watch) -> None:
    """Decode the test set by the decoder alone, without a beam or guards, with the weights of the last step."""
    last = max((output / "checkpoints").glob("epoch-*.ckpt"))
    folder = run.export([last], output, output / "last")
    score = evaluate.decode(
        {
            "model_dir": str(folder),
            "corpus": {"manifests": settings["corpus"]["manifests"], "decode": [settings["corpus"]["test"]]},
            "decoding": to_mapping(PRESETS["greedy"]),
            "device": "cpu",
            "threads": settings["trainer"]["threads"],
            "batch_seconds": 120,
            "output": str(output / "test"),
        }
    )
    module = LasModule.from_settings(settings)
    result = {
        "decoder": settings["decoder_name"],
        "ctc_weight": settings["training"]["ctc_weight"],
        "seed": settings["training"]["seed"],
        "parameters": module.model.num_parameters,
        "steps": watch.times["steps"],
        "step_ms": round(1000 * watch.times["step_seconds"] / max(1, watch.times["steps"]), 1),
        "processor_seconds": round(watch.times["seconds"], 1),
        "wer": round(score.wer, 4),
        "cer": round(score.cer, 4),
        "characters_by_length": characters_by_length(score),
    }
    with write_atomically(output / "result.json") as file:
        json.dump(result, file, indent=2)


def characters_by_length(score: Score) -> dict[str, tuple[int, int]]:
    """Words in the reference -> wrong characters and characters, summed over its utterances."""
    counts: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for utterance in score.per_utterance:
        entry = counts[utterance.reference_words]
        entry[0] += utterance.character_errors
        entry[1] += len(utterance.reference)
    return {str(words): (errors, characters) for words, (errors, characters) in sorted(counts.items())}

"""Batches, and the stopwatch for one training step. Imports nothing but torch, so that it runs beside any peer.

`train_step.py` starts this file once for each system, precision and case:

    python recipes/benchmark/_step.py '{"system": "asr", "case": "tiny", "precision": "fp32"}'
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["CASES", "CLIP", "VOCABULARY", "Batch", "Case", "System", "make_batch", "measure"]

VOCABULARY = 32
N_MELS = 80
BOS, EOS, FIRST_CHARACTER = 1, 2, 4  # 0 is CTC's blank and padding; the last id stays free for ESPnet's sos/eos
LABEL_SMOOTHING = 0.1
CTC_WEIGHT = 0.3
DROPOUT = 0.2
CLIP = 5.0


@dataclass(frozen=True)
class Case:
    """A batch's shape; the lengths fall evenly from 1 to `shortest` times the longest."""

    batch: int
    frames: int
    characters: int
    shortest: float = 1.0

    def __str__(self) -> str:
        spread = "one length" if self.shortest == 1 else f"lengths {self.shortest:.0%} to 100%"
        return f"{self.batch} x {self.frames} frames x {self.characters} characters, {spread}"


CASES = {
    "a": Case(4, 800, 100),
    "b": Case(16, 1250, 180),
    "c": Case(16, 1250, 180, shortest=0.8),
    "tiny": Case(2, 80, 8, shortest=0.8),
}


@dataclass(frozen=True)
class Batch:
    frames: Tensor  # (B, T, n_mels), longest row first, padded with 0
    lengths: Tensor  # (B,)
    characters: Tensor  # (B, U + 2) with BOS and EOS, padded with 0
    character_lengths: Tensor  # (B,) without BOS and EOS

    def to(self, device: str) -> Batch:
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    @property
    def seconds(self) -> float:
        """Of speech, without padding, at 100 frames a second."""
        return int(self.lengths.sum()) / 100


def make_batch(case: Case, seed: int = 1) -> Batch:
    """The same synthetic frames and characters for every system."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.linspace(1.0, case.shortest, case.batch, dtype=torch.float64)
    lengths = (share * case.frames).round().long()
    character_lengths = (share * case.characters).round().long()
    frames = torch.randn(case.batch, case.frames, N_MELS, generator=generator)
    frames[torch.arange(case.frames) >= lengths[:, None]] = 0.0
    characters = torch.zeros(case.batch, case.characters + 2, dtype=torch.long)
    for row, count in zip(characters, character_lengths.tolist(), strict=True):
        text = torch.randint(FIRST_CHARACTER, VOCABULARY - 1, (count,), generator=generator)
        row[: count + 2] = torch.cat([torch.tensor([BOS]), text, torch.tensor([EOS])])
    return Batch(frames, lengths, characters, character_lengths)


class System(Protocol):
    """What a peer's module builds by `build(**options)`."""

    model: nn.Module
    version: str
    description: str

    def loss(self, batch: Batch) -> Tensor:
        """(1 - CTC_WEIGHT) attention + CTC_WEIGHT CTC, as the system computes them."""
        ...

    def optimizer(self) -> torch.optim.Optimizer: ...


def run_step(system: System, optimizer: torch.optim.Optimizer, batch: Batch, precision: str) -> Tensor:
    """Forward, loss, backward, clip, optimiser."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = system.loss(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(system.model.parameters(), CLIP)
    optimizer.step()
    return loss.detach()


def measure(
    system: System, batch: Batch, precision: str, steps: int = 5, warmup: int = 2, budget: float = 240.0
) -> dict[str, Any]:
    """Wall and processor seconds of a step: medians of `steps` after `warmup`, fewer of both once `budget` is spent."""
    cuda = batch.frames.is_cuda
    system.model.train()
    optimizer = system.optimizer()
    wall, processor, losses = list[float](), list[float](), list[float]()
    began = time.perf_counter()
    for index in range(warmup + steps):
        if index >= 2 and time.perf_counter() - began > budget:
            break
        if cuda:
            torch.cuda.synchronize()
        start, start_processor = time.perf_counter(), time.process_time()
        loss = run_step(system, optimizer, batch, precision)
        if cuda:
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
        losses.append(float(loss))
    if not all(abs(loss) < float("inf") for loss in losses):
        raise FloatingPointError(f"the loss is not finite: {losses}")
    warmed = min(warmup, len(wall) - 1)
    note = ""
    if len(wall) < warmup + steps:
        note = f"{len(wall) - warmed} steps after {warmed} of warm-up: budget of {budget:g} s spent"
    return {
        "seconds": statistics.median(wall[warmed:]),
        "processor_seconds": statistics.median(processor[warmed:]),
        "all_seconds": [round(s, 4) for s in wall[warmed:]],
        "steps": len(wall) - warmed,
        "speech_seconds": batch.seconds,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "note": note,
    }


def main(job: dict[str, Any]) -> dict[str, Any]:
    device, case = job.get("device", "cpu"), CASES[job["case"]]
    torch.set_num_threads(job.get("threads", 1))
    torch.manual_seed(1)
    name, *variant = job["system"].split("/")
    system: System = importlib.import_module(f"_peers.{name}_las").build(*variant)
    system.model.to(device)
    batch = make_batch(case).to(device)
    numbers = measure(
        system, batch, job["precision"], job.get("steps", 5), job.get("warmup", 2), job.get("budget", 240.0)
    )
    return {
        "system": job["system"],
        "version": system.version,
        "description": system.description,
        "case": job["case"],
        "shape": asdict(case),
        "precision": job["precision"],
        "parameters": sum(p.numel() for p in system.model.parameters()),
        **numbers,
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

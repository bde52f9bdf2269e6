"""Encoder states, and the stopwatch for one beam search over them. Imports nothing but torch, as `_step.py` does.

`decode.py` starts this file once for each system, precision and case:

    python recipes/benchmark/_decode.py '{"system": "asr", "batch": 2, "tokens": 5, "frames": 12}'
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from _step import CTC_WEIGHT
from torch import Tensor, nn

__all__ = ["Decode", "DecodingSystem", "Search", "make_states", "measure"]

D = 512  # of every system's encoder states
REDUCTION = 4  # feature frames, 100 a second, to an encoder state


@dataclass(frozen=True)
class Search:
    """What every system is asked to do."""

    beam: int = 8
    tokens: int = 150  # characters that every utterance gets: no EOS before them, and EOS after them
    frames: int = 312  # encoder states of every utterance
    ctc: bool = False

    @property
    def ctc_weight(self) -> float:
        return CTC_WEIGHT if self.ctc else 0.0

    @property
    def seconds(self) -> float:
        """Of speech that such an utterance would have."""
        return self.frames * REDUCTION / 100


Decode = Callable[[Tensor], list[list[int]]]  # encoder states (B, N, d) -> the characters of each utterance's best


class DecodingSystem(Protocol):
    """What a peer's module builds by `build(**options)`."""

    model: nn.Module
    encoder: nn.Module
    version: str

    def decoder(self, search: Search) -> Decode:
        """The system's own beam search."""
        ...

    def searcher(self, search: Search) -> str:
        """What it is called, in a few words."""
        ...


def make_states(batch: int, frames: int, seed: int = 1) -> Tensor:
    """The same random encoder states (B, N, d) for every system."""
    return torch.randn(batch, frames, D, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def measure(decode: Decode, h: Tensor, tokens: int, repeats: int = 5, budget: float = 240.0) -> dict[str, Any]:
    """Seconds of a search: medians of `repeats` after one warm-up; fewer, but one, once `budget` is spent.

    Raises:
        RuntimeError: an utterance got another number of characters than `tokens`.
    """
    wall, processor = list[float](), list[float]()
    began = time.perf_counter()
    for index in range(1 + repeats):
        if index >= 2 and time.perf_counter() - began > budget:
            break
        if h.is_cuda:
            torch.cuda.synchronize()
        start, start_processor = time.perf_counter(), time.process_time()
        found = decode(h)
        if h.is_cuda:
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
        emitted = [len(ids) for ids in found]
        if emitted != [tokens] * len(h):
            raise RuntimeError(f"asked for {tokens} characters of {len(h)} utterances, got {emitted}")
    note = ""
    if len(wall) < 1 + repeats:
        note = f"{len(wall) - 1} searches after the warm-up: budget of {budget:g} s spent"
    return {
        "emitted": emitted[0],
        "seconds": statistics.median(wall[1:]),
        "processor_seconds": statistics.median(processor[1:]),
        "all_seconds": [round(s, 4) for s in wall[1:]],
        "repeats": len(wall) - 1,
        "note": note,
    }


def main(job: dict[str, Any]) -> dict[str, Any]:
    device, precision, batch = job.get("device", "cpu"), job.get("precision", "fp32"), job["batch"]
    search = Search(**{k: job[k] for k in ("beam", "tokens", "frames", "ctc") if k in job})
    torch.set_num_threads(job.get("threads", 1))
    torch.manual_seed(1)
    name, *variant = job["system"].split("/")
    system: DecodingSystem = importlib.import_module(f"_peers.{name}_las").build(*variant)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    system.model.to(device, dtype).eval()
    h = make_states(batch, search.frames).to(device, dtype)
    numbers = measure(system.decoder(search), h, search.tokens, job.get("repeats", 5), job.get("budget", 240.0))
    parameters = sum(p.numel() for p in system.model.parameters())
    return {
        "system": job["system"],
        "version": system.version,
        "searcher": system.searcher(search),
        "precision": precision,
        "ctc": search.ctc,
        "batch": batch,
        "parameters": parameters,
        "decoding_parameters": parameters - sum(p.numel() for p in system.encoder.parameters()),
        **numbers,
        "ms_per_token": 1000 * numbers["seconds"] / (search.tokens * batch),
        "real_time_factor": numbers["seconds"] / (search.seconds * batch),
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

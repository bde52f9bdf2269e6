"""Where a step of this project goes, part by part, against the floor: its multiply-adds at the measured matrix rate."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import torch
from _peers.asr_las import AsrSystem
from _step import CASES, CLIP, make_batch, run_step
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, record_function

MARK = "part: "
OUTSIDE = "between the parts"


def part_of(name: str, module: nn.Module) -> str | None:
    """The row of the table that a module's time belongs to."""
    head, _, rest = name.partition(".")
    if head == "encoder" and rest.startswith("layers.") and rest.count(".") == 1:
        return f"encoder LSTM {int(rest.split('.')[1]) + 1}"
    if head == "speller" and rest.startswith("lstms.") and rest.count(".") == 1:
        return f"speller LSTM {int(rest.split('.')[1]) + 1}"
    if head == "speller" and rest.startswith("attentions.") and rest.count(".") == 1:
        return "attention"
    if "." not in rest and isinstance(module, nn.Linear | nn.Embedding):
        return "embedding, output and CTC head"
    if isinstance(module, nn.LayerNorm | nn.Dropout):
        return "layer norm and dropout"
    return None


def multiply_adds(part: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """Of the matrix products of one forward call, padding included."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    positions = first.shape[0] * first.shape[1]
    if part == "attention":
        h = inputs[1]
        return 2 * positions * h.shape[1] * h.shape[2]  # scores and contexts
    if isinstance(module, nn.Embedding | nn.LayerNorm | nn.Dropout):
        return 0
    return positions * sum(p.numel() for p in module.parameters() if p.ndim == 2)


def matrix_rate(precision: str, device: str) -> float:
    """Floating-point operations a second of a large matrix product: the best of several."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, inner, columns = (5000, 1024, 2048) if device == "cpu" else (16384, 4096, 4096)
    a, b = torch.randn(rows, inner, device=device).to(dtype), torch.randn(inner, columns, device=device).to(dtype)
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def profile(case: str, precision: str, device: str, console: Console) -> dict[str, Any]:
    """Profile one warmed-up step and print its table."""
    torch.manual_seed(1)
    system = AsrSystem()
    model = system.model.to(device)
    batch = make_batch(CASES[case]).to(device)
    model.train()
    optimizer = system.optimizer()
    work: dict[str, int] = defaultdict(int)
    for name, module in model.named_modules():
        if part := part_of(name, module):
            _mark(module, part, work)
    for _ in range(2):
        run_step(system, optimizer, batch, precision)
    work.clear()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profiler:
        optimizer.zero_grad(set_to_none=True)
        with record_function(MARK + "forward"), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = system.loss(batch)
        with record_function(MARK + "backward"):
            loss.backward()
        with record_function(MARK + "clip"):
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        with record_function(MARK + "optimiser"):
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
    forward, backward = _attribute(profiler.events(), device)  # type: ignore[arg-type]
    return _report(case, precision, forward, backward, work, matrix_rate(precision, device), console)


def _mark(module: nn.Module, part: str, work: dict[str, int]) -> None:
    """Record the module's forward calls under `part`, and count their multiply-adds."""
    open_ranges: list[ExitStack] = []

    def enter(*_: Any) -> None:
        stack = ExitStack()
        stack.enter_context(record_function(MARK + part))
        open_ranges.append(stack)

    def leave(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        open_ranges.pop().close()
        work[part] += multiply_adds(part, module, inputs, output)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def _attribute(events: list[Any], device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each part, forward and backward.

    A backward operator carries the sequence number of the forward operator that it belongs to, and that one lies
    within the range of a part.
    """

    def seconds(event: Any) -> float:
        return (event.cpu_time_total if device == "cpu" else event.device_time_total) / 1e6

    ranges = [e for e in events if e.name.startswith(MARK)]
    phases = ("forward", "backward", "clip", "optimiser")
    parts = [e for e in ranges if e.name[len(MARK) :] not in phases]
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    total: dict[str, float] = defaultdict(float)
    for e in ranges:
        name = e.name[len(MARK) :]
        (total if name in phases else forward)[name] += seconds(e)
    owner: dict[int, str] = {}
    backward_events = [e for e in events if e.scope == 1]  # BACKWARD_FUNCTION
    for e in events:
        if e.scope != 1 and e.sequence_nr >= 0 and not e.name.startswith(MARK):
            inside = [p for p in parts if p.time_range.start <= e.time_range.start < p.time_range.end]
            if inside:
                owner[e.sequence_nr] = inside[-1].name[len(MARK) :]
            elif "loss" in e.name or "log_softmax" in e.name:
                owner[e.sequence_nr] = "losses"
    for e in events:
        is_loss = e.name in ("aten::cross_entropy_loss", "aten::ctc_loss", "aten::log_softmax")
        if is_loss and not (e.cpu_parent and "loss" in e.cpu_parent.name):
            forward["losses"] += seconds(e)
    for e in backward_events:
        backward[owner.get(e.sequence_nr, OUTSIDE)] += seconds(e)
    backward[OUTSIDE] += total["backward"] - sum(backward.values())
    forward[OUTSIDE] = total["forward"] - sum(forward.values())
    forward["clip and optimiser"] = total["clip"] + total["optimiser"]
    return forward, backward


def _report(
    case: str,
    precision: str,
    forward: dict[str, float],
    backward: dict[str, float],
    work: dict[str, int],
    rate: float,
    console: Console,
) -> dict[str, Any]:
    total = sum(forward.values()) + sum(backward.values())
    names = sorted({*forward, *backward} - {OUTSIDE, "clip and optimiser"}, key=lambda n: (n not in work, n))
    table = Table(title=f"({case}) {precision}: {CASES[case]}", title_justify="left")
    for heading in ("part", "forward s", "backward s", "share", "G multiply-adds", "floor s", "x floor"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    rows = []
    for name in [*names, "clip and optimiser", OUTSIDE]:
        f, b = forward.get(name, 0.0), backward.get(name, 0.0)
        macs = 3 * work.get(name, 0)  # backward: the gradients of the inputs and of the weights
        floor = 2 * macs / rate
        rows.append({"part": name, "forward": f, "backward": b, "multiply_adds": macs, "floor": floor})
        times = f"{(f + b) / floor:.2f}" if floor else ""
        table.add_row(
            name, f"{f:.3f}", f"{b:.3f}", f"{(f + b) / total:.1%}", f"{macs / 1e9:.1f}", f"{floor:.3f}", times
        )
    floor = sum(r["floor"] for r in rows)
    table.add_section()
    sums = (sum(forward.values()), sum(backward.values()), sum(r["multiply_adds"] for r in rows) / 1e9)
    table.add_row(
        "step", f"{sums[0]:.3f}", f"{sums[1]:.3f}", "100%", f"{sums[2]:.1f}", f"{floor:.3f}", f"{total / floor:.2f}"
    )
    console.print(table)
    console.print(f"floor: the multiply-adds at {rate / 1e9:.0f} GFLOP/s, measured here on a large {precision} product")
    return {"case": case, "precision": precision, "rate": rate, "seconds": total, "floor": floor, "parts": rows}

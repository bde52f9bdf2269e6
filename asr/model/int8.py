"""Matrices in 8 bits a weight, for files; models compute with what these stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["are_int8", "for_file", "from_int8", "to_int8"]


def to_int8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) -> int8 (R, C) and fp16 (R, 1), whose product it nearly is. Rounded once more, nothing changes."""
    matrix = matrix.detach().float().cpu()
    scale = (matrix.abs().amax(1, keepdim=True) / 127).clamp_min(torch.finfo(torch.float16).tiny).half()
    return (matrix / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


def from_int8(rounded: Tensor, scale: Tensor) -> Tensor:
    """What `to_int8` made -> float32 (R, C)."""
    return rounded.float() * scale.float()


def are_int8(matrices: Iterable[Tensor]) -> bool:
    """Whether these matrices are such that `to_int8` loses nothing of them, as those that it once rounded are."""
    return all(torch.equal(from_int8(*to_int8(matrix)), matrix.detach().float().cpu()) for matrix in matrices)


def for_file(weights: Mapping[str, Tensor], prefix: str, int8: bool = True) -> dict[str, Tensor]:
    """Weights as files hold them, `prefix` before their names: fp16, or matrices as int8 with `scale.<name>` beside."""
    tensors = {}
    for name, value in weights.items():
        if int8 and value.dim() == 2:
            value, tensors[f"scale.{name}"] = to_int8(value)
        else:
            value = value.detach().half().cpu()
        tensors[prefix + name] = value.contiguous()
    return tensors

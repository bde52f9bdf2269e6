"""LSTMs on the CPU where PyTorch's own is slow: wide inputs under bf16, and single steps of a few rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asr.model.int8 import to_int8

__all__ = ["PackedCell", "PackedLinear", "cpu_autocast_dtype", "lstm", "lstm_by_steps", "quicker_in_fp32"]

WIDE = 512  # inputs from here on
FEW, FEW_WIDE = 5, 8  # rows up to which a training step with AMX is quicker in fp32, the latter with wide inputs


def cpu_autocast_dtype() -> torch.dtype | None:
    """The type that CPU autocast computes in, None where it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def quicker_in_fp32(x: Tensor) -> bool:
    """Whether oneDNN's LSTM layer over inputs (B, T, I) is to be trained in fp32 although CPU autocast says bf16.

    With AMX each time step forward and backward has a price that hardly depends on B: of 5 rows a layer of 320 inputs
    takes as long in bf16 as in fp32, of 2 rows twice as long (recipes/benchmark/README.md). Inference has none.
    """
    if x.is_cuda or not torch.is_grad_enabled() or cpu_autocast_dtype() != torch.bfloat16:
        return False
    return len(x) <= (FEW_WIDE if x.shape[-1] >= WIDE else FEW) and torch.cpu._is_amx_tile_supported()


def lstm(layer: nn.LSTM, x: Tensor, initial: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`layer(x, initial)` of a one-layer, one-direction, batch-first LSTM, by whichever way is quicker.

    oneDNN's bf16 LSTM takes four times its floor backward where the input is wide, since it adds up the gradient of
    the input's weights time step by time step; there `lstm_by_steps` is quicker (recipes/benchmark/README.md).
    """
    if x.is_cuda or cpu_autocast_dtype() != torch.bfloat16 or x.shape[-1] < WIDE or not torch.is_grad_enabled():
        return layer(x, initial)
    h, c = initial
    out, c_n = lstm_by_steps(x, h[0], c[0], *layer.all_weights[0])
    return out, (out[:, -1].unsqueeze(0), c_n.unsqueeze(0))


def lstm_by_steps(
    x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs (B, T, I), first states (B, d) -> outputs (B, T, d) and the last cell (B, d).

    All that does not depend on the step before is one large matrix product over the sequence, forward and backward;
    only h_{t-1} W_hh is left to the loop. Parameters and equations are nn.LSTM's. Under CPU autocast the products
    are bf16, the cell stays fp32.
    """
    dtype = cpu_autocast_dtype() or x.dtype
    with torch.autocast("cpu", enabled=False):
        return _Lstm.apply(
            x.to(dtype), h.to(dtype), c.float(), weight_ih.to(dtype), weight_hh.to(dtype), (bias_ih + bias_hh).to(dtype)
        )


def _packed_int8(weight: Tensor, scale: Tensor) -> Any:
    """Weights (O, I) that are whole numbers up to 127 times scale (O,), laid out for products."""
    zeros = torch.zeros(len(scale), dtype=torch.long)
    levels = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(levels, torch.zeros(len(scale)))


def _eight_bits_are_exact() -> bool:
    """Whether this processor multiplies 8-bit numbers without overflow on the way: AVX2 adds pairs up in 16 bits."""
    packed = _packed_int8(torch.full((8, 64), 127.0), torch.ones(8))
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(torch.ones(1, 64), 1 / 127, 128, packed)
    return bool((product - 127 * 64).abs().max() < 1)


class PackedLinear:
    """x W^T of a few rows x on the CPU, with weights laid out for it once (FBGEMM).

    Computes each row for itself: what it gives does not depend on the other rows. Weights are rounded to fp16, which
    loses nothing of a model folder's that has them so; or they stay in 8 bits, with a scale for each row of W, if they
    come so and the processor has VNNI. Then each row of x is rounded as well, to 8 bits of what is largest in it.

    Args:
        weight: (O, I).
        scale: (O, 1), if the weights are whole numbers up to 127 times this.
        bounded: whether x is within -1 .. 1; then 8 bits are of that, which saves looking for the largest.
    """

    exact: bool | None = None  # `_eight_bits_are_exact`, once it was tried

    def __init__(self, weight: Tensor, scale: Tensor | None = None, bounded: bool = False) -> None:
        if scale is not None and PackedLinear.exact is None:
            PackedLinear.exact = _eight_bits_are_exact()
        self.bounded, self.int8 = bounded, scale is not None and bool(PackedLinear.exact)
        if scale is not None and self.int8:
            self.weight = _packed_int8(weight, scale[:, 0])
        else:
            self.weight = torch.ops.quantized.linear_prepack_fp16(weight, torch.zeros(len(weight)))

    def __call__(self, x: Tensor) -> Tensor:
        """(R, I) -> (R, O)."""
        if not self.int8:
            return torch.ops.quantized.linear_dynamic_fp16(x, self.weight)
        linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        if self.bounded:
            return linear(x, 1 / 127, 128, self.weight)
        largest = x.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        return linear(x / largest, 1 / 127, 128, self.weight).mul_(largest)


class PackedCell:
    """One step of a trained one-layer LSTM on the CPU, its products by `PackedLinear`.

    Computes in fp32, each row for itself: what it gives does not depend on the other rows. With fp16 it has to read
    half as much: a product of 8 rows, a beam, took 0.3 (1536 inputs) to 0.85 (640) of fp32's time on an AVX2 CPU.

    Args:
        layer: the LSTM.
        inputs: (V, I), all inputs that there can be, if their products are to be computed once. Steps then take the
            numbers of inputs instead of inputs.
        int8: whether its matrices are such as `to_int8` made, and states h what it gave, or 0.
        skip: how many of the inputs are always 0, and not given.
    """

    def __init__(self, layer: nn.LSTM, inputs: Tensor | None = None, int8: bool = False, skip: int = 0) -> None:
        weight_ih, weight_hh, bias_ih, bias_hh = (p.detach().float().clone() for p in layer.all_weights[0])
        self.bias = bias_ih + bias_hh
        # tanh(x) = 2 sigmoid(2 x) - 1, and the sigmoid takes a third of tanh's time: one call for all four gates.
        for weight in (weight_ih, weight_hh, self.bias):
            weight[2 * layer.hidden_size : 3 * layer.hidden_size] *= 2
        into, across = (to_int8(weight)[1].float() if int8 else None for weight in (weight_ih, weight_hh))
        self.across = PackedLinear(weight_hh, across, bounded=True)
        self.products: Tensor | None = None  # (V, 4 d)
        if inputs is None:
            self.into = PackedLinear(weight_ih[:, skip:].contiguous(), into)
        else:
            self.products = torch.addmm(self.bias, inputs.detach().float(), weight_ih.t())

    @staticmethod
    def available() -> bool:
        """Whether this processor has FBGEMM: x86-64 with AVX2."""
        return "fbgemm" in torch.backends.quantized.supported_engines

    def __call__(self, x: Tensor, h: Tensor, c: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Inputs (B, I), or their numbers (B,), and states (B, d) -> the next states (B, d).

        With `rows` (B,), h has rows of its own, each for any number of inputs: input i follows h[rows[i]].
        """
        gates = self.across(h)
        if rows is not None:
            gates = gates.index_select(0, rows)
        if self.products is None:
            gates += self.into(x).add_(self.bias)
        else:
            gates += self.products.index_select(0, x)
        i, f, g, o = gates.sigmoid_().view(len(x), 4, -1).unbind(1)
        c = (f * c).addcmul_(i, g, value=2).sub_(i)
        return (2 * c).sigmoid_().mul_(o).mul_(2).sub_(o), c


class _Lstm(torch.autograd.Function):
    """Within, time comes first: (T, B, ...)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = x.transpose(0, 1).contiguous()
        steps, batch, _ = x.shape
        d = h.shape[1]
        fed = functional.linear(x, w_ih, bias)  # (T, B, 4 d)
        gates = fed.new_empty(steps, batch, 4, d, dtype=c.dtype)  # i, f, g, o after their functions
        cells = c.new_empty(steps + 1, batch, d)
        hidden = h.new_empty(steps + 1, batch, d)
        cells[0], hidden[0] = c, h
        across = w_hh.t().contiguous()
        for t in range(steps):
            now = gates[t]
            now.view(batch, 4 * d).copy_(torch.addmm(fed[t], hidden[t], across))
            now[:, :2].sigmoid_()
            now[:, 2].tanh_()
            now[:, 3].sigmoid_()
            i, f, g, o = now.unbind(1)
            torch.addcmul(i * g, f, cells[t], out=cells[t + 1])
            hidden[t + 1] = o * cells[t + 1].tanh()
        ctx.save_for_backward(x, w_ih, w_hh, gates, cells, hidden)
        return hidden[1:].transpose(0, 1), cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_cell: Tensor) -> tuple[Tensor, ...]:
        x, w_ih, w_hh, gates, cells, hidden = ctx.saved_tensors
        steps, batch, _, d = gates.shape
        i, f, g, o = gates.unbind(2)
        tanh = cells[1:].tanh()
        to_cell = o * (1 - tanh * tanh)  # what a change of h_t does to c_t
        # What a change of c_t (first three) or h_t (last) does to the gates before their functions.
        factors = torch.stack([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g), tanh * o * (1 - o)], dim=2)
        grad_out = grad_out.transpose(0, 1)
        grad_gates = hidden.new_empty(steps, batch, 4, d)
        dh, dc = torch.zeros_like(cells[0]), grad_cell.to(cells.dtype)
        for t in range(steps - 1, -1, -1):
            dh = dh + grad_out[t]
            dc = torch.addcmul(dc, dh, to_cell[t])
            grad_gates[t, :, :3] = dc[:, None] * factors[t, :, :3]
            grad_gates[t, :, 3] = dh * factors[t, :, 3]
            dc = dc * f[t]
            dh = (grad_gates[t].view(batch, 4 * d) @ w_hh).to(cells.dtype)
        flat = grad_gates.view(steps * batch, 4 * d)
        grad_x = (flat @ w_ih).view_as(x).transpose(0, 1)
        grad_ih = flat.t() @ x.view(steps * batch, -1)
        grad_hh = flat.t() @ hidden[:-1].view(steps * batch, d)
        return grad_x, dh.to(hidden.dtype), dc, grad_ih, grad_hh, flat.sum(0)

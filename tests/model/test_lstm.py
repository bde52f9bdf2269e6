import pytest
import torch
from torch import nn

from asr.model import lstm as module
from asr.model.int8 import are_int8, from_int8, to_int8
from asr.model.lstm import PackedCell, PackedLinear, lstm, lstm_by_steps, quicker_in_fp32

needs_fbgemm = pytest.mark.skipif(not PackedCell.available(), reason="needs FBGEMM (x86-64)")


def both(dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and all gradients of nn.LSTM and of ours, from states that are not 0, with a loss on the last cell."""
    torch.manual_seed(1)
    layer = nn.LSTM(7, 5, batch_first=True).to(dtype)
    inputs = [torch.randn(3, 6, 7), torch.randn(3, 5), torch.randn(3, 5)]
    results = []
    for ours in (False, True):
        x, h, c = (i.to(dtype).requires_grad_() for i in inputs)
        layer.zero_grad()
        if ours:
            out, cell = lstm_by_steps(x, h, c, *layer.all_weights[0])
        else:
            out, (_, cell) = layer(x, (h[None], c[None]))
            cell = cell[0]
        (out.square().sum() + cell.pow(3).sum()).backward()
        results.append([out, cell, x.grad, h.grad, c.grad, *(p.grad for p in layer.parameters())])
    return results[0], results[1]


def test_by_steps_equals_pytorchs_lstm_with_all_gradients():
    for theirs, ours in zip(*both(torch.float32), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_wide_inputs_under_bf16_autocast_go_by_steps_and_agree_with_fp32(monkeypatch):
    torch.manual_seed(1)
    layer = nn.LSTM(module.WIDE, 16, batch_first=True)
    x = torch.randn(2, 9, module.WIDE)
    zeros = torch.zeros(1, 2, 16)
    expected, (h_n, c_n) = layer(x, (zeros, zeros))
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    calls = []
    monkeypatch.setattr(module, "lstm_by_steps", lambda *a: calls.append(1) or lstm_by_steps(*a))
    with torch.autocast("cpu", torch.bfloat16):
        out, (h, c) = lstm(layer, x, (zeros, zeros))
    out.float().square().sum().backward()
    assert calls
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(h.float(), h_n, atol=0.02, rtol=0.02)
    torch.testing.assert_close(c, c_n, atol=0.02, rtol=0.02)
    for mine, theirs in zip([p.grad for p in layer.parameters()], gradients, strict=True):
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("size", [8, module.WIDE])
def test_fp32_is_pytorchs_own(size):
    layer = nn.LSTM(size, 4, batch_first=True)
    x, zeros = torch.randn(2, 5, size), torch.zeros(1, 2, 4)
    assert torch.equal(lstm(layer, x, (zeros, zeros))[0], layer(x, (zeros, zeros))[0])


def test_a_few_rows_are_trained_in_fp32_with_amx_alone(monkeypatch):
    def chosen(rows: int, size: int, amx: bool = True) -> bool:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        return quicker_in_fp32(torch.zeros(rows, 1, size))

    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(module.FEW, 8)
        assert not chosen(module.FEW + 1, 8)
        assert chosen(module.FEW_WIDE, module.WIDE)
        assert not chosen(module.FEW_WIDE + 1, module.WIDE)
        assert not chosen(1, 8, amx=False)
        with torch.no_grad():
            assert not chosen(1, 8)
    assert not chosen(1, 8)  # it is fp32 already


def test_packed_cell_equals_lstm_cell_with_fp16_weights():
    if not PackedCell.available():
        pytest.skip("needs FBGEMM (x86-64)")
    layer = nn.LSTM(12, 16)
    for p in layer.parameters():
        p.data = p.data.half().float()
    x, h, c = torch.randn(3, 12), torch.randn(3, 16), torch.randn(3, 16)
    expected = torch.lstm_cell(x, (h, c), *layer.all_weights[0])
    cell = PackedCell(layer)
    found = cell(x, h, c)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    by_number = PackedCell(layer, x)(torch.arange(3), h, c)
    shared = cell(x, torch.cat([h[1:], h[:1]]), c, torch.tensor([2, 0, 1]))
    for ours in (by_number, shared):
        torch.testing.assert_close(ours, found, atol=1e-6, rtol=1e-6)
    alone = cell(x[1:2], h[1:2], c[1:2])
    torch.testing.assert_close(alone[0], found[0][1:2], atol=1e-6, rtol=1e-6)


def test_matrices_that_were_rounded_once_are_known():
    matrix = torch.randn(6, 9)
    rounded = from_int8(*to_int8(matrix))
    assert are_int8([rounded, 2 * rounded])
    assert not are_int8([rounded, matrix])


@needs_fbgemm
@pytest.mark.parametrize("bounded", [False, True])
def test_products_of_8_bits(bounded):
    """As exact as 8 bits of x are, each row for itself, whatever its size; where the processor cannot, fp16."""
    torch.manual_seed(0)
    levels, scale = to_int8(torch.randn(40, 64))
    weight = from_int8(levels, scale)
    x = torch.rand(5, 64) * 2 - 1
    if not bounded:
        x = x * torch.tensor([1e-4, 1.0, 30.0, 0.0, 7.0])[:, None]
    linear = PackedLinear(weight, scale.float(), bounded)
    found, expected = linear(x), x @ weight.t()
    largest = 1.0 if bounded else x.abs().amax(1, keepdim=True)
    # Errors of up to half a step of 1 / 127 in each of the 64 inputs
    assert ((found - expected).abs() <= largest * weight.abs().sum(1) / 127 / 2 + 1e-3 * expected.abs()).all()
    assert ((found - expected).norm(dim=1) <= 0.02 * expected.norm(dim=1)).all()
    if linear.int8:
        assert not torch.allclose(found, expected, rtol=1e-4, atol=0)
    for i, row in enumerate(found):
        assert torch.equal(linear(x[i : i + 1])[0], row)


@needs_fbgemm
def test_a_processor_whose_8_bits_overflow_gets_fp16(monkeypatch):
    monkeypatch.setattr(PackedLinear, "exact", None)
    monkeypatch.setattr(module, "_eight_bits_are_exact", lambda: False)
    levels, scale = to_int8(torch.randn(8, 16))
    weight, x = from_int8(levels, scale), torch.randn(3, 16)
    linear = PackedLinear(weight, scale.float())
    assert not linear.int8
    torch.testing.assert_close(linear(x), x @ weight.half().float().t())


@needs_fbgemm
@pytest.mark.parametrize("skip", [0, 5])
def test_packed_cell_of_8_bits_equals_lstm_cell_nearly(skip):
    torch.manual_seed(0)
    layer = nn.LSTM(12, 16)
    for p in layer.parameters():
        p.data = from_int8(*to_int8(p.data)) if p.dim() == 2 else p.data.half().float()
    x, h, c = torch.randn(3, 12), torch.rand(3, 16) * 2 - 1, torch.randn(3, 16)
    x[:, :skip] = 0
    expected = torch.lstm_cell(x, (h, c), *layer.all_weights[0])
    for cell in (PackedCell(layer, int8=True, skip=skip), PackedCell(layer, skip=skip)):
        for ours, theirs in zip(cell(x[:, skip:], h, c), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0.01)

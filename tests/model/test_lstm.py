import pytest
import torch
from torch import nn

from asr.model import lstm as module
from asr.model.lstm import PackedCell, lstm, lstm_by_steps


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

import pytest
import torch

from asr.model.dropout import ByteDropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_drops_p_of_the_elements_and_keeps_the_mean(p):
    torch.manual_seed(1)
    x = torch.ones(1000, 1003)  # not a multiple of 8 elements
    y = ByteDropout(p)(x)
    rounded = round(256 * p) / 256
    assert (y == 0).float().mean().item() == pytest.approx(rounded, abs=0.002)
    assert y.max().item() == pytest.approx(1 / (1 - rounded))
    assert y.mean().item() == pytest.approx(1, abs=0.005)
    kept = (y != 0).float()
    assert kept.mean(0).std() < 0.02  # no column, no place in a group of 8, is favoured
    assert kept.mean(1).std() < 0.02


def test_gradient_goes_where_the_values_went_and_bf16_stays_bf16():
    x = torch.rand(40, 30).add(0.1).bfloat16().requires_grad_()
    y = ByteDropout(0.5)(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert torch.equal(x.grad == 0, y == 0)
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


def test_off_the_cpu_it_is_pytorchs_own():
    assert ByteDropout(0.5)(torch.ones(4, 3, device="meta")).device.type == "meta"


def test_off_in_evaluation_and_at_zero_on_at_one():
    x = torch.randn(5, 5)
    assert ByteDropout(0.5).eval()(x) is x
    assert ByteDropout(0.0)(x) is x
    assert (ByteDropout(1.0)(x) == 0).all()


def test_the_seed_decides():
    x = torch.ones(100)
    torch.manual_seed(3)
    first = ByteDropout(0.3)(x)
    torch.manual_seed(3)
    assert torch.equal(ByteDropout(0.3)(x), first)
    assert not torch.equal(ByteDropout(0.3)(x), first)

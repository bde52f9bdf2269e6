import math

import pytest
import torch

from asr.model.attention import ATTENTIONS, DotProductAttention

MASK = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])


@pytest.mark.parametrize("name", ATTENTIONS)
def test_weights_sum_to_one_and_padding_gets_exactly_zero(name):
    attention = ATTENTIONS[name](8)
    steps = 1 if attention.sequential else 3
    context, alpha = attention(torch.randn(2, steps, 8), torch.randn(2, 6, 8), MASK)
    assert context.shape == (2, steps, 8)
    torch.testing.assert_close(alpha.sum(-1), torch.ones(2, steps))
    assert (alpha[1, :, 4:] == 0).all()
    assert (alpha[0] > 0).all()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_stands_in_the_padding_does_not_matter(name):
    attention = ATTENTIONS[name](8)
    if attention.sequential:  # the convolution would only reach across the border from weights that are 0
        assert attention.convolution.bias is None
    s, h = torch.randn(2, 1, 8), torch.randn(2, 6, 8)
    changed = h.clone()
    changed[1, 4:] = 1e4
    torch.testing.assert_close(attention(s, changed, MASK)[0], attention(s, h, MASK)[0])


@pytest.mark.parametrize("name", [name for name, attention in ATTENTIONS.items() if not attention.sequential])
def test_contexts_alone_are_those_with_weights(name):
    attention = ATTENTIONS[name](8)
    s, h = 3 * torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    torch.testing.assert_close(attention.contexts(s, h, MASK, attention.keys(h)), attention(s, h, MASK)[0])


def test_dot_product_by_hand():
    # e = [s.h1, s.h2] = [1, 3]; alpha = softmax; a = alpha1 h1 + alpha2 h2
    s, h = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    context, alpha = DotProductAttention(2)(s, h, torch.ones(1, 2, dtype=torch.bool))
    first = math.exp(1) / (math.exp(1) + math.exp(3))
    torch.testing.assert_close(alpha, torch.tensor([[[first, 1 - first]]]))
    torch.testing.assert_close(context, torch.tensor([[[1.0, 1 - first]]]))


def test_scaled_is_the_dot_product_over_root_d():
    s, h, mask = torch.randn(1, 2, 16), torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(ATTENTIONS["scaled"](16)(s, h, mask)[1], ATTENTIONS["dot"](16)(s / 4, h, mask)[1])


def test_additive_by_definition():
    attention = ATTENTIONS["additive"](4)
    s, h, mask = torch.randn(1, 2, 4), torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)
    e = torch.stack(
        [
            torch.stack([attention.energy(torch.tanh(attention.query(s[0, t]) + attention.key(h[0, i])))[0]
                         for i in range(3)])
            for t in range(2)
        ]
    )  # fmt: skip
    torch.testing.assert_close(attention(s, h, mask)[1][0], e.softmax(-1))


def test_location_aware_looks_at_the_step_before():
    attention = ATTENTIONS["location"](4)
    s, h, mask = torch.randn(1, 1, 4), torch.randn(1, 9, 4), torch.ones(1, 9, dtype=torch.bool)
    early, late = torch.eye(9)[None, 0], torch.eye(9)[None, 8]
    assert not torch.allclose(attention(s, h, mask, previous=early)[1], attention(s, h, mask, previous=late)[1])
    with pytest.raises(ValueError, match="one step at a time"):
        attention(torch.randn(1, 2, 4), h, mask)

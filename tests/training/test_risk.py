"""Minimum word error rate training: the expectation, by hand, and which way its gradient goes."""

import torch

from asr.tokenizer import CharTokenizer
from asr.training.risk import expected_errors

EOS = CharTokenizer.eos_id
V = 7
WRITTEN = torch.tensor([[4, 5, EOS], [4, EOS, 0], [EOS, 0, 0], [5, EOS, 0], [6, EOS, 0], [6, EOS, 0]])
ERRORS = torch.tensor([[0.0, 1.0, 3.0], [2.0, 1.0, torch.nan]])


def test_expected_errors_by_hand():
    logits = torch.randn(6, 3, V)
    p = logits.softmax(-1)
    first = torch.stack([p[0, 0, 4] * p[0, 1, 5] * p[0, 2, EOS], p[1, 0, 4] * p[1, 1, EOS], p[2, 0, EOS]])
    second = torch.stack([p[3, 0, 5] * p[3, 1, EOS], p[4, 0, 6] * p[4, 1, EOS]])  # the third there is none
    expected = torch.stack([(first[1] + 3 * first[2]) / first.sum(), (2 * second[0] + second[1]) / second.sum()])
    torch.testing.assert_close(expected_errors(logits, WRITTEN, ERRORS), expected)
    changed = logits.clone()
    changed[2, 1:] = changed[5] = torch.randn(V)  # after EOS, and of what there is not
    torch.testing.assert_close(expected_errors(changed, WRITTEN, ERRORS), expected)


def test_learning_makes_the_hypotheses_with_fewer_errors_likelier():
    logits = torch.zeros(6, 3, V, requires_grad=True)
    before = expected_errors(logits, WRITTEN, ERRORS)
    before.sum().backward()
    after = expected_errors(logits - 0.1 * logits.grad, WRITTEN, ERRORS)
    assert (after < before).all()
    assert logits.grad[0, 0, 4] < 0 < logits.grad[2, 0, EOS]  # the best, and the worst of the first
    assert logits.grad[4, 0, 6] < 0 < logits.grad[3, 0, 5]
    assert not logits.grad[5].any()
    alone = torch.zeros(1, 2, V, requires_grad=True)  # with one hypothesis there is nothing to choose
    expected_errors(alone, torch.tensor([[4, EOS]]), torch.tensor([[2.0]])).sum().backward()
    assert not alone.grad.any()

"""Optimal completion distillation: what is best to write next, against a search through all that could follow."""

import functools
import itertools
import math

import pytest
import torch

from asr.tokenizer import CharTokenizer
from asr.training.completion import completion_loss, optimal_completions

BOS, EOS = CharTokenizer.bos_id, CharTokenizer.eos_id
V = 7  # two characters: 4 and 5


@functools.cache
def edits(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(edits(a[1:], b[1:]) + (a[0] != b[0]), edits(a[1:], b) + 1, edits(a, b[1:]) + 1)


def best_by_trying(beginning, said):
    """Of every ending up to a length, those with the fewest edits begin with one of these characters."""
    endings = [e for n in range(len(said) + 1) for e in itertools.product((4, 5), repeat=n)]
    cost = {e: edits(beginning + e, said) for e in endings}
    return {e[0] if e else EOS for e in endings if cost[e] == min(cost.values())}


def table(sequences, ends):
    """BOS, characters and, with ends, EOS; padded."""
    rows = [[BOS, *ids, *([EOS] if ends else [])] for ids in sequences]
    wide = max(map(len, rows))
    return torch.tensor([row + [0] * (wide - len(row)) for row in rows])


def test_best_characters_are_those_of_the_endings_with_the_fewest_edits():
    words = [w for n in range(4) for w in itertools.product((4, 5), repeat=n)]
    pairs = list(itertools.product(words, words))  # written, said
    inputs = table([written for written, _ in pairs], ends=False)
    characters = table([said for _, said in pairs], ends=True)
    lengths = torch.tensor([len(said) for _, said in pairs])
    best = optimal_completions(inputs, characters, lengths, V)
    for i, (written, said) in enumerate(pairs):
        for t in range(inputs.shape[1]):
            found = set(best[i, t].nonzero().flatten().tolist())
            assert found == (best_by_trying(written[:t], said) if t <= len(written) else set()), (written[:t], said)


def test_after_what_was_said_comes_what_was_said_next():
    said = [(4, 4, 5, 4), (5,)]
    best = optimal_completions(table(said, ends=False), table(said, ends=True), torch.tensor([4, 1]), V)
    assert [row.nonzero().tolist() for row in best] == [
        [[0, 4], [1, 4], [2, 5], [3, 4], [4, EOS]],
        [[0, 5], [1, EOS]],
    ]


def test_best_characters_share_the_probability_and_padding_does_not_count():
    logits = torch.randn(1, 3, V)
    best = torch.zeros(1, 3, V, dtype=torch.bool)
    best[0, 0, 4] = best[0, 1, 4] = best[0, 1, EOS] = True
    log_p = logits.log_softmax(-1)[0]
    plain = -(log_p[0, 4] + (log_p[1, 4] + log_p[1, EOS]) / 2) / 2
    assert completion_loss(logits, best).item() == pytest.approx(plain.item(), abs=1e-6)
    smooth = 0.9 * plain - 0.1 * log_p[:2].mean()
    assert completion_loss(logits, best, 0.1).item() == pytest.approx(smooth.item(), abs=1e-6)
    assert completion_loss(torch.zeros(1, 2, V), best[:, :2]).item() == pytest.approx(math.log(V))

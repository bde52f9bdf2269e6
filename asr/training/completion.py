"""Optimal completion distillation (Sabour, Chan and Norouzi 2019): what to write next after a beginning with mistakes.

A speller that only ever goes on from what was said does not learn to go on from what it wrote itself. Here it does, and
its target after each character is any that can still end in the fewest edits: where something was left out, the
character that was left out need not come, for it would be as wrong as what follows is late.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from asr.tokenizer import CharTokenizer

__all__ = ["completion_loss", "optimal_completions"]


def optimal_completions(inputs: Tensor, characters: Tensor, character_lengths: Tensor, vocabulary: int) -> Tensor:
    """Which characters, after each beginning, can still end in the fewest edits from what was said.

    After a beginning y those are c_{j+1}, or EOS for j = U, of every j at which the Levenshtein distance of y from
    c_1 .. c_j is the smallest.

    Args:
        inputs: (B, T) BOS and what was written, padded with 0.
        characters: (B, U + 2) what was said, with BOS and EOS, padded with 0.
        character_lengths: (B,) of it, without BOS and EOS.
        vocabulary: V.

    Returns:
        (B, T, V), True for a best character after inputs[:, : t + 1]; False everywhere where that ends in padding.
    """
    said = characters[:, 1:]  # (B, U + 1), EOS included
    places = torch.arange(said.shape[1], device=said.device)
    beyond = places > character_lengths[:, None]
    never = said.shape[1] + inputs.shape[1]
    distance = places.expand_as(said).masked_fill(beyond, never)  # of nothing written from the first j characters
    best = torch.zeros(*inputs.shape, vocabulary, dtype=torch.bool, device=said.device)
    for t in range(inputs.shape[1]):
        written = inputs[:, t, None]
        if t:
            wrong = (said[:, :-1] != written).to(distance.dtype)
            changed = torch.cat(
                [distance[:, :1] + 1, torch.minimum(distance[:, 1:] + 1, distance[:, :-1] + wrong)], dim=1
            )
            # d_j = min over k <= j of changed_k + (j - k): from k on, characters are left out.
            distance = (changed - places).cummin(1).values + places
            distance = distance.masked_fill(beyond, never)
        closest = distance == distance.min(1, keepdim=True).values
        # Padding shares the id 0 with nothing that is said; EOS stands at j = U.
        row = torch.zeros(len(said), vocabulary, dtype=torch.int64, device=said.device)
        row.scatter_add_(1, said, (closest & ~beyond).to(row.dtype))
        best[:, t] = (row > 0) & (written != CharTokenizer.pad_id)
    return best


def completion_loss(logits: Tensor, best: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, in nats a character, from targets that share the probability equally.

    Args:
        logits: (B, T, V).
        best: (B, T, V) as of `optimal_completions`.
        label_smoothing: share of the probability that all V characters have alike.
    """
    used = best.any(-1)
    shares = best[used] / best[used].sum(-1, keepdim=True)
    return functional.cross_entropy(logits[used].float(), shares, label_smoothing=label_smoothing)

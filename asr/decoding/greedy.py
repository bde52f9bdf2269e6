"""The plain greedy loops: what a beam of 1 must equal, and quick enough for validation during training."""

from __future__ import annotations

import torch
from torch import Tensor

from asr.model.encoder import length_mask
from asr.model.speller import Speller
from asr.tokenizer import CharTokenizer

__all__ = ["ctc_greedy", "speller_greedy"]


@torch.no_grad()
def speller_greedy(speller: Speller, h: Tensor, lengths: Tensor) -> tuple[list[list[int]], Tensor]:
    """Encoder states (B, N, d), lengths (B,) -> the most likely next character until EOS, no look-ahead.

    Returns ids of each utterance without BOS and EOS (at most one a encoder state), and the attention weights
    (B, U, N) of the steps taken.
    """
    t = CharTokenizer
    memory = speller.memory(h, lengths)
    state = speller.start(memory)
    characters = torch.full((h.shape[0],), t.bos_id, device=h.device)
    finished = torch.zeros(h.shape[0], dtype=torch.bool, device=h.device)
    steps, weights = [], []
    for step in range(h.shape[1]):
        logits, state = speller.step(characters, memory, state)
        logits[:, [t.blank_id, t.bos_id, t.unk_id]] = -torch.inf
        characters = logits.argmax(-1)
        finished |= (characters == t.eos_id) | (step >= lengths)
        characters = characters.masked_fill(finished, t.eos_id)
        steps.append(characters)
        weights.append(state.weights[:, -1])
        if finished.all():
            break
    ids = torch.stack(steps, 1).tolist()
    ends = [row.index(t.eos_id) if t.eos_id in row else len(row) for row in ids]
    return [row[:end] for row, end in zip(ids, ends, strict=True)], torch.stack(weights, 1)


@torch.no_grad()
def ctc_greedy(ctc_logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """CTC logits (B, N, V) -> ids of the best path: repeats merged, blanks removed (Graves et al. 2006)."""
    blank = CharTokenizer.blank_id
    best = ctc_logits.argmax(-1).masked_fill(~length_mask(lengths, ctc_logits.shape[1]), blank)
    merged = torch.cat([torch.ones_like(best[:, :1], dtype=torch.bool), best[:, 1:] != best[:, :-1]], 1)
    keep = merged & (best != blank)
    return [row[k].tolist() for row, k in zip(best, keep, strict=True)]

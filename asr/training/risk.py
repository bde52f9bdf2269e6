"""Minimum word error rate training (Prabhavalkar et al. 2018): fewer errors to be expected of what the search finds.

From their "Minimum word error rate training for attention-based sequence-to-sequence models": cross-entropy makes each
character of the reference likely, whatever else the search may prefer. Here the speller learns from the N best
hypotheses of an utterance: those with fewer wrong words are to be likelier than those with more.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from asr.tokenizer import CharTokenizer

__all__ = ["expected_errors"]


def expected_errors(logits: Tensor, written: Tensor, errors: Tensor) -> Tensor:
    """Errors of each utterance to be expected if one of its N hypotheses is written, by the speller's odds.

    Args:
        logits: (B N, T, V) after BOS and each character; the hypotheses of an utterance follow one another.
        written: (B N, T) characters and EOS, padded with 0.
        errors: (B, N) of each hypothesis; NaN where an utterance has fewer.

    Returns:
        (B,), with a gradient for the logits.
    """
    log_p = -functional.cross_entropy(
        logits.float().flatten(0, 1), written.flatten(), ignore_index=CharTokenizer.pad_id, reduction="none"
    )
    missing = errors.isnan()
    odds = log_p.view_as(written).sum(-1).view_as(errors).masked_fill(missing, -torch.inf).softmax(-1)
    return (odds * errors.masked_fill(missing, 0.0)).sum(-1)

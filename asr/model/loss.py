"""What the speller and the CTC head learn from, in nats a character."""

from torch import Tensor
from torch.nn import functional

from asr.tokenizer import CharTokenizer

__all__ = ["ctc_loss", "joint_loss", "spelling_loss"]


def joint_loss(
    logits: Tensor,
    ctc_logits: Tensor,
    lengths: Tensor,
    characters: Tensor,
    character_lengths: Tensor,
    label_smoothing: float = 0.0,
    zero_infinity: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention and CTC losses, each in nats a character.

    Args:
        logits: (B, U + 1, V) after BOS and each character.
        ctc_logits: (B, N, V).
        lengths: (B,) encoder states.
        characters: (B, U + 2) with BOS and EOS, padded with 0.
        character_lengths: (B,) without BOS and EOS.
        zero_infinity: whether a transcript too long for its audio counts 0 in CTC's.
    """
    attention = spelling_loss(logits, characters, label_smoothing)
    return attention, ctc_loss(ctc_logits, lengths, characters, character_lengths, zero_infinity)


def spelling_loss(logits: Tensor, characters: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The speller's part of `joint_loss`: cross-entropy, in nats a character."""
    return functional.cross_entropy(
        logits.float().flatten(0, 1),
        characters[:, 1:].flatten(),
        ignore_index=CharTokenizer.pad_id,
        label_smoothing=label_smoothing,
    )


def ctc_loss(
    ctc_logits: Tensor, lengths: Tensor, characters: Tensor, character_lengths: Tensor, zero_infinity: bool = False
) -> Tensor:
    """CTC's part of `joint_loss` (Graves et al. 2006). With `zero_infinity` what cannot be said counts 0."""
    total = functional.ctc_loss(
        ctc_logits.float().log_softmax(-1).transpose(0, 1),  # (N, B, V)
        characters[:, 1:-1],
        lengths,
        character_lengths,
        blank=CharTokenizer.blank_id,
        reduction="sum",
        zero_infinity=zero_infinity,
    )
    return total / character_lengths.sum()

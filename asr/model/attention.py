"""Attend: from a decoder state s_t and the encoder states h_1 .. h_N to a context a_t.

    scores   e^t = [s_t . h_1, ..., s_t . h_N]   in R^N
    weights  alpha^t = softmax(e^t)              sums to 1; padding gets exactly 0
    context  a_t = sum_i alpha_i^t h_i           in R^d

The variants differ in `scores` alone.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = [
    "ATTENTIONS",
    "AdditiveAttention",
    "DotProductAttention",
    "GeneralAttention",
    "LocationAwareAttention",
    "ScaledDotProductAttention",
]


class DotProductAttention(nn.Module):
    """e_i = s . h_i (Luong et al. 2015, "dot"). No parameters."""

    sequential = False  # whether the scores need the weights of the step before

    def __init__(self, d: int) -> None:
        super().__init__()
        self.scale = 1.0

    def keys(self, h: Tensor) -> Tensor:
        """What of h (B, N, d) the scores need and no step changes; computed once an utterance."""
        return h

    def scores(self, s: Tensor, keys: Tensor, previous: Tensor | None) -> Tensor:
        """States (B, U, d), keys (B, N, .) -> scores (B, U, N)."""
        return s @ keys.transpose(1, 2)

    def forward(
        self, s: Tensor, h: Tensor, mask: Tensor, keys: Tensor | None = None, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States s (B, U, d), encoder states h (B, N, d), mask (B, N) -> contexts (B, U, d), weights (B, U, N).

        `mask` is True on real encoder states; every row needs at least one. `previous` are the weights of the
        step before, (B, N), for attentions that look at them.
        """
        e = self.scores(s, self.keys(h) if keys is None else keys, previous).float()
        alpha = e.masked_fill_(~mask[:, None, :], -math.inf).softmax(dim=-1)
        return alpha.to(h.dtype) @ h, alpha

    def contexts(self, s: Tensor, h: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        """The contexts alone, which takes a fifth less time on CPU: scores and weights are never written down."""
        s, h, keys = s[:, None], h[:, None], keys[:, None]
        return scaled_dot_product_attention(s, keys, h, mask[:, None, None], scale=self.scale)[:, 0]


class ScaledDotProductAttention(DotProductAttention):
    """e_i = s . h_i / sqrt(d) (Vaswani et al. 2017)."""

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.scale = 1 / math.sqrt(d)

    def scores(self, s: Tensor, keys: Tensor, previous: Tensor | None) -> Tensor:
        return super().scores(self.scale * s, keys, previous)


class GeneralAttention(DotProductAttention):
    """e_i = s . W h_i (Luong et al. 2015, "general")."""

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.key = nn.Linear(d, d, bias=False)

    def keys(self, h: Tensor) -> Tensor:
        return self.key(h)


class AdditiveAttention(DotProductAttention):
    """e_i = v . tanh(W s + V h_i + b) (Bahdanau et al. 2015)."""

    def __init__(self, d: int) -> None:
        super().__init__(d)
        self.query = nn.Linear(d, d, bias=False)
        self.key = nn.Linear(d, d)
        self.energy = nn.Linear(d, 1, bias=False)

    def keys(self, h: Tensor) -> Tensor:
        return self.key(h)

    def scores(self, s: Tensor, keys: Tensor, previous: Tensor | None) -> Tensor:
        return self.energy(torch.tanh(self.query(s)[:, :, None] + keys[:, None])).squeeze(-1)

    def contexts(self, s: Tensor, h: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
        return self(s, h, mask, keys)[0]


class LocationAwareAttention(AdditiveAttention):
    """e_i = v . tanh(W s + V h_i + U f_i + b), f = F * alpha^{t-1} (Chorowski et al. 2015).

    It sees where it attended one step ago, so training needs a loop over the characters.
    """

    sequential = True

    def __init__(self, d: int, channels: int = 10, width: int = 31) -> None:
        super().__init__(d)
        self.convolution = nn.Conv1d(1, channels, width, padding=width // 2, bias=False)
        self.location = nn.Linear(channels, d, bias=False)

    def scores(self, s: Tensor, keys: Tensor, previous: Tensor | None) -> Tensor:
        if s.shape[1] != 1:
            raise ValueError("location-aware attention takes one step at a time")
        x = self.query(s) + keys  # (B, N, d)
        if previous is not None:
            f = self.convolution(previous[:, None].to(keys.dtype)).transpose(1, 2)  # (B, N, channels)
            x = x + self.location(f)
        return self.energy(torch.tanh(x)).transpose(1, 2)


ATTENTIONS: dict[str, type[DotProductAttention]] = {
    "dot": DotProductAttention,
    "scaled": ScaledDotProductAttention,
    "general": GeneralAttention,
    "additive": AdditiveAttention,
    "location": LocationAwareAttention,
}

"""Listen: frames -> h_1 .. h_N by a pyramid of bidirectional LSTMs (Chan et al. 2016, section 3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

__all__ = ["BiLSTM", "EncoderConfig", "PyramidalEncoder", "join_pairs", "length_mask", "reverse_rows"]


@dataclass(frozen=True)
class EncoderConfig:
    n_mels: int = 80
    d: int = 512  # size of h; each direction has d / 2
    layers: int = 4
    join_before: tuple[int, ...] = (0, 1)  # pairs of frames are joined before these layers; reduction 2 ** len
    dropout: float = 0.2  # on the output of every layer
    layer_norm: bool = True  # after every layer; without it learning rates above 5e-4 diverge now and then

    @property
    def reduction(self) -> int:
        return 2 ** len(self.join_before)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Lengths (B,) -> (B, size), True on real positions, False on padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def reverse_rows(x: Tensor, lengths: Tensor) -> Tensor:
    """Reverse each row of (B, T, d) within its own length; padding stays where it is. Its own inverse."""
    time = torch.arange(x.shape[1], device=x.device)
    reversed_time = lengths[:, None] - 1 - time  # (B, T), negative on padding
    index = torch.where(reversed_time >= 0, reversed_time, time)
    return x.gather(1, index[..., None].expand_as(x))


def join_pairs(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Join neighbouring frames: (B, T, d) -> (B, T // 2, 2 d), lengths -> lengths // 2; an odd last frame goes."""
    batch, time, d = x.shape
    return x[:, : time // 2 * 2].reshape(batch, time // 2, 2 * d), lengths // 2


class BiLSTM(nn.Module):
    """One bidirectional LSTM layer over padded rows that never sees their padding.

    On CUDA the rows are packed and cuDNN does the rest. On CPU packing makes the backward pass quadratic in the
    length, so the two directions run as one-direction LSTMs on the padded tensor, the backward one on each row
    reversed within its own length: the same numbers, with the same parameters.
    """

    def __init__(self, input_size: int, d: int) -> None:
        super().__init__()
        if d % 2:
            raise ValueError(f"d must be even: each direction has d / 2 units, got {d}")
        self.lstm = nn.LSTM(input_size, d // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Inputs (B, T, input_size), lengths (B,) -> (B, T, d), exactly 0 on padding."""
        if x.is_cuda:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        forward = self._direction(x, "")
        backward = reverse_rows(self._direction(reverse_rows(x, lengths), "_reverse"), lengths)
        h = torch.cat([forward, backward], dim=-1)
        return h.masked_fill(~length_mask(lengths, x.shape[1])[..., None], 0.0)

    def _direction(self, x: Tensor, suffix: str) -> Tensor:
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [getattr(self.lstm, name + suffix) for name in names]
        zeros = x.new_zeros(1, x.shape[0], self.lstm.hidden_size)
        return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, self.training, False, True)[0]


class PyramidalEncoder(nn.Module):
    """A stack of BiLSTMs with neighbouring frames joined on the way up, so that N = T // reduction."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if any(not 0 <= layer < config.layers for layer in config.join_before):
            raise ValueError(f"join_before names layers 0..{config.layers - 1}, got {config.join_before}")
        self.config = config
        sizes = [config.n_mels] + [config.d] * (config.layers - 1)
        self.layers = nn.ModuleList(
            BiLSTM(size * 2 ** config.join_before.count(i), config.d) for i, size in enumerate(sizes)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.d) if config.layer_norm else nn.Identity() for _ in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, n_mels), lengths (B,) -> h (B, N, d) and lengths (B,) with N = T // reduction.

        Positions past a row's length are padding: what stands there has no influence on real positions.
        """
        x = frames
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            for _ in range(self.config.join_before.count(i)):
                x, lengths = join_pairs(x, lengths)
            x = self.dropout(norm(layer(x, lengths)))
        return x, lengths

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // self.config.reduction

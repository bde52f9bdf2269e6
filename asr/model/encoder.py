"""Listen: frames -> h_1 .. h_N by a pyramid of bidirectional LSTMs (Chan et al. 2016, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.model.dropout import ByteDropout
from asr.model.lstm import quicker_in_fp32

__all__ = ["Adaptation", "BiLSTM", "EncoderConfig", "PyramidalEncoder", "join_pairs", "length_mask"]

# What a voice's frames, and then each layer's output, are scaled (1 + first) and shifted by: (1, 1, size) each.
Adaptation = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EncoderConfig:
    n_mels: int = 80
    d: int = 512  # size of h; each direction has d / 2
    layers: int = 4
    join_before: tuple[int, ...] = (0, 1)  # pairs of frames are joined before these layers; reduction 2 ** len
    dropout: float = 0.2  # on the output of every layer
    layer_norm: bool = True  # after every layer; without it learning rates above 5e-4 diverge now and then
    residual: int = 0  # so many layers at the top add to what they read; they begin as if they were not there

    @property
    def reduction(self) -> int:
        return 2 ** len(self.join_before)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Lengths (B,) -> (B, size), True on real positions, False on padding."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def join_pairs(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Join neighbouring frames: (B, T, d) -> (B, T // 2, 2 d), lengths -> lengths // 2; an odd last frame goes."""
    batch, time, d = x.shape
    return x[:, : time // 2 * 2].reshape(batch, time // 2, 2 * d), lengths // 2


def adapted(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Values (B, T, size), scaled and shifted by a pair of an Adaptation."""
    scale, shift = pair
    return x * (1 + scale) + shift


FLAG_COLUMNS = 8  # one would do; rows of a multiple of 8 numbers, and of no power of 2, multiply fastest
CLOSED = -1e4  # an input gate's sum before the sigmoid, which then is exactly 0 in fp32 and in bf16
STACKED_STRENGTH = 0.25  # of a stacked layer: so much costs little at first (recipes/librispeech/stages.md)


class BiLSTM(nn.Module):
    """One bidirectional LSTM layer over padded rows that never sees their padding.

    On CUDA the rows are packed and cuDNN does the rest. On CPU packing makes the backward pass quadratic in the
    length, so the padded tensor goes through the LSTM as it is, with a column that flags padding: to the backward
    direction, which comes from there, the flag's weight closes the input gate, and cell and output stay exactly 0
    until the row's last real position. The same numbers, with the same parameters.
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
        lstm, units = self.lstm, self.lstm.hidden_size
        padding = ~length_mask(lengths, x.shape[1])[..., None]  # (B, T, 1)
        flags = functional.pad(padding.to(x.dtype), (0, FLAG_COLUMNS - 1))
        forward, backward = lstm.all_weights  # each: of the input, across steps, and their biases
        ignored = forward[0].new_zeros(4 * units, FLAG_COLUMNS)
        closing = ignored.clone()
        closing[:units, 0] = CLOSED  # the input gate's rows come first
        weights = [
            torch.cat([forward[0], ignored], dim=1),
            *forward[1:],
            torch.cat([backward[0], closing], dim=1),
            *backward[1:],
        ]
        x = torch.cat([x, flags], -1)
        zeros = x.new_zeros(2, x.shape[0], units)
        if quicker_in_fp32(x):
            with torch.autocast("cpu", enabled=False):
                h = torch.lstm(x.float(), (zeros.float(),) * 2, weights, True, 1, 0.0, self.training, True, True)[0]
        else:
            h = torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, self.training, True, True)[0]
        return h.masked_fill(padding, 0.0)


class PyramidalEncoder(nn.Module):
    """A stack of BiLSTMs with neighbouring frames joined on the way up, so that N = T // reduction.

    A residual layer's output is x + norm(BiLSTM(x)) (He et al. 2016), and its norm's scale begins at 0 (Goyal et al.
    2017), so that a trained encoder can be given more layers and at first computes what it did; `stack` has them begin
    as copies instead.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        if any(not 0 <= layer < config.layers for layer in config.join_before):
            raise ValueError(f"join_before names layers 0..{config.layers - 1}, got {config.join_before}")
        self.plain = plain = config.layers - config.residual  # layers that are not residual
        if config.residual < 0:
            raise ValueError(f"residual must not be negative, got {config.residual}")
        if config.residual and not (plain > max(config.join_before, default=0) and config.layer_norm):
            raise ValueError(
                f"residual={config.residual} of {config.layers} layers: the first and those in join_before cannot be "
                "residual, and it needs layer_norm"
            )
        self.config = config
        sizes = [config.n_mels] + [config.d] * (config.layers - 1)
        self.layers = nn.ModuleList(
            BiLSTM(size * 2 ** config.join_before.count(i), config.d) for i, size in enumerate(sizes)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.d) if config.layer_norm else nn.Identity() for _ in range(config.layers)
        )
        for norm in self.norms[plain:]:
            nn.init.zeros_(norm.weight)  # type: ignore[arg-type]
        self.dropout = ByteDropout(config.dropout)

    def forward(
        self,
        frames: Tensor,
        lengths: Tensor,
        adaptation: Adaptation | None = None,
        taps: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Frames (B, T, n_mels), lengths (B,) -> h (B, N, d) and lengths (B,) with N = T // reduction.

        Positions past a row's length are padding: what stands there has no influence on real positions.
        `adaptation` has a pair for the frames and one for each layer (`asr.decoding.adaptation`). To `taps` is added
        what each layer's norm makes, (B, T // reduction so far, d).
        """
        x = adapted(frames, adaptation[0]) if adaptation else frames
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            for _ in range(self.config.join_before.count(i)):
                x, lengths = join_pairs(x, lengths)
            h = norm(layer(x, lengths))
            if taps is not None:
                taps.append(h)
            h = self.dropout(h)
            if adaptation:
                h = adapted(h, adaptation[i + 1])
            x = x + h if i >= self.plain else h
        return x, lengths

    @torch.no_grad()
    def stack(self, below: EncoderConfig) -> None:
        """Make the layers above those of `below` faint copies of its residual layers, in turn; with none, leave them.

        After Gong et al. 2019, "Efficient training of BERT by progressively stacking". What a copy adds to its input
        is STACKED_STRENGTH times as large as what its original adds: at full strength h would be another.
        """
        for i in range(below.layers, self.config.layers if below.residual else 0):
            original = below.layers - below.residual + (i - below.layers) % below.residual
            self.layers[i].load_state_dict(self.layers[original].state_dict())
            for mine, theirs in zip(self.norms[i].parameters(), self.norms[original].parameters(), strict=True):
                mine.copy_(STACKED_STRENGTH * theirs)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return lengths // self.config.reduction

"""Samples -> log-mel frames -> normalised frames -> (in training) masked frames."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["FrontendConfig", "LogMel", "Normalizer", "SpecAugment", "SpecAugmentConfig"]

LOG_FLOOR = 1e-8  # added to the mel power: below 16-bit quantisation noise of quiet speech, above digital zero


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel settings; the defaults are the field's usual ones for 16 kHz speech."""

    sample_rate: int = 16000
    n_mels: int = 80
    window: float = 0.025  # seconds
    hop: float = 0.010  # seconds: 100 frames a second

    @property
    def window_samples(self) -> int:
        return round(self.window * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        return round(self.hop * self.sample_rate)


class LogMel(nn.Module):
    """Log-mel filterbank energies of one utterance or of a batch of equal lengths.

    The filters are Slaney's, as librosa's `melspectrogram` has them by default. Frames are centred on
    multiples of the hop, so samples (..., T) give frames (..., T // hop + 1, n_mels).
    """

    def __init__(self, config: FrontendConfig | None = None) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.config = config or FrontendConfig()
        n_fft = 1 << (self.config.window_samples - 1).bit_length()  # 400 -> 512
        self.mel = MelSpectrogram(
            sample_rate=self.config.sample_rate,
            n_fft=n_fft,
            win_length=self.config.window_samples,
            hop_length=self.config.hop_samples,
            n_mels=self.config.n_mels,
            norm="slaney",
            mel_scale="slaney",
            center=True,
            pad_mode="constant",  # reflection would need more samples than the shortest input has
        )

    @torch.no_grad()
    def forward(self, samples: Tensor) -> Tensor:
        """Samples (..., T) in [-1, 1] -> natural-log frames (..., T', n_mels), float32."""
        return (self.mel(samples.float()) + LOG_FLOOR).log().transpose(-1, -2)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.config.hop_samples + 1


class Normalizer(nn.Module):
    """Global mean and variance normalisation: (x - mean) / std, by mel band, over the whole training set."""

    mean: Tensor
    std: Tensor

    def __init__(self, n_mels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (..., n_mels) -> the same shape with zero mean and unit variance on the training set."""
        return (frames - self.mean) / self.std

    def set_statistics(self, count: int, total: Tensor, total_squares: Tensor) -> None:
        """Take sums over `count` training frames: `total` and `total_squares` are (n_mels,), best in float64."""
        mean = total.double() / count
        variance = (total_squares.double() / count - mean**2).clamp_min(1e-8)
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt())


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Park et al. 2019 (SpecAugment), with the time masks scaled to the utterance (Park et al. 2020)."""

    frequency_masks: int = 2
    frequency_width: int = 20  # each mask hides 0..this many neighbouring mel bands
    time_mask_ratio: float = 0.04  # time masks per 10 frames of hop 10 ms: 0.04 -> 4 masks in 10 s
    max_time_masks: int = 10
    time_width: float = 0.04  # each mask hides 0..this share of the utterance
    max_time_width: int = 40  # frames
    gain: float = 0.0  # decibels: each utterance is made louder or softer by up to this much


class SpecAugment(nn.Module):
    """Hide random bands and stretches of normalised frames with their mean, 0."""

    def __init__(self, config: SpecAugmentConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpecAugmentConfig()

    def forward(self, frames: Tensor, lengths: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised frames (B, T, n_mels) and lengths (B,) -> masked copy; unchanged outside training."""
        if not self.training:
            return frames
        c = self.config
        batch, time, bands = frames.shape
        device = frames.device

        def uniform(*shape: int) -> Tensor:
            return torch.rand(*shape, device=device, generator=generator)

        width = (uniform(batch, c.frequency_masks) * (c.frequency_width + 1)).floor()
        start = (uniform(batch, c.frequency_masks) * (bands - width + 1)).floor()
        band = torch.arange(bands, device=device)
        hidden_bands = (band >= start[..., None]) & (band < (start + width)[..., None])  # (B, masks, n_mels)

        length = lengths.to(device)[:, None].float()
        count = (length * c.time_mask_ratio / 10).round().clamp(1, c.max_time_masks)  # (B, 1)
        limit = (length * c.time_width).clamp(max=c.max_time_width)
        width = (uniform(batch, c.max_time_masks) * (limit + 1)).floor()
        width = width * (torch.arange(c.max_time_masks, device=device) < count)
        start = (uniform(batch, c.max_time_masks) * (length - width + 1).clamp_min(1)).floor()
        step = torch.arange(time, device=device)
        hidden_steps = (step >= start[..., None]) & (step < (start + width)[..., None])  # (B, masks, T)

        hidden = hidden_bands.any(1)[:, None, :] | hidden_steps.any(1)[:, :, None]
        return frames.masked_fill(hidden, 0.0)

"""Samples -> log-mel frames -> normalised frames -> (in training) masked frames."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["FrontendConfig", "LogMel", "Normalizer", "SpecAugment", "SpecAugmentConfig", "band_warps", "warp_bands"]

LOG_FLOOR = 1e-8  # added to the mel power: below 16-bit quantisation noise of quiet speech, above digital zero


@dataclass(frozen=True)
class FrontendConfig:
    """Log-mel settings; the defaults are the field's usual ones for 16 kHz speech."""

    sample_rate: int = 16000
    n_mels: int = 80
    window: float = 0.025  # seconds
    hop: float = 0.010  # seconds: 100 frames a second
    # Seconds of the training set's mean that count beside an utterance's own mean when that is subtracted; inf: its own
    # mean does not count (global normalisation), 0: nothing but it does.
    mean_prior: float = math.inf

    def __post_init__(self) -> None:
        if not self.mean_prior >= 0:
            raise ValueError(f"mean_prior must not be negative, got {self.mean_prior}")
        if not (self.window_samples >= 1 and self.hop_samples >= 1):
            raise ValueError(f"window {self.window} s or hop {self.hop} s is no sample at {self.sample_rate} Hz")

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
    """Mean and variance normalisation, (x - mean) / std by mel band, over the whole training set.

    With a finite `prior` the mean is that of the utterance, estimated from its n frames and, as if it were `prior`
    frames more, the training set's mean: an utterance of few sounds says little about its speaker and microphone
    (maximum a posteriori, Gauvain & Lee 1994).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, n_mels: int, prior: float = math.inf) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Frames (..., T, n_mels) -> the same shape; `lengths` (B,) of rows with padding, which does not count."""
        if math.isinf(self.prior):
            return (frames - self.mean) / self.std
        if lengths is None:
            total, count = frames.sum(-2, keepdim=True), torch.tensor(float(frames.shape[-2]), device=frames.device)
        else:
            real = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None].to(frames.device)
            total, count = (frames * real[..., None]).sum(1, keepdim=True), lengths.to(frames)[:, None, None]
        mean = (total + self.prior * self.mean) / (count + self.prior).clamp_min(1)
        return (frames - mean) / self.std

    def set_statistics(self, count: int, total: Tensor, total_squares: Tensor) -> None:
        """Take sums over `count` training frames: `total` and `total_squares` are (n_mels,), best in float64."""
        mean = total.double() / count
        variance = (total_squares.double() / count - mean**2).clamp_min(1e-8)
        self.mean.copy_(mean)
        self.std.copy_(variance.sqrt())


def _slaney_mel(hertz: Tensor) -> Tensor:
    """Slaney's mel scale: linear below 1 kHz, logarithmic above."""
    return torch.where(hertz < 1000, hertz * (3 / 200), 15 + 27 * (hertz.clamp_min(1000) / 1000).log() / math.log(6.4))


def band_warps(factors: Tensor, n_mels: int, sample_rate: int) -> Tensor:
    """Matrices (B, n_mels, n_mels) that frames (..., n_mels) are multiplied by for `warp_bands`."""
    mel = torch.linspace(0, float(_slaney_mel(torch.tensor(sample_rate / 2))), n_mels + 2, device=factors.device)[1:-1]
    hertz = torch.where(mel < 15, mel * (200 / 3), 1000 * ((mel.clamp_min(15) - 15) / 27 * math.log(6.4)).exp())
    source = _slaney_mel(hertz / factors[:, None])  # (B, n_mels)
    place = ((source - mel[0]) / (mel[1] - mel[0])).clamp(0, n_mels - 1)
    band = torch.arange(n_mels, device=factors.device)[:, None]
    return (1 - (place[:, None, :] - band).abs()).clamp_min(0)  # (B, from band, to band)


def warp_bands(frames: Tensor, factors: Tensor, sample_rate: int) -> Tensor:
    """What stands at frequency f goes to factor * f, by linear interpolation between mel bands.

    Args:
        frames: (B, T, n_mels) log-mel.
        factors: (B,).
        sample_rate: of the audio; the bands reach up to half of it.
    """
    with torch.autocast(frames.device.type, enabled=False):  # frames are not normalised yet: bf16 would round them
        return frames @ band_warps(factors, frames.shape[-1], sample_rate).to(frames.dtype)


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
    vocal_tract: float = 0.0  # 0.1: the frequencies of each utterance are multiplied by 0.9 .. 1.1

    def __post_init__(self) -> None:
        if self.gain < 0:
            raise ValueError(f"gain must not be negative, got {self.gain}")
        if not 0 <= self.vocal_tract < 0.5:
            raise ValueError(f"vocal_tract must be at least 0 and below 0.5, got {self.vocal_tract}")


class SpecAugment(nn.Module):
    """Hide random bands and stretches of normalised frames with their mean, 0; before that, `perturb` voices."""

    def __init__(self, config: SpecAugmentConfig | None = None) -> None:
        super().__init__()
        self.config = config or SpecAugmentConfig()

    def perturb(self, frames: Tensor, sample_rate: int, generator: torch.Generator | None = None) -> Tensor:
        """Log-mel frames (B, T, n_mels), not normalised -> of other speakers and levels; unchanged outside training.

        Vocal tract length perturbation (Jaitly & Hinton 2013): frequency f of an utterance's speech goes to a f, a
        drawn for the utterance. Here the bands' log energies are interpolated rather than the filters moved, which
        needs no audio. Beyond the highest band there is nothing to take: the highest is repeated.
        """
        c = self.config
        if not self.training or not (c.gain or c.vocal_tract):
            return frames
        batch = frames.shape[0]

        def uniform(limit: float) -> Tensor:
            return (torch.rand(batch, device=frames.device, generator=generator) * 2 - 1) * limit

        if c.vocal_tract:
            frames = warp_bands(frames, 1 + uniform(c.vocal_tract), sample_rate)
        if c.gain:
            frames = frames + (uniform(c.gain) * (math.log(10) / 10))[:, None, None]
        return frames

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

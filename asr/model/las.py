"""Listen, Attend and Spell: encoder + speller, and a CTC head that gets the encoder going."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asr.model.encoder import Adaptation, EncoderConfig, PyramidalEncoder, length_mask
from asr.model.speller import Speller, SpellerConfig

__all__ = ["LasOutput", "ListenAttendSpell", "ModelConfig"]

ROWS = 16  # heard at a time on the CPU; 64 took a sixth more time for each, as they do not stay in the caches


@dataclass(frozen=True)
class ModelConfig:
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    speller: SpellerConfig = field(default_factory=SpellerConfig)

    def __post_init__(self) -> None:
        if self.encoder.d != self.speller.d:
            raise ValueError(f"one d for h and s: the encoder has {self.encoder.d}, the speller {self.speller.d}")


class LasOutput(NamedTuple):
    logits: Tensor  # (B, U, V) of the speller
    weights: Tensor | None  # (B, U, N) of the last hop; None without attention
    ctc_logits: Tensor  # (B, N, V)
    lengths: Tensor  # (B,) encoder states of each row


class ListenAttendSpell(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = PyramidalEncoder(config.encoder)
        self.speller = Speller(config.speller)
        self.ctc = nn.Linear(config.encoder.d, config.speller.vocabulary)

    def forward(self, frames: Tensor, lengths: Tensor, characters: Tensor) -> LasOutput:
        """Normalised frames (B, T, n_mels), lengths (B,), characters (B, U) beginning with BOS."""
        h, lengths = self.encoder(frames, lengths)
        logits, weights = self.speller(characters, self.speller.memory(h, lengths))
        return LasOutput(logits, weights, self.ctc(h), lengths)

    def listen(
        self,
        frames: Tensor,
        lengths: Tensor,
        phases: int = 1,
        warps: Tensor | None = None,
        adaptation: Adaptation | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Normalised frames (B, T, n_mels), lengths (B,) -> h (B, N, d) and lengths (B,), as the encoder has them.

        Which frames the pyramid joins depends on where a recording happens to begin. With `phases` above 1 the
        utterance is heard so often, each time moved on by one frame, and h is the mean: a small ensemble of one model,
        whose members' errors differ. More phases than the encoder's reduction bring nothing new, unless `warps`,
        matrices (phases, n_mels, n_mels), make each hear another voice. What `adapt` learned of the voice serves in all
        phases.
        """
        if phases == 1:
            return self.encoder(frames, lengths, adaptation)
        batch, time, _ = frames.shape
        frames = frames * length_mask(lengths, time)[..., None]
        ahead = (phases - 1) // 2  # as many move it forward as back, or one less, so that times stay where they were
        heard = frames.new_zeros(phases, batch, time + phases, frames.shape[2])
        for row, shift in zip(heard, range(-ahead, phases - ahead), strict=True):
            if shift < 0:
                row[:, : max(0, time + shift)] = frames[:, -shift:]
            else:
                row[:, :shift] = frames[:, :1]
                row[:, shift : shift + time] = frames
        if warps is not None:
            heard = heard @ warps[:, None]
        later = torch.arange(-ahead, phases - ahead, device=lengths.device).clamp_min(0)
        every = lengths + later[:, None]  # (phases, B)
        lengths = self.encoder.output_lengths(lengths)
        size, h = int(lengths.max()), frames.new_zeros(())
        together = phases if frames.is_cuda else max(1, ROWS // batch)
        for some, theirs in zip(heard.split(together), every.split(together), strict=True):
            states, _ = self.encoder(some.flatten(0, 1), theirs.flatten(), adaptation)
            h = h + states.unflatten(0, (len(some), batch))[:, :, :size].sum(0)
        return h / phases, lengths

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

"""Listen, Attend and Spell: encoder + speller, and a CTC head that gets the encoder going."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from asr.model.encoder import EncoderConfig, PyramidalEncoder
from asr.model.speller import Speller, SpellerConfig

__all__ = ["LasOutput", "ListenAttendSpell", "ModelConfig"]


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

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

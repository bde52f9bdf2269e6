"""The equations of Listen, Attend and Spell, and nothing else."""

from asr.model.attention import ATTENTIONS, DotProductAttention
from asr.model.encoder import EncoderConfig, PyramidalEncoder
from asr.model.las import ListenAttendSpell, ModelConfig
from asr.model.speller import Speller, SpellerConfig, SpellerState

__all__ = [
    "ATTENTIONS",
    "DotProductAttention",
    "EncoderConfig",
    "ListenAttendSpell",
    "ModelConfig",
    "PyramidalEncoder",
    "Speller",
    "SpellerConfig",
    "SpellerState",
]

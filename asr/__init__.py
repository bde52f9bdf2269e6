"""A small English speech recogniser of the Listen-Attend-and-Spell kind.

import asr

print(asr.transcribe("talk.wav").text)

model = asr.load_model(beam=8)              # load once, use often
for path in paths:
    print(model.transcribe(path).text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from asr.transcriber import Transcriber
    from asr.writers import Transcript

__all__ = ["__version__", "load_model", "transcribe"]
__version__ = "0.1.0"

# PyTorch takes longer to import than everything else together: it waits until a model is wanted.


def load_model(path: str | Path | None = None, device: str = "auto", **decoding: Any) -> Transcriber:
    """Load a model folder, or by default the model that ships; see `asr.transcriber.load_model`."""
    from asr import transcriber

    return transcriber.load_model(path, device, **decoding)


def transcribe(source: Any, model: str | Path | None = None, device: str = "auto", **decoding: Any) -> Transcript:
    """Recognise the speech in a path, bytes, a file object, or an array of samples at 16 kHz.

    Raises:
        asr.errors.AudioError: the source cannot be read.
        asr.errors.ModelError: the model cannot.
    """
    return load_model(model, device, **decoding).transcribe(source)

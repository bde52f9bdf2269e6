"""Pictures of attention over the spectrogram it attends to (matplotlib, loaded when first used)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asr.errors import AsrError
from asr.writers import in_place_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_attention", "save_figure"]


def plot_attention(
    weights: np.ndarray,
    labels: Sequence[str],
    log_mel: np.ndarray,
    hop: float = 0.01,
    title: str = "",
    start: float = 0.0,
    sample_rate: int = 16_000,
) -> Figure:
    """Draw attention weights under the spectrogram, on one time axis.

    Args:
        weights: (U, N), one row a character.
        labels: U characters.
        log_mel: (T, n_mels) frames, every `hop` seconds; N encoder states span the same time.
        start: where the first frame lies in the audio, s.
        sample_rate: of the audio, Hz; the mel bands reach to half of it.
    """
    import librosa.display
    from matplotlib.figure import Figure

    seconds = len(log_mel) * hop
    height = 2.2 + 0.16 * len(labels)
    figure = Figure(figsize=(min(24.0, max(6.0, 1.6 * seconds)), height), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, max(1.0, 0.16 * len(labels))])
    times = start + hop * np.arange(len(log_mel))
    mel = {"y_axis": "mel", "sr": sample_rate, "cmap": "magma", "ax": top}
    librosa.display.specshow(log_mel.T, x_coords=times, x_axis="s", **mel)
    top.set_ylabel("Hz")
    figure.suptitle(title, wrap=True, fontsize=10)
    image = bottom.imshow(
        weights,
        aspect="auto",
        extent=(start, start + seconds, len(labels), 0),
        cmap="Greys",
        vmin=0,
        interpolation="nearest",
    )
    bottom.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=7, fontfamily="monospace")
    bottom.set_xlabel("time (s)")
    bottom.set_ylabel("character")
    figure.colorbar(image, ax=[top, bottom], label="attention weight", fraction=0.03, pad=0.01)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write PNG, SVG or PDF by the ending, complete or not at all.

    Raises:
        AsrError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AsrError(f"{path}: cannot be written ({error.strerror})") from error
    with in_place_of(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=110)
    return path

"""Speech for tests: made of tones, so that nothing has to be recorded."""

import numpy as np


def speak(text: str, seed: int = 0) -> np.ndarray:
    """Toy speech (T,) at 16 kHz: a tone of 80 ms for each character, a pause for a space, and a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(1280) / 16000
    envelope = np.hanning(1280)
    parts = [np.zeros(1600)]
    for character in text:
        pitch = 0.0 if character == " " else 300.0 + 200.0 * "'ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(character)
        parts.append(0.3 * envelope * np.sin(2 * np.pi * pitch * t))
    samples = np.concatenate([*parts, np.zeros(1600)])
    return (samples + rng.normal(0, 0.003, len(samples))).astype(np.float32)

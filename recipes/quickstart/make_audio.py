"""Make the quickstart's audio again (needs the `tts` extra): sentences of our own, read by a synthetic voice.

python recipes/quickstart/make_audio.py

The voice is hibari-tts's `heart` (Apache-2.0). Nobody recorded speaks here, and the figures the quickstart prints say
nothing about people: see the README for those.
"""

from pathlib import Path

import numpy as np
import soundfile
import soxr
from hibari import Hibari

SENTENCES = {
    "garden": "The old man walked slowly through the garden and sat down by the river.",
    "letter": "She read the letter twice, and then she put it on the fire.",
    "morning": "In the morning the wind had fallen, and the sea was quiet.",
    "question": "Do you think that he will ever come back to this house?",
    "road": "They had been on the road for three days when the first snow came.",
    "window": "There was a light in the window of the little room above the door.",
}


def main() -> None:
    folder = Path(__file__).parent / "audio"
    folder.mkdir(exist_ok=True)
    voice = Hibari()
    for name, sentence in SENTENCES.items():
        samples = soxr.resample(voice(sentence, seed=0), 24000, 16000)
        silence = np.zeros(16000 // 4, np.float32)
        soundfile.write(folder / f"{name}.flac", np.concatenate([silence, samples, silence]), 16000, subtype="PCM_16")
    lines = [f"{name} {sentence}\n" for name, sentence in SENTENCES.items()]
    (folder / "reference.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()

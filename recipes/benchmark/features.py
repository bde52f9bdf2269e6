"""Log-mel frames a second: this project's LogMel against librosa, torchaudio's own transform and lhotse's Fbank.

    python recipes/benchmark/features.py                            # a minute of generated audio, one thread
    python recipes/benchmark/features.py --audio speech.flac --json

All give 80 mel bands every 10 ms of 16 kHz audio, from windows of 25 ms; each takes an utterance at a time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from asr.frontend import LOG_FLOOR, LogMel

RATE = 16000
HOP = RATE // 100
WINDOW = RATE // 40


def generate(seconds: float, seed: int = 1) -> np.ndarray:
    """Noise whose loudness comes and goes: the work is the same as on speech."""
    count = round(seconds * RATE)
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.1 * noise * (1 + np.sin(np.arange(count) * 2 * np.pi * 3 / RATE))).astype(np.float32)


def extractors() -> dict[str, tuple[str, Callable[[np.ndarray], Any]]]:
    """Name -> (version, samples (T,) -> log-mel frames)."""
    import librosa
    import torchaudio
    from lhotse import Fbank, FbankConfig

    ours = LogMel()
    own = torchaudio.transforms.MelSpectrogram(RATE, n_mels=80, win_length=WINDOW, hop_length=HOP)
    fbank = Fbank(FbankConfig(num_mel_bins=80, sampling_rate=RATE))

    def of_librosa(samples: np.ndarray) -> np.ndarray:
        mel = librosa.feature.melspectrogram(
            y=samples, sr=RATE, n_fft=512, win_length=WINDOW, hop_length=HOP, n_mels=80
        )
        return np.log(mel + LOG_FLOOR)

    def of_torchaudio(samples: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return (own(torch.from_numpy(samples)) + LOG_FLOOR).log()

    return {
        "asr LogMel": (version("asr"), lambda samples: ours(torch.from_numpy(samples))),
        "librosa melspectrogram": (version("librosa"), of_librosa),
        "torchaudio MelSpectrogram": (version("torchaudio"), of_torchaudio),
        "lhotse Fbank": (version("lhotse"), lambda samples: fbank.extract(samples, RATE)),
    }


def measure(
    extractors: dict[str, Callable[[np.ndarray], Any]], utterances: list[np.ndarray], repeats: int
) -> dict[str, tuple[float, float]]:
    """Wall and processor seconds of each to go through `utterances`: medians of `repeats` rounds after one of warm-up.

    The extractors take turns, so that whatever else the machine does meets them alike.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in extractors}
    for _ in range(repeats + 1):
        for name, extract in extractors.items():
            start, start_processor = time.perf_counter(), time.process_time()
            for samples in utterances:
                extract(samples)
            taken[name].append((time.perf_counter() - start, time.process_time() - start_processor))
    return {
        name: (statistics.median(w for w, _ in rounds[1:]), statistics.median(p for _, p in rounds[1:]))
        for name, rounds in taken.items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, help="a file to take the samples from (default: generated)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of generated audio (default: 60)")
    parser.add_argument("--utterance", type=float, default=10.0, help="seconds given at a time (default: 10)")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds (default: 7)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    options = parser.parse_args(arguments)
    if options.seconds < 0.1 or options.utterance < 0.1 or options.repeats < 1 or options.threads < 1:
        parser.error("--seconds and --utterance are at least 0.1, --repeats and --threads at least 1")
    torch.set_num_threads(options.threads)
    if options.audio:
        from asr.audio import load
        from asr.errors import AsrError

        try:
            samples = np.asarray(load(options.audio))
        except AsrError as error:
            parser.error(str(error))
    else:
        samples = generate(options.seconds)
    size = round(options.utterance * RATE)
    utterances = [samples[i : i + size] for i in range(0, len(samples), size)]
    utterances = [u for u in utterances if len(u) >= WINDOW] or utterances[:1]
    frames = sum(len(u) // HOP + 1 for u in utterances)
    results = []
    known = extractors()
    with threadpool_limits(options.threads):  # NumPy's products, too, of which librosa's are
        taken = measure({name: extract for name, (_, extract) in known.items()}, utterances, options.repeats)
    for name, (wall, processor) in taken.items():
        results.append(
            {
                "extractor": name,
                "version": known[name][0],
                "frames_per_second": frames / wall,
                "frames_per_processor_second": frames / processor,
                "speech_per_second": frames / 100 / wall,
            }
        )
    if options.json:
        print(
            json.dumps({"threads": options.threads, "frames": frames, "torch": torch.__version__, "results": results})
        )
        return
    table = Table(title=f"{frames} log-mel frames, {options.threads} thread(s)", title_justify="left")
    for heading in ("extractor", "frames/s", "frames/processor s", "speech s/s", "of ours"):
        table.add_column(heading, justify="left" if heading == "extractor" else "right")
    for r in results:
        share = r["frames_per_processor_second"] / results[0]["frames_per_processor_second"]
        table.add_row(
            f"{r['extractor']} {r['version']}",
            f"{r['frames_per_second']:,.0f}",
            f"{r['frames_per_processor_second']:,.0f}",
            f"{r['speech_per_second']:,.0f}",
            f"{share:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

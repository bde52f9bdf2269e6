"""Transcribing one long recording: this project against pocketsphinx and faster-whisper, errors and speed side by side.

    python recipes/benchmark/transcribe.py --manifests data/mini                # ten minutes of dev-2spk
    python recipes/benchmark/transcribe.py --manifests data/mini --minutes 180 --systems asr utterances
    python recipes/benchmark/transcribe.py --manifests data/mini --whisper WHISPER_FOLDER

The recording is made of the subset's utterances with pauses of 0.3 to 2 s between them. Every system reads it in a
process of its own, starting up and loading its model included. `utterances` is this project on each utterance alone,
read once however often it stands in the recording: what cutting the recording up costs. faster-whisper needs a folder
with a converted model; pocketsphinx brings its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from asr.errors import AsrError

# What one side alone needs, the one that measures or one of the systems, is imported there: start-up is measured.

RATE = 16_000
PAUSES = (0.3, 2.0)  # s
ROOM = 3e-4  # RMS of the noise in a pause


@dataclass(frozen=True)
class Result:
    system: str
    wer: float
    substitutions: int
    deletions: int
    insertions: int
    real_time_factor: float  # wall
    processor_factor: float  # processor seconds per second of audio
    peak_mb: float  # resident memory


def write_recording(cuts: list[Any], minutes: float, folder: Path, seed: int = 1) -> tuple[list[Path], str, float]:
    """`folder/recording.flac` of at least `minutes`, and its utterances one by one.

    Returns the utterances' paths in order (one that is said again stands there again), the text, and the seconds.
    """
    from asr.corpus.dataset import cut_text, load_samples

    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    texts: list[str] = []
    with soundfile.SoundFile(folder / "recording.flac", "w", RATE, 1) as recording:
        for cut in cycle(cuts):
            samples = load_samples(cut, RATE)
            path = folder / f"{cut.id}.flac"
            if not path.exists():
                soundfile.write(path, samples, RATE)
            paths.append(path)
            texts.append(cut_text(cut))
            pause = rng.normal(0, ROOM, round(RATE * rng.uniform(*PAUSES)))
            recording.write(np.concatenate([samples, pause]))
            if recording.frames >= minutes * 60 * RATE:
                return paths, " ".join(texts), recording.frames / RATE
    raise AssertionError("cycle() does not end")


# --- systems: what each process does with the recording ---


def _asr(**settings: Any) -> Callable[[argparse.Namespace], str]:
    def text(options: argparse.Namespace) -> str:
        asr = _our_package(options)
        return asr.transcribe(options.recording, options.model, "cpu", **settings).text

    return text


def _our_package(options: argparse.Namespace) -> Any:
    import torch

    import asr

    torch.set_num_threads(options.threads)
    return asr


def _utterances(options: argparse.Namespace) -> str:
    asr = _our_package(options)
    recogniser = asr.load_model(options.model, "cpu", vad=False)
    names = options.utterances.read_text().splitlines()
    texts = {name: result.text for name, result in recogniser.transcribe_all(dict.fromkeys(names))}
    return " ".join(texts[name] for name in names)


def _pocketsphinx(options: argparse.Namespace) -> str:
    from pocketsphinx import Decoder, Segmenter

    decoder, found = Decoder(samprate=RATE, loglevel="FATAL"), []
    with tempfile.TemporaryFile() as raw:  # what it hears has no header
        for block in soundfile.blocks(options.recording, RATE * 60, dtype="int16"):
            raw.write(block.tobytes())
        raw.seek(0)
        for segment in Segmenter(sample_rate=RATE).segment(raw):
            decoder.start_utt()
            decoder.process_raw(segment.pcm, no_search=False, full_utt=True)
            decoder.end_utt()
            if decoder.hyp():
                found.append(decoder.hyp().hypstr)
    return " ".join(found)


def _whisper(options: argparse.Namespace) -> str:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(options.whisper), device="cpu", compute_type="int8", cpu_threads=options.threads)
    segments, _ = model.transcribe(str(options.recording), language="en", beam_size=5)
    return " ".join(segment.text for segment in segments)


SYSTEMS: dict[str, Callable[[argparse.Namespace], str]] = {
    "asr": _asr(),
    "asr-beam-8": _asr(beam=8),
    "asr-greedy": _asr(beam=1),
    "utterances": _utterances,
    "pocketsphinx": _pocketsphinx,
    "whisper": _whisper,
}


def measure(system: str, options: argparse.Namespace, reference: str, seconds: float) -> Result:
    """Run a system in a process of its own and score what it writes.

    Raises:
        AsrError: it fails.
    """
    import jiwer

    command = [sys.executable, __file__, "--child", system, "--recording", str(options.recording)]
    command += ["--utterances", str(options.utterances), "--threads", str(options.threads)]
    for name in ("model", "whisper"):
        command += [f"--{name}", str(getattr(options, name))] if getattr(options, name) else []
    threads = {name: str(options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={**os.environ, **threads})
        _, status, usage = os.wait4(process.pid, 0)  # subprocess itself does not tell what a process used
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise AsrError(f"{system}: failed: {' '.join(errors.read().decode().strip().splitlines()[-1:])}")
        said = json.load(output)
        found = jiwer.process_words(reference, _words(said["text"]))
    return Result(
        system,
        found.wer,
        found.substitutions,
        found.deletions,
        found.insertions,
        wall / seconds,
        (usage.ru_utime + usage.ru_stime) / seconds,
        said["peak_mb"],
    )


def _peak_mb() -> float:
    """Most memory that this process has had; what wait4 tells has that of the process it was forked from in it."""
    status = Path("/proc/self/status")
    if not status.is_file():  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def _words(text: str) -> str:
    """As references and everybody's output are compared: upper case, numbers spelled out, no punctuation."""
    from asr.tokenizer import normalize_text

    return normalize_text(text).replace("'", "")


def run(options: argparse.Namespace, systems: list[str]) -> Iterator[Result]:
    from asr.corpus.dataset import load_cuts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cuts = load_cuts(options.manifests, [options.subset])
        paths, text, seconds = write_recording(cuts, options.minutes, folder)
        options.recording, options.utterances = folder / "recording.flac", folder / "utterances.txt"
        options.utterances.write_text("\n".join(map(str, paths)))
        options.seconds = seconds
        alone = sum(soundfile.info(path).duration for path in set(paths))  # once each, and no pauses
        for system in systems:
            print(f"{system} ...", file=sys.stderr, flush=True)
            try:
                yield measure(system, options, _words(text), alone if system == "utterances" else seconds)
            except AsrError as error:
                print("error:", error, file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifests", type=Path, help="folder that prepare.py wrote")
    parser.add_argument("--subset", default="dev-2spk", help="of it (default: dev-2spk)")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the recording (default: 10)")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all that are installed")
    parser.add_argument("--model", help="model folder of this project (default: the one that ships)")
    parser.add_argument("--whisper", type=Path, help="folder of a faster-whisper model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    for name in ("child", "recording", "utterances"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        options.utterances = Path(options.utterances)
        print(json.dumps({"text": SYSTEMS[options.child](options), "peak_mb": _peak_mb()}))
        return
    if not options.manifests:
        parser.error("--manifests is needed: the folder that prepare.py wrote")
    installed = {"pocketsphinx": find_spec("pocketsphinx"), "whisper": options.whisper}
    systems = options.systems or [name for name in SYSTEMS if installed.get(name, True)]
    try:
        results = list(run(options, systems))
    except AsrError as error:
        parser.error(str(error))
    failed = 2 if len(results) < len(systems) else None
    if options.json:
        results_ = [asdict(result) for result in results]
        print(json.dumps({"seconds": options.seconds, "threads": options.threads, "results": results_}))
        sys.exit(failed)
    from rich.console import Console
    from rich.table import Table

    title = f"{options.seconds / 60:.1f} minutes of {options.subset}, {options.threads} thread(s)"
    table = Table(title=title, title_justify="left")
    for heading in ("system", "WER", "S / D / I", "real-time factor", "in processor time", "peak memory"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for r in results:
        errors = f"{r.substitutions} / {r.deletions} / {r.insertions}"
        factors = (f"{r.real_time_factor:.4f}", f"{r.processor_factor:.4f}")
        table.add_row(r.system, f"{100 * r.wer:.2f} %", errors, *factors, f"{r.peak_mb:,.0f} MB")
    Console().print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()

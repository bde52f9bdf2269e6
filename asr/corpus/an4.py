"""CMU AN4 ("census"): spelled names, digits and dates by 84 speakers, 50 minutes at 16 kHz.

Two layouts are read: the official archive (`an4/etc/*.transcription`, `an4/wav/**/*.sph` or `*.raw`), whose audio is
converted to FLAC once, and `an4-train`, `an4-test` folders laid out like LibriSpeech. Everything else is
`asr.corpus.librispeech`.
"""

import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import MofNCompleteColumn

from asr.audio import sphere_frames
from asr.config import check_kinds
from asr.corpus.chapters import COPY
from asr.corpus.librispeech import (
    Dropped,
    SubsetScan,
    check_speakers,
    drop_repeated,
    fetch,
    progress_bar,
    scan,
    unpack,
    write_all,
)
from asr.errors import ConfigError, CorpusError

__all__ = ["convert", "download", "hold_out", "prepare"]

URL = "https://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
SIZES = {"train": 948, "test": 130}  # utterances of the official split
SAMPLE_RATE = 16000  # Hz; the raw files do not say it
SUFFIXES = (".sph", ".raw", ".wav", ".flac")

_LINE = re.compile(r"^(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()\s]+)\)\s*$")


def prepare(
    root: str | Path,
    output: str | Path,
    *,
    dev_utterances: int = 100,
    augmented: str | Path | None = None,
    spliced: str | Path | None = None,
    check: str = "full",
    fetch_missing: bool = False,
    url: str | None = None,
) -> list[SubsetScan]:
    """Write manifests of an4-train, an4-dev and an4-test, and of changed copies, and summary.json into output.

    root: the folder that holds `an4/` (official) or `an4-train/` and `an4-test/` (also inside `LibriSpeech/`)
    dev_utterances: whole speakers of the training set with at least this many utterances become an4-dev;
        0 leaves the training set whole and an4-dev out
    augmented: what `asr.corpus.augment` wrote of an4-train; its copies become an4-train-augmented and, those of the
        speakers of an4-dev, an4-dev-augmented, which nothing measured on an4-dev may be trained on
    spliced: what `asr.training.splice` wrote of an4-train; likewise an4-train-spliced and an4-dev-spliced
    """
    check_kinds({"corpus.dev_utterances": dev_utterances}, {"corpus.dev_utterances": int})
    if dev_utterances < 0:
        raise ConfigError(f"corpus.dev_utterances is {dev_utterances}; it must be 0 or more")
    root = Path(os.path.abspath(Path(root).expanduser()))
    if fetch_missing and _look_alike(root) is None:
        download(root, url)
    if not root.is_dir():
        raise CorpusError(f"no folder {root}; set corpus.root, or corpus.download=true to fetch AN4 into it")
    unreadable: dict[str, list[Dropped]] = {"train": [], "test": []}
    source = _look_alike(root)
    if source is None:
        official = _official(root)
        if official is None:
            raise CorpusError(
                f"no AN4 in {root}: neither an4/etc/an4_train.transcription nor folders an4-train and an4-test; "
                "corpus.download=true fetches it"
            )
        source = Path(os.path.abspath(output)) / "audio"
        unreadable = {part: convert(official, part, source / f"an4-{part}") for part in SIZES}
    train, test = (_with_dropped(scan(source, f"an4-{part}", check), unreadable[part]) for part in SIZES)
    scans = [train, test]
    if dev_utterances:
        train, dev = hold_out(train, dev_utterances)
        scans = [train, dev, test]
    check_speakers(scans)
    held_out = {f"{COPY}{speaker}" for speaker in dev.speakers} if dev_utterances else set()
    for kind, folder in (("augmented", augmented), ("spliced", spliced)):
        if folder is not None:
            scans += _split(scan(folder, f"an4-train-{kind}", check), f"an4-dev-{kind}", held_out)
    scans = drop_repeated(scans)
    # Of an earlier run: their utterances may stand on the other side of the split now.
    copies = {f"an4-{part}-{kind}" for part in ("train", "dev") for kind in ("augmented", "spliced")}
    for name in {"an4-dev", *copies} - {part.name for part in scans}:
        for stale in Path(output).glob(f"*_{name}.jsonl.gz"):
            stale.unlink()
    write_all(scans, output)
    return scans


def hold_out(train: SubsetScan, utterances: int) -> tuple[SubsetScan, SubsetScan]:
    """Split whole speakers off the training set until they have at least `utterances` of them: (train, an4-dev).

    Which speakers depends on their names alone, in the order of a hash: alphabetic order would take women only,
    as the names begin with f or m.
    """
    counts = Counter(utterance.speaker for utterance in train.utterances)
    chosen: set[str] = set()
    held = 0
    for speaker in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if held >= utterances:
            break
        chosen.add(speaker)
        held += counts[speaker]
    if len(chosen) == len(counts):
        raise ConfigError(
            f"corpus.dev_utterances={utterances} leaves nothing to train on: "
            f"{train.name} has {len(train.utterances)} utterances of {len(counts)} speakers"
        )
    return (
        replace(train, utterances=[u for u in train.utterances if u.speaker not in chosen]),
        SubsetScan("an4-dev", [u for u in train.utterances if u.speaker in chosen], []),
    )


def _split(copies: SubsetScan, dev_name: str, held_out: set[str]) -> list[SubsetScan]:
    """The copies of the training speakers' utterances and, where there are any, those of the speakers held out."""
    train = replace(copies, utterances=[u for u in copies.utterances if u.speaker not in held_out])
    dev = SubsetScan(dev_name, [u for u in copies.utterances if u.speaker in held_out], [])
    return [train, dev] if dev.utterances else [train]


def _look_alike(root: Path) -> Path | None:
    """The folder that holds an4-train and an4-test, if there is one."""
    for folder in (root / "LibriSpeech", root):
        if all((folder / f"an4-{part}").is_dir() for part in SIZES):
            return folder
    return None


def _official(root: Path) -> Path | None:
    """The folder that holds etc/ and wav/, if there is one."""
    for folder in (root / "an4", root):
        if (folder / "etc" / "an4_train.transcription").is_file():
            return folder
    return None


def _with_dropped(scanned: SubsetScan, unreadable: list[Dropped]) -> SubsetScan:
    """The scan of converted audio with what could not be converted listed under its own reason."""
    ids = {d.id for d in unreadable}
    dropped = [d for d in scanned.dropped if d.id not in ids] + unreadable
    return replace(scanned, dropped=sorted(dropped, key=lambda d: (d.id, str(d.path))))


# --- the official archive ---------------------------------------------------------------------------------------------


def download(root: str | Path, url: str | None = None) -> Path:
    """Fetch and unpack the official archive unless `an4/` is there; returns that folder.

    CMU publishes no checksum, so the archive is taken as whole when it unpacks and has the audio of all 948 + 130
    utterances of the official split.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    if (official := _official(root)) is not None:
        return official
    url = url or URL
    archive = root / url.rpartition("/")[2]
    fetch(url, archive, None)
    with unpack(archive) as unpacked:
        source = unpacked / "an4"
        for part, expected in SIZES.items():
            found = sum(path is not None for _, _, path in _listed(source, part))
            if found != expected:
                raise CorpusError(
                    f"{archive} has the audio of {found} an4_{part} utterances, expected {expected}; "
                    "delete it and run again"
                )
        _move(source, root / "an4")
    archive.unlink()
    return root / "an4"


def _move(source: Path, target: Path) -> None:
    """Move what is in source into target, which may exist: data/an4 is also where manifests go."""
    target.mkdir(exist_ok=True)
    # etc/ comes last, as it is what `_official` knows the corpus by.
    for item in sorted(source.iterdir(), key=lambda path: path.name == "etc"):
        if (target / item.name).exists():
            raise CorpusError(f"{target / item.name} is in the way of unpacking AN4; move it away and run again")
        item.rename(target / item.name)


def _listed(official: Path, part: str) -> Iterator[tuple[str, str, Path | None]]:
    """(utterance, text, audio file or None where it is missing) for each line of an4_<part>.transcription."""
    transcription, fileids = (official / "etc" / f"an4_{part}.{kind}" for kind in ("transcription", "fileids"))
    for path in (transcription, fileids):
        if not path.is_file():
            raise CorpusError(f"no file {path}; AN4 is not complete, unpack it again")
    places = {Path(line).name: line for line in fileids.read_text(encoding="latin-1").split()}
    for number, line in enumerate(transcription.read_text(encoding="latin-1").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.match(line.strip())
        if match is None:
            raise CorpusError(f"{transcription}, line {number}: expected '<s> TEXT </s> (utterance)', found {line!r}")
        utterance = match["id"]
        stem = official / "wav" / places[utterance] if utterance in places else None
        candidates = [stem.parent / (stem.name + suffix) for suffix in SUFFIXES] if stem else []
        yield utterance, match["text"].strip(), next((path for path in candidates if path.is_file()), None)


def convert(official: Path, part: str, folder: Path) -> list[Dropped]:
    """Lay one part of the official archive out like LibriSpeech in folder; returns what could not be read.

    Ids become `<speaker>-0-<utterance>`. Files converted before are left alone.

    Raises:
        CorpusError: the archive is not complete, or the folder cannot be written to.
    """
    etc = official / "etc" / f"an4_{part}.transcription"
    dropped: list[Dropped] = []
    transcripts: dict[str, list[str]] = {}
    listed = list(_listed(official, part))
    try:
        with progress_bar(MofNCompleteColumn()) as progress:
            for utterance, text, source in progress.track(listed, description=f"convert an4-{part}"):
                # an251-fash-b: prompt, speaker, recording session
                speaker = source.parent.name if source else [*utterance.split("-"), utterance][1]
                identity = f"{speaker}-0-{utterance}"
                if source is None:
                    dropped.append(Dropped(identity, "audio is missing", etc))
                    continue
                target = folder / speaker / "0" / f"{identity}.flac"
                made_at = source.stat().st_mtime_ns  # what replaces it may be older: tar restores times
                if not (target.is_file() and target.stat().st_mtime_ns == made_at):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    samples = _read(source)
                    if isinstance(samples, str):
                        target.unlink(missing_ok=True)
                        dropped.append(Dropped(identity, samples, source))
                        continue
                    temporary = target.with_name(f".{target.name}.tmp")
                    soundfile.write(temporary, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
                    os.utime(temporary, ns=(made_at, made_at))
                    os.replace(temporary, target)
                transcripts.setdefault(speaker, []).append(f"{identity} {text}".rstrip())
        for speaker, lines in transcripts.items():
            path = folder / speaker / "0" / f"{speaker}-0.trans.txt"
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
            os.replace(temporary, path)
    except (OSError, soundfile.LibsndfileError) as error:
        place, reason = getattr(error, "filename", None) or folder, getattr(error, "strerror", None) or error
        raise CorpusError(f"{place}: an4-{part} cannot be converted ({reason}); mend that and run again") from error
    if not transcripts:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in Counter(d.reason for d in dropped).items())
        raise CorpusError(f"an4-{part} in {official} has no usable utterance: {reasons or 'its transcripts are blank'}")
    for path in folder.glob("*/0/*-0.trans.txt"):  # of speakers that are no longer there
        gone = path.parent.parent
        if path.name == f"{gone.name}-0.trans.txt" and gone.name not in transcripts and not gone.is_symlink():
            shutil.rmtree(gone, ignore_errors=True)
    return dropped


def _read(path: Path) -> np.ndarray | str:
    """16 kHz int16 samples (T,) of one official file, or what is wrong with it."""
    if path.suffix == ".raw":
        return _read_raw(path)
    try:
        samples, rate = soundfile.read(path, dtype="int16")
    except (soundfile.SoundFileError, RuntimeError) as error:
        return f"audio is corrupt: {getattr(error, 'error_string', str(error)).removeprefix('Error : ').rstrip('.')}"
    if rate != SAMPLE_RATE or samples.ndim != 1:
        return f"audio is not {SAMPLE_RATE} Hz mono"
    if path.suffix == ".sph":
        expected = sphere_frames(path.read_bytes()[:1024])
        if expected and expected != len(samples):
            return f"audio is corrupt: {len(samples)} of {expected} samples can be decoded"
    return samples if len(samples) else "audio is empty"


def _read_raw(path: Path) -> np.ndarray | str:
    """Headerless 16-bit samples of either byte order; there is an archive of each."""
    content = path.read_bytes()
    if not content:
        return "audio is empty"
    if len(content) % 2:
        return "audio is corrupt: half a sample at the end"
    # In the wrong byte order the noisy low bytes become the high ones, and speech jumps from sample to sample.
    orders = [np.frombuffer(content, dtype=order).astype(np.int16) for order in (">i2", "<i2")]
    return min(orders, key=lambda samples: float(np.abs(np.diff(samples.astype(np.int32))).sum()))

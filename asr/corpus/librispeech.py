"""LibriSpeech and every folder laid out like it: download, scan, check, manifests.

The layout is `<subset>/<speaker>/<chapter>/<utterance>.flac` beside `<speaker>-<chapter>.trans.txt`, whose lines are
`<utterance> <TEXT>`. What is wrong with single utterances is listed and they are left out; what would spoil a training
or its figures (a speaker in training and evaluation, an evaluation utterance twice) stops with a CorpusError.
"""

import gzip
import hashlib
import http.client
import json
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from asr.config import as_list
from asr.errors import ConfigError, CorpusError
from asr.tokenizer import normalize_text

__all__ = [
    "Dropped",
    "SubsetScan",
    "Utterance",
    "available",
    "check_speakers",
    "download",
    "drop_repeated",
    "fetch",
    "is_evaluation",
    "prepare",
    "print_summary",
    "progress_bar",
    "scan",
    "unpack",
    "write_all",
    "write_manifests",
    "write_summary",
]

COPY = "A"  # begins the name of a speaker of changed copies

OPENSLR = "https://www.openslr.org/resources"
SUBSET_URLS = {
    **dict.fromkeys(
        [
            "dev-clean",
            "dev-other",
            "test-clean",
            "test-other",
            "train-clean-100",
            "train-clean-360",
            "train-other-500",
        ],
        f"{OPENSLR}/12",
    ),
    **dict.fromkeys(["dev-clean-2", "train-clean-5"], f"{OPENSLR}/31"),  # mini LibriSpeech
}
# As published in md5sum.txt beside the archives.
SUBSET_MD5 = {
    "dev-clean": "42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-100": "2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "d1a0fd59409feb2c614ce4d30c387708",
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
}

_SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")
AUDIO_SUFFIXES = (*_SUFFIXES, *map(str.upper, _SUFFIXES))  # the first found is taken; the corpus itself is FLAC
ATTEMPTS = 3  # how often a broken connection is taken up again before giving up
RETRY_WAIT = 2.0  # seconds, times the number of the attempt
TIMEOUT = 60.0  # seconds without a byte before a connection counts as broken
CHUNK = 1 << 20  # bytes
LISTED = 20  # dropped utterances named on the screen a subset; summary.json names all of them


@dataclass(frozen=True)
class Utterance:
    """One usable utterance: readable audio and a transcript."""

    id: str
    speaker: str
    chapter: str  # "" where the layout has no such level
    text: str  # normalised: A-Z, apostrophe, single spaces
    path: Path  # absolute
    duration: float  # seconds
    sample_rate: int  # Hz
    original_text: str  # as in the transcript file

    @property
    def num_samples(self) -> int:
        return round(self.duration * self.sample_rate)


@dataclass(frozen=True)
class Dropped:
    """One utterance left out, and why."""

    id: str
    reason: str
    path: Path  # the audio file, or the transcript file where there is no audio


@dataclass(frozen=True)
class SubsetScan:
    """What one subset folder holds, sorted by id."""

    name: str
    utterances: list[Utterance]
    dropped: list[Dropped]

    @property
    def hours(self) -> float:
        return sum(utterance.duration for utterance in self.utterances) / 3600

    @property
    def speakers(self) -> set[str]:
        return {utterance.speaker for utterance in self.utterances}

    @property
    def characters(self) -> int:
        return sum(len(utterance.text) for utterance in self.utterances)


# --- scanning ---------------------------------------------------------------------------------------------------------


def scan(root: str | Path, subset: str, check: str = "full") -> SubsetScan:
    """Read one subset folder.

    root: the folder that holds `LibriSpeech/`, or the LibriSpeech folder itself
    check: "full" decodes every file and finds damaged ones; "header" trusts the header (much faster)

    Raises CorpusError where the folder is missing or nothing in it is usable.
    """
    if check not in ("full", "header"):
        raise ConfigError(f"corpus.check is {check!r}; it must be full or header")
    folder = _subset_folder(root, subset)
    transcripts, audio = _walk(folder)
    if not transcripts:
        raise CorpusError(f"no *.trans.txt below {folder}; expected <speaker>/<chapter>/<speaker>-<chapter>.trans.txt")

    dropped: list[Dropped] = []
    lines: dict[Path, list[_Line]] = defaultdict(list)  # by audio file
    for transcript in transcripts:
        for line in _read_transcript(transcript, folder):
            path = _find_audio(transcript.parent / line.id, audio)
            if path is None:
                dropped.append(Dropped(line.id, "audio is missing", transcript))
            else:
                lines[path].append(line)
    dropped += [Dropped(path.stem, "transcript is missing", path) for path in sorted(audio - set(lines))]

    candidates: dict[str, tuple[_Line, Path]] = {}
    for path, found in sorted(lines.items()):
        line = found[0]
        if len({other.text for other in found}) > 1:
            dropped += [Dropped(line.id, f"duplicate id, {len(found)} transcripts that differ", path)]
        elif line.text is None:
            dropped.append(Dropped(line.id, "transcript is not UTF-8 text", path))
        elif not normalize_text(line.text):
            dropped.append(Dropped(line.id, "transcript is empty", path))
        elif line.id in candidates:
            first = os.path.relpath(candidates[line.id][1], folder)
            dropped.append(Dropped(line.id, f"duplicate id, also {first}", path))
        else:
            candidates[line.id] = (line, path)
            if len(found) > 1:
                dropped.append(Dropped(line.id, f"duplicate id, {len(found)} equal lines, one is kept", path))

    utterances: list[Utterance] = []
    chosen = sorted(candidates.values(), key=lambda pair: pair[0].id)
    for (line, path), result in zip(chosen, _probe_all([path for _, path in chosen], check, subset), strict=True):
        if isinstance(result, str):
            dropped.append(Dropped(line.id, result, path))
            continue
        samples, rate = result
        original = line.text or ""
        utterances.append(
            Utterance(
                line.id, line.speaker, line.chapter, normalize_text(original), path, samples / rate, rate, original
            )
        )
    scanned = SubsetScan(subset, utterances, sorted(dropped, key=lambda d: (d.id, str(d.path))))
    if not utterances:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in _reasons(scanned).items())
        raise CorpusError(f"subset {subset} has no usable utterance: {reasons or 'its transcript files are blank'}")
    return scanned


@dataclass(frozen=True)
class _Line:
    """One line of a transcript file; text is None where its bytes are not UTF-8."""

    id: str
    text: str | None
    speaker: str
    chapter: str


def _corpus_folders(root: str | Path) -> list[Path]:
    """The folders that may hold subsets: root/LibriSpeech, root."""
    root = Path(os.path.abspath(Path(root).expanduser()))
    if not root.is_dir():
        setting = "corpus.root (of augment.py and splice.py: root)"
        raise CorpusError(f"no folder {root}; set {setting} to the folder that holds LibriSpeech/")
    return [folder for folder in (root / "LibriSpeech", root) if folder.is_dir()]


def _check_name(subset: str) -> None:
    if not subset or subset in (".", "..") or Path(subset).name != subset:
        raise ConfigError(f"{subset!r} is not the name of a subset, which is that of its folder")


def _subset_folder(root: str | Path, subset: str) -> Path:
    _check_name(subset)
    folders = _corpus_folders(root)
    for folder in folders:
        if (folder / subset).is_dir():
            return folder / subset
    there = ", ".join(available(root)) or "no subset at all"
    raise CorpusError(f"no subset {subset} in {folders[0]}; found there: {there}")


def available(root: str | Path) -> list[str]:
    """Names of the subset folders in root: those with a transcript file somewhere below."""
    folders = _corpus_folders(root)
    return sorted(
        {
            path.name
            for folder in folders
            for path in folder.iterdir()
            if path.is_dir() and path not in folders and next(path.rglob("*.trans.txt"), None) is not None
        }
    )


def _walk(folder: Path) -> tuple[list[Path], set[Path]]:
    """All transcript files (sorted) and all audio files below folder; links to folders are followed, loops are not."""
    transcripts: list[Path] = []
    audio: set[Path] = set()
    seen: set[str] = set()

    def stop(error: OSError) -> None:
        raise CorpusError(f"{error.filename}: cannot be read ({error.strerror}); give yourself access to the folder")

    for current, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        real = os.path.realpath(current)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            if name.startswith("."):
                continue  # left behind by other programs, e.g. ._x.flac on file systems that macOS wrote to
            if name.endswith(".trans.txt"):
                transcripts.append(Path(current, name))
            elif name.endswith(AUDIO_SUFFIXES):
                audio.add(Path(current, name))
    return sorted(transcripts), audio


def _find_audio(stem: Path, audio: set[Path]) -> Path | None:
    # Not with_suffix: an id may contain a dot.
    candidates = (stem.parent / (stem.name + suffix) for suffix in AUDIO_SUFFIXES)
    return next((path for path in candidates if path in audio), None)


def _read_transcript(path: Path, subset: Path) -> list[_Line]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from error
    parts = path.parent.relative_to(subset).parts
    lines = []
    for raw in content.removeprefix(b"\xef\xbb\xbf").splitlines():
        if not (fields := raw.split(maxsplit=1)):
            continue
        identity = fields[0].decode(errors="replace")
        try:
            text: str | None = fields[1].decode().strip() if len(fields) > 1 else ""
        except UnicodeDecodeError:
            text = None
        lines.append(_Line(identity, text, *_speaker_and_chapter(identity, parts, subset.name)))
    return lines


def _speaker_and_chapter(identity: str, parts: tuple[str, ...], subset: str) -> tuple[str, str]:
    """parts: the folders between the subset and the transcript file; two of them are the standard."""
    prefix, dash, _ = identity.partition("-")
    if len(parts) == 1:
        return parts[0], ""
    if not parts:
        return (prefix if dash else subset), ""
    return parts[-2], parts[-1]


def _probe_all(paths: Sequence[Path], check: str, name: str) -> list[tuple[int, int] | str]:
    """For each file (samples, rate), or what is wrong with it."""
    # Threads are enough: libsndfile decodes outside Python's lock.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool, progress_bar(MofNCompleteColumn()) as progress:
        task = progress.add_task(f"check {name}", total=len(paths))
        results = []
        try:
            for result in pool.map(lambda path: _probe(path, check), paths):
                results.append(result)
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def _probe(path: Path, check: str) -> tuple[int, int] | str:
    try:
        with soundfile.SoundFile(path) as file:
            if file.channels != 1:
                return f"audio has {file.channels} channels, expected 1"
            if file.frames <= 0:
                return "audio is empty"
            if check == "full":
                digest = hashlib.md5(usedforsecurity=False)
                decoded = 0
                while len(block := file.read(1 << 20, dtype="int16")):
                    decoded += len(block)
                    digest.update(block.astype("<i2", copy=False).tobytes())
                if decoded != file.frames:
                    return f"audio is corrupt: {decoded} of {file.frames} samples can be decoded"
                if file.format == "FLAC" and file.subtype == "PCM_16" and not _matches_flac(path, digest.digest()):
                    return "audio is corrupt: the samples do not match the checksum in the file"
            return int(file.frames), int(file.samplerate)
    except soundfile.LibsndfileError as error:
        return f"audio is corrupt: {error.error_string.removeprefix('Error : ').rstrip('.')}"
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        return f"audio cannot be read: {getattr(error, 'strerror', None) or error}"


def _matches_flac(path: Path, digest: bytes) -> bool:
    """Whether digest is the MD5 of the samples that the FLAC encoder noted; a file without one always matches."""
    # "fLaC", 4 bytes of block header, then STREAMINFO (always the first block), whose last 16 bytes are the MD5.
    with path.open("rb") as file:
        head = file.read(42)
    return head[:4] != b"fLaC" or head[26:42] in (bytes(16), digest)


# --- checks across subsets --------------------------------------------------------------------------------------------


def is_evaluation(subset: str, eval_subsets: Iterable[str] | None = None) -> bool:
    """Whether a subset is named in eval_subsets or, where that is None, is called dev*, test*, *-dev or *-test."""
    if eval_subsets is not None:
        return subset in set(eval_subsets)
    return subset.lower().startswith(("dev", "test")) or subset.lower().endswith(("-dev", "-test"))


def check_speakers(scans: Sequence[SubsetScan], eval_subsets: Iterable[str] | None = None) -> None:
    """Raise CorpusError where a speaker of an evaluation subset, or copies of one, stand in a training subset."""
    if eval_subsets is not None:
        eval_subsets = list(eval_subsets)
        if unknown := sorted(set(eval_subsets) - {scan.name for scan in scans}):
            raise ConfigError(f"corpus.eval_subsets names {', '.join(unknown)}, which corpus.subsets does not")
    training: dict[str, str] = {}
    for scan in scans:
        if not is_evaluation(scan.name, eval_subsets):
            for speaker in scan.speakers:
                training.setdefault(speaker, scan.name)
                if scan.name.endswith(("-augmented", "-spliced")):
                    training.setdefault(speaker.lstrip(COPY), scan.name)
    shared = [
        (speaker, training[speaker], scan.name)
        for scan in scans
        if is_evaluation(scan.name, eval_subsets)
        for speaker in sorted(scan.speakers & training.keys())
    ]
    if shared:
        speaker, train, evaluation = shared[0]
        more = f" (and {len(shared) - 1} more: {_some([s for s, _, _ in shared[1:]])})" if len(shared) > 1 else ""
        raise CorpusError(
            f"speaker {speaker} is in both {train} (training) and {evaluation} (evaluation){more}; "
            "leave one subset out of corpus.subsets, or set corpus.eval_subsets"
        )


def drop_repeated(scans: Sequence[SubsetScan], eval_subsets: Iterable[str] | None = None) -> list[SubsetScan]:
    """Leave an id that stands in several training subsets in the first of them only.

    Raises CorpusError where an evaluation subset has part in it: leaving utterances out would change its figures.
    """
    eval_subsets = None if eval_subsets is None else list(eval_subsets)
    first: dict[str, SubsetScan] = {}
    results = []
    for scan in scans:
        kept, dropped, spoiled = [], list(scan.dropped), []
        for utterance in scan.utterances:
            other = first.setdefault(utterance.id, scan)
            if other is scan:
                kept.append(utterance)
            elif is_evaluation(scan.name, eval_subsets) or is_evaluation(other.name, eval_subsets):
                spoiled.append((utterance.id, other.name))
            else:
                dropped.append(Dropped(utterance.id, f"duplicate id, also in {other.name}", utterance.path))
        if spoiled:
            identity, one = spoiled[0]
            more = f" (and {len(spoiled) - 1} more: {_some([i for i, _ in spoiled[1:]])})" if len(spoiled) > 1 else ""
            raise CorpusError(f"utterance {identity} is in both {one} and {scan.name}{more}; leave one subset out")
        if not kept:
            raise CorpusError(f"every utterance of {scan.name} is in the subsets before it; leave it out")
        results.append(SubsetScan(scan.name, kept, sorted(dropped, key=lambda d: (d.id, str(d.path)))))
    return results


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


# --- manifests --------------------------------------------------------------------------------------------------------


def write_manifests(scan: SubsetScan, output: str | Path) -> dict[str, Path]:
    """Write recordings, supervisions and cuts of one subset; returns their paths.

    Each cut is one whole utterance and has its id. The same scan gives the same bytes.
    """
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    recordings, supervisions, cuts = [], [], []
    for utterance in scan.utterances:
        recording = Recording(
            id=utterance.id,
            sources=[AudioSource(type="file", channels=[0], source=str(utterance.path))],
            sampling_rate=utterance.sample_rate,
            num_samples=utterance.num_samples,
            duration=utterance.duration,
        )
        changed = utterance.original_text != utterance.text
        supervision = SupervisionSegment(
            id=utterance.id,
            recording_id=utterance.id,
            start=0.0,
            duration=utterance.duration,
            channel=0,
            text=utterance.text,
            language="English",
            speaker=utterance.speaker,
            custom={"original_text": utterance.original_text} if changed else None,
        )
        cut = MonoCut(
            id=utterance.id,
            start=0.0,
            duration=utterance.duration,
            channel=0,
            supervisions=[supervision],
            recording=recording,
        )
        recordings.append(recording.to_dict())
        supervisions.append(supervision.to_dict())
        cuts.append(cut.to_dict())
    paths = {}
    for kind, items in (("recordings", recordings), ("supervisions", supervisions), ("cuts", cuts)):
        paths[kind] = output / f"{kind}_{scan.name}.jsonl.gz"
        _write_jsonl(paths[kind], items)
    return paths


def _write_jsonl(path: Path, items: Iterable[dict[str, Any]]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    # No name and no time in the gzip header, so that equal content means equal files.
    with temporary.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False).encode() + b"\n")
    os.replace(temporary, path)


def write_summary(scans: Sequence[SubsetScan], output: str | Path, eval_subsets: Iterable[str] | None = None) -> Path:
    """Write `summary.json`: figures and dropped utterances by subset.

    Subsets of earlier runs stay listed as long as their manifests are there.
    """
    path = Path(output) / "summary.json"
    eval_subsets = None if eval_subsets is None else list(eval_subsets)
    summary: dict[str, Any] = {}
    if path.is_file():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CorpusError(f"{path} is not readable JSON; delete it and run again") from error
        summary = {name: item for name, item in earlier.items() if (path.parent / f"cuts_{name}.jsonl.gz").is_file()}
    for scan in scans:
        summary[scan.name] = {
            "utterances": len(scan.utterances),
            "hours": round(scan.hours, 4),
            "speakers": len(scan.speakers),
            "characters": scan.characters,
            "evaluation": is_evaluation(scan.name, eval_subsets),
            "dropped": [{"id": d.id, "reason": d.reason, "path": str(d.path)} for d in scan.dropped],
        }
    temporary = path.with_name(".summary.json.tmp")
    temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def write_all(scans: Sequence[SubsetScan], output: str | Path, eval_subsets: Iterable[str] | None = None) -> None:
    """Manifests of every subset, then summary.json."""
    try:
        for scan in scans:
            write_manifests(scan, output)
        write_summary(scans, output, eval_subsets)
    except OSError as error:
        raise CorpusError(f"cannot write to {output}: {error.strerror or error}") from error


def _reasons(scan: SubsetScan) -> Counter[str]:
    """How often each reason; the part behind a colon or comma belongs to the single file."""
    return Counter(d.reason.partition(":")[0].partition(",")[0] for d in scan.dropped)


def print_summary(scans: Sequence[SubsetScan], output: str | Path, console: Console | None = None) -> None:
    """Print the table of all subsets, then name what was dropped."""
    console = console or Console(highlight=False)
    table = Table()
    table.add_column("subset", overflow="fold")
    for column in ("utterances", "hours", "speakers", "characters", "dropped"):
        table.add_column(column, justify="right")
    for scan in scans:
        table.add_row(
            scan.name,
            f"{len(scan.utterances):,}",
            f"{scan.hours:.2f}",
            f"{len(scan.speakers):,}",
            f"{scan.characters:,}",
            f"{len(scan.dropped):,}",
        )
    if len(scans) > 1:
        table.add_section()
        table.add_row(
            "total",
            f"{sum(len(scan.utterances) for scan in scans):,}",
            f"{sum(scan.hours for scan in scans):.2f}",
            f"{len(set().union(*(scan.speakers for scan in scans))):,}",
            f"{sum(scan.characters for scan in scans):,}",
            f"{sum(len(scan.dropped) for scan in scans):,}",
        )
    console.print(table)

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)  # names may hold brackets; lines stay whole for grep

    for scan in scans:
        if scan.dropped:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in _reasons(scan).most_common())
            say(f"{scan.name}: dropped {reasons}")
            for d in scan.dropped[:LISTED]:
                say(f"  {d.id}: {d.reason} ({d.path})")
            if len(scan.dropped) > LISTED:
                say(f"  ... and {len(scan.dropped) - LISTED} more, all in {Path(output) / 'summary.json'}")
    say(f"manifests: {output}")


def prepare(
    root: str | Path,
    subsets: Sequence[str] | str | None,
    output: str | Path,
    *,
    check: str = "full",
    eval_subsets: Sequence[str] | str | None = None,
    fetch_missing: bool = False,
    base_url: str | None = None,
    keep_archives: bool = False,
) -> list[SubsetScan]:
    """Scan subsets, check them against each other and write their manifests and summary.json into output.

    subsets: names; None takes every subset folder there is
    eval_subsets: which of them are evaluation sets; None goes by their names, see `is_evaluation`
    fetch_missing: download subsets that are not there
    Nothing is written unless every check passed.
    """
    if not isinstance(root, str | os.PathLike):
        raise ConfigError(f"corpus.root should be the folder that holds LibriSpeech/, not {root!r}")
    eval_subsets = None if eval_subsets is None else as_list(eval_subsets)
    if subsets is None:
        if fetch_missing:
            raise ConfigError("corpus.download=true needs names in corpus.subsets, e.g. [train-clean-5,dev-clean-2]")
        subsets = available(root)
    names = [subsets] if isinstance(subsets, str) else list(dict.fromkeys(str(name) for name in subsets))
    if not names:
        raise ConfigError(f"corpus.subsets is empty, or there is no subset in {root}")
    if fetch_missing:
        for name in names:
            download(name, root, base_url, keep_archive=keep_archives)
    for name in names:
        _subset_folder(root, name)  # a missing folder shows before minutes of checking, not after
    scans = [scan(root, name, check) for name in names]
    check_speakers(scans, eval_subsets)
    scans = drop_repeated(scans, eval_subsets)
    write_all(scans, output, eval_subsets)
    return scans


# --- download ---------------------------------------------------------------------------------------------------------


def download(subset: str, root: str | Path, base_url: str | None = None, *, keep_archive: bool = False) -> Path:
    """Fetch, verify and unpack one official subset, unless its folder is there; returns the folder.

    root: as for `scan`; made where missing. A download that was cut off goes on where it stopped.
    base_url: folder of a mirror that holds `<subset>.tar.gz`; checksums of subsets unknown here
        come from `md5sum.txt` in the same place
    """
    _check_name(subset)
    root = Path(os.path.abspath(Path(root).expanduser()))
    # Archives hold LibriSpeech/<subset>/..., so a root that is that folder itself unpacks one level up.
    parent = root.parent if root.name == "LibriSpeech" else root
    folder = parent / "LibriSpeech" / subset
    if folder.is_dir():
        return folder  # it was moved here in one step once unpacked, so it is complete
    if (root / subset).is_dir():
        return root / subset
    if base_url is None and subset not in SUBSET_URLS:
        raise CorpusError(f"no download known for {subset}; known: {', '.join(sorted(SUBSET_URLS))}")
    base = (base_url or SUBSET_URLS[subset]).rstrip("/")
    archive = parent / f"{subset}.tar.gz"
    md5 = SUBSET_MD5.get(subset) or _published_md5(f"{base}/md5sum.txt", archive.name)
    fetch(f"{base}/{archive.name}", archive, md5)
    with unpack(archive) as unpacked:
        source = unpacked / "LibriSpeech"
        if not (source / subset).is_dir():
            raise CorpusError(f"{archive} holds no folder LibriSpeech/{subset}; it is not the archive of {subset}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        for extra in source.iterdir():  # README.TXT, SPEAKERS.TXT, ...: the same in every archive
            if extra.is_file() and not (folder.parent / extra.name).exists():
                extra.rename(folder.parent / extra.name)
        (source / subset).rename(folder)
    if not keep_archive:
        archive.unlink()
    return folder


def _published_md5(url: str, name: str) -> str:
    try:
        with _open(url) as response:
            listing = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise CorpusError(f"no checksum of {name}: cannot read {url} ({_why(error)})") from error
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) == 2 and fields[1].lstrip("*").removeprefix("./") == name:
            return fields[0].lower()
    raise CorpusError(f"no checksum of {name} in {url}")


def fetch(url: str, path: Path, md5: str | None) -> Path:
    """Download url to path and compare its MD5 (None: not known); `<path>.partial` holds what came so far."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"cannot write to {path.parent}: {error.strerror or error}") from error
    if path.exists():
        if md5 and (found := _md5(path)) != md5:
            raise CorpusError(f"{path}: MD5 is {found}, expected {md5}; delete the file and run again")
        return path
    partial = path.with_name(path.name + ".partial")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, partial)
            break
        except urllib.error.HTTPError as error:
            raise CorpusError(f"cannot download {url}: HTTP {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS:
                have = partial.stat().st_size if partial.exists() else 0
                advice = f"{have:,} bytes are kept, run again to go on" if have else "check the connection and the URL"
                raise CorpusError(f"cannot download {url}: {_why(error)}; {advice}") from error
            time.sleep(RETRY_WAIT * attempt)
    if md5 and (found := _md5(partial)) != md5:
        partial.unlink()  # going on from a damaged file would never succeed
        raise CorpusError(
            f"{path.name} from {url}: MD5 is {found}, expected {md5}; "
            "the damaged file was removed, run again or set corpus.base_url to another mirror"
        )
    os.replace(partial, path)
    return path


def _open(url: str, start: int = 0) -> http.client.HTTPResponse:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url} is not an http(s) address")
    request = urllib.request.Request(url, headers={"User-Agent": "asr", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _transfer(url: str, partial: Path) -> None:
    """One attempt: append to partial what is still missing. Raises OSError where the connection breaks."""
    start = partial.stat().st_size if partial.exists() else 0
    try:
        response = _open(url, start)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(start):
            return  # nothing was missing; the checksum has the last word
        partial.unlink()  # longer than the file on the server: not a part of it
        start, response = 0, _open(url)
    with response:
        if response.status != 206 or not (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            if start and response.status == 206:
                raise OSError(f"the server answered with the wrong range {response.headers.get('Content-Range')}")
            start = 0  # the server does not know Range and sends all of it
        length = response.headers.get("Content-Length")
        total_bytes = None if length is None else start + int(length)
        columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with partial.open("ab" if start else "wb") as file, progress_bar(*columns) as progress:
            task = progress.add_task(partial.name.removesuffix(".partial"), total=total_bytes, completed=start)
            # read1: what has come is written at once, so that a break loses nothing
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
        have = partial.stat().st_size
        if total_bytes is not None and have < total_bytes:
            raise OSError(f"the connection broke after {have:,} of {total_bytes:,} bytes")


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, progress_bar(DownloadColumn()) as progress:
        task = progress.add_task(f"verify {path.name.removesuffix('.partial')}", total=path.stat().st_size)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()


@contextmanager
def unpack(archive: Path) -> Iterator[Path]:
    """The folder that archive was unpacked into, beside it; it goes away at the end.

    Members that point outside the folder, devices and the like are refused.
    """
    folder = archive.with_name(f".unpacking-{archive.name}")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        folder.mkdir(parents=True)
        _extract(archive, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with progress_bar(DownloadColumn()) as progress:
            task = progress.add_task(f"unpack {archive.name}", total=archive.stat().st_size)
            with progress.open(archive, "rb", task_id=task) as raw, tarfile.open(fileobj=raw, mode="r:gz") as tar:
                _extract_all(tar, folder, archive)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CorpusError(f"{archive} is damaged ({error}); delete it and run again") from error
    except OSError as error:
        raise CorpusError(f"cannot unpack {archive}: {error.strerror or error}") from error


def _extract_all(tar: tarfile.TarFile, folder: Path, archive: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        try:
            tar.extractall(folder, filter="data")
        except tarfile.FilterError as error:
            raise CorpusError(f"{archive} is not safe to unpack: {error}") from error
        return
    for member in tar:  # Python before 3.11.4
        inside = not os.path.isabs(member.name) and ".." not in Path(member.name).parts
        if not (inside and (member.isfile() or member.isdir())):
            raise CorpusError(f"{archive} is not safe to unpack: {member.name!r} is a link, or outside its folder")
        tar.extract(member, folder)


def progress_bar(*columns: Any) -> Progress:
    """A bar on stderr with these columns after it; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

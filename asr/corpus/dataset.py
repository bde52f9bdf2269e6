"""Manifests -> padded batches: one plan an epoch, features computed once and memory-mapped."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np
import torch
from filelock import FileLock
from lhotse import CutSet
from lhotse.cut import MonoCut
from lhotse.dataset import DynamicBucketingSampler, SimpleCutSampler
from lhotse.dataset.sampling.base import CutSampler
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from asr.config import as_list
from asr.errors import CorpusError
from asr.frontend import FrontendConfig, LogMel, Normalizer
from asr.tokenizer import CharTokenizer
from asr.writers import write_atomically

__all__ = [
    "Batch",
    "BatchLoader",
    "FeatureCache",
    "FrameSource",
    "JoinedCaches",
    "Portion",
    "SpeechDataset",
    "audio_path",
    "audio_stamp",
    "default_workers",
    "draw_epoch",
    "load_cuts",
    "load_samples",
    "plan_epoch",
    "split_trainable",
]

Key = tuple[str, float]  # utterance id, speed factor


@dataclass  # not frozen: Lightning moves its tensors to the device in place
class Batch:
    """One padded batch. Characters begin with BOS and end with EOS; padding is 0 everywhere."""

    ids: list[str]
    texts: list[str]
    frames: Tensor  # (B, T, n_mels) log-mel, not normalised
    lengths: Tensor  # (B,)
    characters: Tensor  # (B, U + 2)
    character_lengths: Tensor  # (B,) without BOS and EOS

    def twice(self) -> Batch:
        """All rows and then all of them again, with ids and texts as they were."""
        frames, lengths, characters, character_lengths = (
            torch.cat([x, x]) for x in (self.frames, self.lengths, self.characters, self.character_lengths)
        )
        return Batch(self.ids, self.texts, frames, lengths, characters, character_lengths)


def load_cuts(manifests: str | Path, subsets: Sequence[str] | str) -> list[MonoCut]:
    """Cuts of the named subsets from a folder that `prepare.py` wrote."""
    cuts: list[MonoCut] = []
    for subset in as_list(subsets):
        path = Path(manifests) / f"cuts_{subset}.jsonl.gz"
        if not path.is_file():
            have = sorted(p.name[len("cuts_") : -len(".jsonl.gz")] for p in Path(manifests).glob("cuts_*.jsonl.gz"))
            raise CorpusError(f"{path}: no such manifest; run prepare.py first (here: {', '.join(have) or 'none'})")
        try:
            found = list(CutSet.from_file(path).to_eager())
            if not all(isinstance(cut, MonoCut) and cut.has_recording for cut in found):
                raise TypeError("it holds other things than cuts of recordings")
        except Exception as error:  # gzip, JSON and lhotse each have their own
            what = " ".join(str(error).split())[:200]
            raise CorpusError(f"{path}: not a readable cut manifest ({what}); run prepare.py again") from error
        cuts.extend(found)
    return cuts


def cut_text(cut: MonoCut) -> str:
    return " ".join(s.text for s in cut.supervisions)


def audio_path(cut: MonoCut) -> str:
    return str(cut.recording.sources[0].source)


def load_samples(cut: MonoCut, rate: int, speed: float = 1.0) -> NDArray[np.float32]:
    """(T,) of an utterance at `rate` Hz, spoken so many times as fast; CorpusError where its file cannot be read."""
    path = audio_path(cut)
    cut = cut if speed == 1.0 else cut.perturb_speed(speed)
    if cut.sampling_rate != rate:
        cut = cut.resample(rate)
    try:
        samples: NDArray[np.float32] = cut.load_audio()[0]
    except Exception as error:  # libsndfile, lhotse and operating system each have their own
        what = " ".join(str(error).split())[:120]
        raise CorpusError(f"{path}: cannot be read ({what}); run prepare.py again") from error
    return samples


def audio_stamp(cuts: Sequence[MonoCut]) -> str | None:
    """Changes when a file is replaced: a digest of all sizes and times; None where one is not there."""
    digest = hashlib.sha1(usedforsecurity=False)
    try:
        for cut in cuts:
            status = os.stat(audio_path(cut))
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError:
        return None
    return digest.hexdigest()


def split_trainable(
    cuts: Sequence[MonoCut],
    tokenizer: CharTokenizer,
    reduction: int,
    max_duration: float,
    fastest: float = 1.0,
    hop: float = 0.01,
) -> tuple[list[MonoCut], list[tuple[str, str]]]:
    """Cuts that can be trained on, and (id, reason) of the others.

    CTC needs an encoder state, `reduction` frames of `hop` seconds, for every character and one more between two
    equal ones; `fastest` is the highest speed factor, at which they are fewest.
    """
    kept, dropped = [], []
    for cut in cuts:
        ids = tokenizer.encode(cut_text(cut))
        needed = len(ids) + sum(a == b for a, b in itertools.pairwise(ids))
        have = int(cut.duration / fastest / hop + 1e-6) // reduction  # 0.3 / 0.01 is a little below 30
        if cut.duration > max_duration:
            dropped.append((cut.id, f"longer than {max_duration:g} s: {cut.duration:.1f} s"))
        elif not ids:
            dropped.append((cut.id, "empty transcript"))
        elif needed > have:
            dropped.append((cut.id, f"{needed} characters for CTC, but only {have} encoder frames"))
        else:
            kept.append(cut)
    return kept, dropped


@dataclass(frozen=True)
class Portion:
    """Cuts that epochs take alike."""

    cuts: Sequence[MonoCut]
    speeds: Sequence[float] = (1.0,)  # each utterance, each epoch, at one of these
    share: float = 1.0  # of the cuts, in an epoch


def draw_epoch(portions: Sequence[Portion], *, epoch: int, seed: int) -> list[tuple[MonoCut, float]]:
    """What one epoch hears, in random order: each portion's share of its cuts, each once and at a speed of its own.

    It depends on the arguments alone, so a resumed run and every process of a distributed one derive the same.
    """
    rng = random.Random(f"{seed}-{epoch}")
    drawn: list[tuple[MonoCut, float]] = []
    for portion in portions:
        cuts, count = portion.cuts, max(1, round(portion.share * len(portion.cuts)))
        chosen = cuts if count >= len(cuts) else rng.sample(cuts, count)
        drawn += [(cut, rng.choice(portion.speeds)) for cut in chosen]
    rng.shuffle(drawn)  # the sampler below does not look ahead through more than 20,000
    return drawn


def plan_epoch(
    portions: Sequence[Portion],
    *,
    epoch: int,
    seed: int,
    batch_seconds: float,
    ascending: bool = False,
    longest_first: bool = False,
) -> list[list[Key]]:
    """The batches of what `draw_epoch` draws, in buckets of like duration; they too depend on the arguments alone.

    Batches whose longest utterances are alike stand together, four by four: processes that take a step together then
    wait less for each other, as a step takes as long as its longest utterance. `ascending` orders all batches from
    short to long; `longest_first` moves the largest to the front all the same, where running out of memory shows at
    once.
    """
    keys: dict[str, Key] = {}
    perturbed = []
    for cut, speed in draw_epoch(portions, epoch=epoch, seed=seed):
        changed = cut if speed == 1.0 else cut.perturb_speed(speed)
        keys[changed.id] = (cut.id, speed)
        perturbed.append(changed)
    # Batches are dealt out to processes by BatchLoader, so the sampler is told that there is only one.
    options: dict[str, Any] = {"max_duration": batch_seconds, "shuffle": True, "seed": seed + epoch}
    options |= {"world_size": 1, "rank": 0}
    if len(perturbed) < 40:  # too few for buckets
        sampler: CutSampler = SimpleCutSampler(CutSet.from_cuts(perturbed), **options)
    else:
        sampler = DynamicBucketingSampler(CutSet.from_cuts(perturbed), num_buckets=min(30, len(keys) // 20), **options)
    batches = sorted((list(batch) for batch in sampler), key=lambda batch: max(cut.duration for cut in batch))
    if not ascending:
        together = [batches[i : i + 4] for i in range(0, len(batches), 4)]
        random.Random(f"{seed}-{epoch}").shuffle(together)
        batches = [batch for four in together for batch in four]
    if longest_first and batches:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]) * max(c.duration for c in batches[i]))
        batches.insert(0, batches.pop(largest))
    return [[keys[cut.id] for cut in batch] for batch in batches]


class Features(Protocol):
    """Where the frames of utterances come from."""

    def frames(self, key: Key) -> np.ndarray:
        """(T, n_mels) of an utterance at a speed."""
        ...


class FrameSource(Dataset[np.ndarray]):
    """Features computed from the audio: what the cache is filled from, and what there is without one."""

    def __init__(self, cuts: Sequence[MonoCut], keys: Sequence[Key], frontend: FrontendConfig) -> None:
        self.cuts = {cut.id: cut for cut in cuts}
        self.keys = keys
        self.frontend = frontend
        self.log_mel = LogMel(frontend)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.frames(self.keys[index]).astype(np.float16)

    def frames(self, key: Key) -> np.ndarray:
        """(T, n_mels) float32 of an utterance at a speed."""
        cut_id, speed = key
        samples = load_samples(self.cuts[cut_id], self.frontend.sample_rate, speed)
        return self.log_mel(torch.from_numpy(samples)).numpy()

    def fit_normalizer(self, normalizer: Normalizer, workers: int | None = None) -> None:
        """Global mean and variance over the keys."""
        _fit(normalizer, self.frontend.n_mels, _loaded(self, workers))


def _loaded(source: Dataset[np.ndarray], workers: int | None) -> Iterator[np.ndarray]:
    """The frames of each key, computed by `workers` processes (None: one a processor, at most 8)."""
    loader: DataLoader[np.ndarray] = DataLoader(
        source,
        batch_size=None,
        num_workers=default_workers() if workers is None else workers,
        collate_fn=_as_is,
        worker_init_fn=_one_thread,
    )
    with _one_line():
        yield from loader


@contextmanager
def _one_line() -> Iterator[None]:
    """From a worker, an error comes wrapped in the text of a traceback, whose last line it is."""
    try:
        yield
    except CorpusError as error:
        raise CorpusError(str(error).strip().splitlines()[-1].split("CorpusError: ")[-1]) from error


def default_workers(trainers: int = 1) -> int:
    """Processes that compute features for each of so many that train here: one a processor in all, at most 8 each."""
    return max(1, min((os.cpu_count() or 1) // trainers, 8))


def _fit(normalizer: Normalizer, n_mels: int, utterances: Iterable[np.ndarray]) -> None:
    count, total, squares = 0, np.zeros(n_mels), np.zeros(n_mels)
    for frames in utterances:
        frames = frames.astype(np.float64)
        count += len(frames)
        total += frames.sum(0)
        squares += (frames**2).sum(0)
    normalizer.set_statistics(count, torch.from_numpy(total), torch.from_numpy(squares))


NOTED_TOGETHER = 1000  # utterances whose features are on the disk before the list says so


def _read_index(folder: Path, stamp: str | None) -> dict[str, Any] | None:
    """The index of a cache; None where there is none, or it is damaged, or about audio that is no longer there.

    stamp: of the audio now; None, with files missing, fits whatever is there
    """
    try:
        index: dict[str, Any] = json.loads((folder / "index.json").read_text())
        *_, (_, _, offset, count) = index["entries"]
        size = (folder / "features.f16").stat().st_size
        whole = size == (offset + count) * index["n_mels"] * np.dtype(np.float16).itemsize
        then = index.get("audio", stamp)  # caches did not always have it
    except (OSError, ValueError, KeyError, TypeError):
        return None
    fits = None in (then, stamp) or then == stamp
    return index if whole and fits else None


def _gone_on_from(partial: Path, listing: Path, about: Mapping[str, Any], keys: Sequence[Key]) -> list[list[Any]]:
    """What an earlier try noted that is there, with all after it cut off; a new listing where there is nothing."""
    entries: list[list[Any]] = []
    frame = about["n_mels"] * np.dtype(np.float16).itemsize
    have = partial.stat().st_size if partial.is_file() else 0
    try:
        head, *noted = listing.read_text().splitlines()
        if json.loads(head) == about and about["audio"] is not None:
            for line, key in zip(noted, keys, strict=False):
                entry = json.loads(line)
                if tuple(entry[:2]) != key or (entry[2] + entry[3]) * frame > have:
                    break
                entries.append(entry)
    except (OSError, ValueError, TypeError, IndexError):  # there is none, or a power cut has cut it off
        pass
    with open(partial, "ab") as file:
        file.truncate((entries[-1][2] + entries[-1][3]) * frame if entries else 0)
    with write_atomically(listing) as file:
        file.writelines(json.dumps(line) + "\n" for line in (about, *entries))
    return entries


def _note(file: BinaryIO, lines: TextIO, entries: Sequence[list[Any]], noted: int) -> int:
    """List the entries from `noted` on, whose features are in `file`; how many are listed then."""
    file.flush()
    os.fsync(file.fileno())
    lines.writelines(json.dumps(entry) + "\n" for entry in entries[noted:])
    lines.flush()
    return len(entries)


class FeatureCache:
    """Log-mel frames of many utterances in one memory-mapped fp16 file, at every speed they are trained at."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        self.folder = folder
        self.index: dict[Key, tuple[int, int]] = {(i, s): (offset, n) for i, s, offset, n in index["entries"]}
        self.n_mels: int = index["n_mels"]
        self._data = np.memmap(folder / "features.f16", np.float16, "r").reshape(-1, self.n_mels)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        cuts: Sequence[MonoCut],
        speeds: Sequence[float] = (1.0,),
        frontend: FrontendConfig | None = None,
        workers: int | None = None,
    ) -> FeatureCache:
        """The cache of exactly these cuts, speeds and settings under `folder`, filled now if it is not there."""
        frontend = frontend or FrontendConfig()
        keys = _all_keys(cuts, speeds)
        target = cls._folder(folder, cuts, keys, frontend)
        stamp = audio_stamp(cuts)
        if not (index := _read_index(target, stamp)):
            target.mkdir(parents=True, exist_ok=True)
            with FileLock(target / "lock"):  # of the processes of one run, the first fills it and the others wait
                if not (index := _read_index(target, stamp)):
                    index = cls._fill(target, FrameSource(cuts, keys, frontend), stamp, workers)
        return cls(target, index)

    @classmethod
    def missing_bytes(
        cls, folder: str | Path, cuts: Sequence[MonoCut], speeds: Sequence[float], frontend: FrontendConfig
    ) -> int:
        """What `open` with these arguments will write, about; 0 where the cache is there."""
        target = cls._folder(folder, cuts, _all_keys(cuts, speeds), frontend)
        if _read_index(target, audio_stamp(cuts)):
            return 0
        partial = target / "features.f16.partial"
        there = partial.stat().st_size if partial.is_file() else 0
        frames = sum(cut.duration / speed for speed in speeds for cut in cuts) / frontend.hop
        return max(0, round(frames * frontend.n_mels * np.dtype(np.float16).itemsize) - there)

    @staticmethod
    def _folder(folder: str | Path, cuts: Sequence[MonoCut], keys: Sequence[Key], frontend: FrontendConfig) -> Path:
        features = {k: v for k, v in asdict(frontend).items() if k != "mean_prior"}  # which is about normalisation
        places = [(c.duration, audio_path(c), *([c.start] if c.start else [])) for c in cuts]
        described = json.dumps([features, keys, places])
        return Path(folder) / f"features-{hashlib.sha1(described.encode()).hexdigest()[:12]}"

    @staticmethod
    def _fill(target: Path, source: FrameSource, stamp: str | None, workers: int | None) -> dict[str, Any]:
        """Write features and index, from where an earlier try was stopped; returns the index."""
        from rich.progress import Progress

        n_mels, keys = source.frontend.n_mels, source.keys
        partial, listing = target / "features.f16.partial", target / "index.jsonl.partial"
        try:
            entries = _gone_on_from(partial, listing, {"n_mels": n_mels, "audio": stamp}, keys)
            offset = entries[-1][2] + entries[-1][3] if entries else 0
            left = Subset(source, range(len(entries), len(keys)))
            with open(partial, "ab") as file, open(listing, "a") as lines, Progress(transient=True) as progress:
                task = progress.add_task("computing features", total=len(keys), completed=len(entries))
                noted = len(entries)
                try:
                    for key, frames in zip(keys[len(entries) :], _loaded(left, workers), strict=True):
                        file.write(frames.tobytes())
                        entries.append([*key, offset, len(frames)])
                        offset += len(frames)
                        progress.advance(task)
                        if len(entries) - noted >= NOTED_TOGETHER:
                            noted = _note(file, lines, entries, noted)
                finally:
                    _note(file, lines, entries, noted)
        except OSError as error:
            raise CorpusError(
                f"{partial}: cannot write features ({error.strerror}); free space there, and it goes on from here"
            ) from error
        partial.rename(target / "features.f16")
        index = {"n_mels": n_mels, "audio": stamp, "entries": entries}
        with write_atomically(target / "index.json") as file:
            json.dump(index, file)
        listing.unlink()
        return index

    def frames(self, key: Key) -> np.ndarray:
        """(T, n_mels) fp16 view into the file."""
        offset, count = self.index[key]
        return self._data[offset : offset + count]

    def fit_normalizer(self, normalizer: Normalizer, ids: Sequence[str]) -> None:
        """Global mean and variance over the utterances `ids` at speed 1."""
        _fit(normalizer, self.n_mels, (self.frames((cut_id, 1.0)) for cut_id in ids))


class JoinedCaches:
    """Several caches as one."""

    def __init__(self, caches: Sequence[FeatureCache]) -> None:
        self.caches = {key: cache for cache in caches for key in cache.index}
        self.n_mels = caches[0].n_mels

    def frames(self, key: Key) -> np.ndarray:
        """(T, n_mels) fp16 view into a file."""
        return self.caches[key].frames(key)

    def fit_normalizer(self, normalizer: Normalizer, ids: Sequence[str]) -> None:
        """Global mean and variance over the utterances `ids` at speed 1."""
        _fit(normalizer, self.n_mels, (self.frames((cut_id, 1.0)) for cut_id in ids))


def _all_keys(cuts: Sequence[MonoCut], speeds: Sequence[float]) -> list[Key]:
    return [(cut.id, float(speed)) for speed in speeds for cut in cuts]


def _as_is(item: Any) -> Any:
    return item


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


class SpeechDataset(Dataset[Batch]):
    """Lists of keys -> batches, from a cache or, without one, from the audio."""

    def __init__(
        self, cuts: Sequence[MonoCut], tokenizer: CharTokenizer, features: Features | None = None,
        frontend: FrontendConfig | None = None,
    ) -> None:  # fmt: skip
        self.texts = {cut.id: cut_text(cut) for cut in cuts}
        self.tokenizer = tokenizer
        self.features: Features = features or FrameSource(cuts, [], frontend or FrontendConfig())

    def __getitem__(self, keys: Sequence[Key]) -> Batch:
        frames = [self.features.frames(key) for key in keys]
        texts = [self.texts[cut_id] for cut_id, _ in keys]
        characters = [self.tokenizer.encode(text) for text in texts]
        batch, time = len(keys), max(map(len, frames))
        padded = np.zeros((batch, time, frames[0].shape[1]), np.float32)
        targets = torch.zeros(batch, max(map(len, characters)) + 2, dtype=torch.long)
        for i, (row, ids) in enumerate(zip(frames, characters, strict=True)):
            padded[i, : len(row)] = row
            targets[i, : len(ids) + 2] = torch.tensor([self.tokenizer.bos_id, *ids, self.tokenizer.eos_id])
        return Batch(
            ids=[cut_id for cut_id, _ in keys],
            texts=texts,
            frames=torch.from_numpy(padded),
            lengths=torch.tensor([len(row) for row in frames]),
            characters=targets,
            character_lengths=torch.tensor([len(ids) for ids in characters]),
        )


class BatchLoader(DataLoader):
    """A DataLoader over a fixed plan that can go on from the middle of it.

    Its state is the number of batches handed out by all processes, so that it holds for another number of them too;
    Lightning saves it with a checkpoint and gives it back.
    """

    def __init__(
        self, dataset: SpeechDataset, plan: Sequence[Sequence[Key]], rank: int = 0, world_size: int = 1, **options: Any
    ) -> None:
        # Every process gets as many batches as the others, or gradients would wait for each other for ever.
        rounds = -(-len(plan) // world_size)
        self.plan = [plan[i % len(plan)] for i in range(rank, rounds * world_size, world_size)]
        self.world_size = world_size
        self.position = 0
        super().__init__(
            dataset,
            batch_size=None,
            sampler=_Remaining(self),
            collate_fn=_as_is,
            worker_init_fn=_one_thread,
            **options,
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with _one_line():
            for batch in super().__iter__():
                self.position += 1
                yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        over = self.position >= len(self.plan)  # then it is the next epoch's start
        return {"position": 0 if over else self.position * self.world_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"] // self.world_size % len(self.plan)


class _Remaining:
    """Sampler over what a loader has not handed out yet."""

    def __init__(self, loader: BatchLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Sequence[Key]]:
        return iter(self.loader.plan[self.loader.position :])

    def __len__(self) -> int:
        return len(self.loader.plan)

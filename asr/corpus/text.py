"""Text for a language model: any files of sentences -> normalised, shuffled, memory-mapped character ids.

A prepared folder holds `train.ids` and `held_out.ids`, one byte an id, every sentence as `BOS characters EOS`, and
`text.json`, which says what they were made of and what was dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from asr.config import as_list, check_kinds
from asr.errors import AsrError, ConfigError, CorpusError
from asr.tokenizer import CharTokenizer, normalize_text
from asr.writers import write_atomically

__all__ = ["PreparedText", "TextSummary", "prepare_text", "read_sentences", "word_ngrams"]

FORMAT = 1
PARTS = ("train", "held_out")
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}
_NORMAL = re.compile(r"[A-Z]+(?:[' ][A-Z]+)*")  # nothing for normalize_text to do, which is slow
_TRN_ID = re.compile(r"\s*\([^()\s]+\)\s*$")
_SHARES = 10_000  # the finest share of sentences that can be held out is one of these


@dataclass
class TextSummary:
    """What `prepare_text` read, kept and dropped."""

    sentences: dict[str, int] = field(default_factory=dict)  # by part
    characters: dict[str, int] = field(default_factory=dict)  # by part, without BOS and EOS
    dropped: dict[str, int] = field(default_factory=dict)  # sentences by reason
    read: int = 0  # sentences
    ngrams: int = 0  # distinct ones of the evaluation transcripts

    def __str__(self) -> str:
        kept = ", ".join(f"{part} {self.sentences[part]:,} ({self.characters[part]:,} characters)" for part in PARTS)
        lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items())) or "none"
        return f"{self.read:,} sentences read; kept: {kept}; dropped: {lost}"


def read_sentences(path: str | Path) -> Iterator[str]:
    """The lines of a text, as they stand there; a folder stands for its transcripts or, without any, its texts.

    Any file may be compressed (`.xz`, `.gz`). What names the utterance goes: the first column of LibriSpeech's
    `*.trans.txt`, NIST's `(ID)` at the end of the lines of a `*.trn`, and all but the text of lhotse's
    `supervisions_*.jsonl`, which `prepare.py` of a corpus writes.

    Raises:
        CorpusError: there is no such file or folder, or it cannot be read.
    """
    for file in _files(Path(path)):
        name = file.name.removesuffix(file.suffix) if file.suffix in _OPENERS else file.name
        try:
            with _open(file) as lines:
                for raw in lines:
                    if 4 * raw.count(0) > len(raw):
                        raise CorpusError(f"{file}: is no UTF-8 text, perhaps UTF-16; save it as UTF-8")
                    yield _said(name, raw.decode("utf-8", errors="replace").strip())
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{file}: a line is no JSON with a text; name a supervisions_*.jsonl.gz") from error
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            detail = getattr(error, "strerror", None) or error
            raise CorpusError(f"{file}: cannot be read ({detail}); copy it again") from error


def _said(name: str, line: str) -> str:
    """A line of a file of that name, without what names the utterance."""
    if name.endswith(".trans.txt"):
        return "".join(line.split(maxsplit=1)[1:])
    if name.endswith(".trn"):
        return _TRN_ID.sub("", line)
    if name.endswith(".jsonl"):
        return str(json.loads(line)["text"])
    return line


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CorpusError(f"{path}: no such text file or folder")
    for pattern in ("*.trans.txt", "*.trn", "*.txt"):
        if found := sorted(p for end in ("", *_OPENERS) for p in path.rglob(pattern + end)):
            return found
    raise CorpusError(f"{path}: holds neither *.trans.txt, *.trn nor *.txt")


def _open(path: Path) -> IO[bytes]:
    return _OPENERS.get(path.suffix, open)(path, "rb")  # type: ignore[operator]


def normalized(line: str) -> str:
    """`normalize_text`, at once where the line is normal already."""
    return line if _NORMAL.fullmatch(line) else normalize_text(line)


def word_ngrams(sentences: Iterable[str], n: int) -> set[str]:
    """Every `n` words in a row of normalised text, across the ends of its sentences too."""
    words = " ".join(sentences).split()
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


class _Ids:
    """Sentences as bytes of ids, in memory until they are shuffled."""

    def __init__(self) -> None:
        self.ids = bytearray()
        self.lengths = array("I")

    def append(self, ids: bytes) -> None:
        self.ids += ids
        self.lengths.append(len(ids))

    def write(self, path: Path, order: NDArray[np.int64]) -> None:
        ids = memoryview(self.ids)
        lengths = np.array(self.lengths, dtype=np.int64)
        ends = np.cumsum(lengths)
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb", buffering=1 << 20) as file:
            for start, end in zip((ends - lengths)[order].tolist(), ends[order].tolist(), strict=True):
                file.write(ids[start:end])
        os.replace(partial, path)


def prepare_text(
    texts: Sequence[str | Path] | str | Path,
    output: str | Path,
    *,
    overlap_with: Sequence[str | Path] | str | Path = (),
    ngram: int = 8,
    on_overlap: str = "drop",
    held_out: float = 0.01,
    max_characters: int = 2000,
    seed: int = 1,
    tokenizer: CharTokenizer | None = None,
) -> TextSummary:
    """Make a folder that `PreparedText` opens.

    A sentence is held out by a checksum of its characters: the same ones always, wherever they are read, and no
    sentence on both sides. Repeats of a sentence of `ngram` words or more are dropped; of shorter ones, everybody says
    the same. The text is held in memory once, one byte a character.

    Args:
        texts: files or folders, one sentence a line (see `read_sentences`).
        output: the folder to write.
        overlap_with: transcripts that the model is to be measured on; sentences that share any `ngram` words in a
            row with them are not learned from.
        ngram: words.
        on_overlap: "drop" such sentences and count them, or "stop" at the first.
        held_out: share of the sentences kept apart to measure bits per character on.
        max_characters: longer lines are dropped: they are no sentences.
        seed: of the shuffling.
        tokenizer: the speller's.

    Raises:
        CorpusError: a text is missing or cannot be read, overlaps, or nothing is left of them.
        ConfigError: a setting cannot work.
    """
    kinds = {"ngram": int, "held_out": float, "max_characters": int, "seed": int}
    check_kinds({"ngram": ngram, "held_out": held_out, "max_characters": max_characters, "seed": seed}, kinds)
    texts, overlap_with = as_list(texts), as_list(overlap_with)
    if not texts:
        raise ConfigError("text: nothing to read; give text=[FILE,FOLDER,...]")
    if on_overlap not in ("drop", "stop"):
        raise ConfigError(f"on_overlap must be drop or stop; got {on_overlap!r}")
    if not 1 / _SHARES <= held_out < 1:
        raise ConfigError(f"held_out must be a share of the sentences, {1 / _SHARES} or more and below 1")
    if ngram < 1:
        raise ConfigError(f"ngram must be 1 or more words; got {ngram}")
    check_kinds({"seed": seed}, {"seed": int})
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more; got {seed}")
    tokenizer = tokenizer or CharTokenizer()
    ngrams: set[str] = set()
    for path in overlap_with:
        for file in _files(Path(path)):
            ngrams |= word_ngrams(map(normalized, read_sentences(file)), ngram)
    parts = {part: _Ids() for part in PARTS}
    summary = TextSummary(ngrams=len(ngrams))
    dropped: Counter[str] = Counter()
    seen: set[bytes] = set()
    for path in texts:
        for line in read_sentences(path):
            summary.read += 1
            sentence = normalized(line)
            words = sentence.split(" ")
            if not sentence:
                dropped["empty"] += 1
            elif "\ufffd" in line:
                dropped["not UTF-8"] += 1
            elif len(sentence) > max_characters:
                dropped["too long"] += 1
            elif any(" ".join(words[i : i + ngram]) in ngrams for i in range(len(words) - ngram + 1) if ngrams):
                if on_overlap == "stop":
                    raise CorpusError(
                        f"{path}: shares {ngram} words in a row with the evaluation transcripts: {sentence[:80]!r}; "
                        "leave it out, or on_overlap=drop"
                    )
                dropped[f"sharing {ngram} words in a row with overlap_with"] += 1
            else:
                digest = hashlib.blake2b(sentence.encode(), digest_size=8).digest()
                if digest in seen and len(words) >= ngram:
                    dropped["repeated"] += 1
                    continue
                seen.add(digest)
                share = int.from_bytes(digest) % _SHARES
                part = "held_out" if share < round(held_out * _SHARES) else "train"
                parts[part].append(bytes([tokenizer.bos_id, *tokenizer.encode(sentence), tokenizer.eos_id]))
    summary.dropped = dict(dropped)
    for part, text in parts.items():
        if not text.lengths:
            raise CorpusError(f"{', '.join(map(str, texts))}: no sentence is left for {part} ({summary.read} read)")
        summary.sentences[part] = len(text.lengths)
        summary.characters[part] = len(text.ids) - 2 * len(text.lengths)
    output, rng = Path(output), np.random.default_rng(seed)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "text.json").unlink(missing_ok=True)  # until all is there, nothing is
        for part, text in parts.items():
            text.write(output / f"{part}.ids", rng.permutation(len(text.lengths)))
    except OSError as error:
        raise AsrError(f"{output}: cannot be written ({error.strerror or error})") from error
    about = {
        "format": FORMAT,
        "tokenizer": {"characters": tokenizer.characters},
        "texts": [str(path) for path in texts],
        "overlap_with": [str(path) for path in overlap_with],
        "ngram": ngram,
        "evaluation_ngrams": summary.ngrams,
        "seed": seed,
        "read": summary.read,
        "sentences": summary.sentences,
        "characters": summary.characters,
        "dropped": summary.dropped,
    }
    with write_atomically(output / "text.json") as out:
        out.write(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return summary


class PreparedText:
    """One part of a prepared text, read from the disk as it is needed.

    Attributes:
        ids: every id of the part, one byte each.
        starts: (S,) where each sentence's first character is.
        lengths: (S,) characters of each sentence, without BOS and EOS.
        about: what `text.json` says.
    """

    def __init__(self, folder: str | Path, part: str, tokenizer: CharTokenizer | None = None) -> None:
        """Open `part` ("train" or "held_out") of a folder that `prepare_text` made.

        Raises:
            CorpusError: the folder or a file in it is missing, damaged, or about other characters.
        """
        folder = Path(folder)
        tokenizer = tokenizer or CharTokenizer()
        path = folder / f"{part}.ids"
        try:
            self.about: dict[str, Any] = json.loads((folder / "text.json").read_text(encoding="utf-8"))
            characters = self.about["tokenizer"]["characters"]
            expected = self.about["characters"][part] + 2 * self.about["sentences"][part]
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise CorpusError(
                f"{folder}: no prepared text there ({Path(error.filename).name} is missing); "
                "run recipes/language_model/prepare.py first"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{folder / 'text.json'}: damaged ({error}); prepare the text again") from error
        if characters != tokenizer.characters:
            raise CorpusError(f"{folder}: prepared with other characters ({characters!r}); prepare the text again")
        if size != expected:
            raise CorpusError(f"{path}: damaged ({size} bytes instead of {expected}); prepare the text again")
        self.ids: NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        ends = np.flatnonzero(self.ids == tokenizer.eos_id)
        self.starts = np.concatenate([[0], ends[:-1] + 1]) + 1
        self.lengths = ends - self.starts

    def __len__(self) -> int:
        """Sentences."""
        return len(self.starts)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """The ids of a sentence, without BOS and EOS."""
        return self.ids[self.starts[index] : self.starts[index] + self.lengths[index]]

    @cached_property
    def digest(self) -> str:
        """Tells this text from others."""
        return hashlib.blake2b(self.ids.data, digest_size=8).hexdigest()

    def lines(self) -> list[str]:
        """All sentences, as characters again."""
        tokenizer = CharTokenizer(self.about["tokenizer"]["characters"])
        table = bytearray(256)
        table[tokenizer.eos_id] = ord("\n")
        for i, character in zip(tokenizer.encode(tokenizer.characters), tokenizer.characters, strict=True):
            table[i] = ord(character)
        return self.ids.tobytes().translate(bytes(table), bytes([tokenizer.bos_id])).decode("ascii").splitlines()

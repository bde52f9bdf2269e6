"""Text for a language model: what is read, kept, dropped, held out, and in which order."""

import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from asr.corpus.text import PreparedText, prepare_text, read_sentences, word_ngrams
from asr.errors import ConfigError, CorpusError
from asr.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[1]
TOKENIZER = CharTokenizer()
NUMBERS = ["ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN", "ELEVEN", "TWELVE"]


def sentences(count: int) -> list[str]:
    """Short ones, no two the same."""
    return [f"{NUMBERS[i % 12]} {NUMBERS[i // 12 % 12]} {NUMBERS[i // 144 % 12]}" for i in range(count)]


def write(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_back(folder: Path, part: str) -> list[str]:
    text = PreparedText(folder, part)
    return [TOKENIZER.decode(text[i].tolist()) for i in range(len(text))]


def test_sentences_come_back_normalised_shuffled_and_split(tmp_path):
    lines = sentences(500)
    source = write(tmp_path / "text.txt", [*lines[1:], "One, two – “three!”"])  # the first one, not yet normal
    lines[0] = "ONE ONE ONE"
    summary = prepare_text([source], tmp_path / "out", held_out=0.1)
    train, held_out = read_back(tmp_path / "out", "train"), read_back(tmp_path / "out", "held_out")
    assert sorted(train + held_out) == sorted([*lines[1:], "ONE TWO THREE"])
    assert train != sorted(train)
    assert 25 <= len(held_out) <= 75
    assert summary.sentences == {"train": len(train), "held_out": len(held_out)}
    assert summary.characters["train"] == sum(map(len, train))
    assert summary.dropped == {}
    assert (tmp_path / "out" / "train.ids").read_bytes()[0] == TOKENIZER.bos_id


def test_the_same_seed_gives_the_same_order_and_any_seed_the_same_split(tmp_path):
    source = write(tmp_path / "text.txt", sentences(300))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare_text([source], tmp_path / name, held_out=0.1, seed=seed)
    a, b, c = (read_back(tmp_path / name, "train") for name in "abc")
    assert a == b
    assert a != c
    assert sorted(a) == sorted(c)
    # More text moves no sentence from one side to the other.
    more = write(tmp_path / "more.txt", sentences(600)[300:])
    prepare_text([more, source], tmp_path / "d", held_out=0.1)
    assert set(read_back(tmp_path / "a", "held_out")) <= set(read_back(tmp_path / "d", "held_out"))


def test_a_seed_that_cannot_be_leaves_what_is_there(tmp_path):
    source = write(tmp_path / "text.txt", sentences(300))
    prepare_text([source], tmp_path / "out", held_out=0.1)
    for seed in (-1, "a"):
        with pytest.raises(ConfigError, match="seed"):
            prepare_text([source], tmp_path / "out", held_out=0.1, seed=seed)
    assert read_back(tmp_path / "out", "train")


def test_utf_16_is_named(tmp_path):
    (tmp_path / "text.txt").write_text("THE CAT SAT\n" * 9, encoding="utf-16")
    (tmp_path / "other.txt").write_text("\n".join(["ON\0 THE MAT", *sentences(200)]))
    prepare_text([tmp_path / "other.txt"], tmp_path / "out", held_out=0.2)
    with pytest.raises(CorpusError, match=r"text.txt: is no UTF-8 text, perhaps UTF-16; save it as UTF-8"):
        prepare_text([tmp_path / "text.txt"], tmp_path / "out")


def test_ids_of_transcripts_may_be_followed_by_a_tab(tmp_path):
    write(tmp_path / "1-2.trans.txt", ["1-2-0\tTHE CAT SAT", "1-2-1 ON  THE MAT", "1-2-2"])
    assert list(read_sentences(tmp_path)) == ["THE CAT SAT", "ON  THE MAT", ""]


def test_what_is_dropped_is_counted_by_reason(tmp_path):
    long = " ".join(NUMBERS)
    source = tmp_path / "text.txt"
    write(source, [*sentences(200), "", "...", long, long, "YES", "YES", "A" * 3000])
    source.write_bytes(source.read_bytes() + b"caf\xe9 au lait\n")
    summary = prepare_text([source], tmp_path / "out", held_out=0.2)
    assert summary.dropped == {"empty": 2, "repeated": 1, "too long": 1, "not UTF-8": 1}
    assert summary.read == 208
    about = json.loads((tmp_path / "out" / "text.json").read_text())
    assert about["dropped"] == summary.dropped
    kept = read_back(tmp_path / "out", "train") + read_back(tmp_path / "out", "held_out")
    assert kept.count("YES") == 2  # short ones are no copies, only common
    assert "1 too long" in str(summary)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_compressed_text_reads_like_plain_text(tmp_path, suffix):
    opener = {"": open, ".xz": lzma.open, ".gz": gzip.open}[suffix]
    path = tmp_path / f"text.txt{suffix}"
    with opener(path, "wb") as file:
        file.write(b"ONE\nTWO\n")
    assert list(read_sentences(path)) == ["ONE", "TWO"]


def test_transcripts_lose_their_ids(tmp_path):
    write(tmp_path / "speech" / "1" / "2" / "1-2.trans.txt", ["1-2-0000 ONE TWO", "1-2-0001 THREE"])
    write(tmp_path / "speech" / "notes.txt", ["NOT A TRANSCRIPT"])
    assert list(read_sentences(tmp_path / "speech")) == ["ONE TWO", "THREE"]
    trn = write(tmp_path / "ref.trn", ["ONE TWO (1-2-0000)", "THREE (spk_a)"])
    assert list(read_sentences(trn)) == ["ONE TWO", "THREE"]
    supervisions = tmp_path / "supervisions_toy.jsonl.gz"
    supervisions.write_bytes(gzip.compress(b'{"id": "a", "text": "ONE TWO"}\n{"id": "b", "text": "THREE"}\n'))
    assert list(read_sentences(supervisions)) == ["ONE TWO", "THREE"]


def test_sentences_that_share_eight_words_with_evaluation_transcripts_are_dropped(tmp_path):
    shared, seven = " ".join(NUMBERS[:8]), " ".join([*NUMBERS[:7], "NINE"])
    # The eight words go across two utterances, which follow each other in the chapter.
    write(tmp_path / "dev" / "1-2.trans.txt", ["1-2-0000 AND ONE TWO THREE", "1-2-0001 FOUR FIVE SIX SEVEN EIGHT SO"])
    source = write(tmp_path / "text.txt", [*sentences(100), f"HE SAID {shared} AGAIN", seven])
    summary = prepare_text([source], tmp_path / "out", overlap_with=[tmp_path / "dev"], held_out=0.1)
    assert summary.dropped == {"sharing 8 words in a row with overlap_with": 1}
    kept = read_back(tmp_path / "out", "train") + read_back(tmp_path / "out", "held_out")
    assert seven in kept
    assert not any(shared in sentence for sentence in kept)
    with pytest.raises(CorpusError, match="shares 8 words in a row"):
        prepare_text([source], tmp_path / "out", overlap_with=[tmp_path / "dev"], on_overlap="stop")


def test_one_text_needs_no_brackets(tmp_path):
    source = tmp_path / "source.txt"
    source.write_text("\n".join(f"ONE TWO {'THREE ' * i}" for i in range(1, 40)))
    summary = prepare_text(str(source), tmp_path / "out", overlap_with=source, on_overlap="drop", held_out=0.1)
    assert summary.read == 39


def test_quotation_marks_in_capitals_are_no_letters(tmp_path):
    lines = ["'HELLO THERE' SHE SAID", "ROCK ' ROLL", "'TIS THE BOYS' O'CLOCK"] * 20
    (tmp_path / "source.txt").write_text("\n".join(lines))
    prepare_text([tmp_path / "source.txt"], tmp_path / "out", held_out=0.5)
    kept = {line for part in ("train", "held_out") for line in PreparedText(tmp_path / "out", part).lines()}
    assert kept == {"HELLO THERE SHE SAID", "ROCK ROLL", "'TIS THE BOYS' O'CLOCK"}


def test_ngrams():
    assert word_ngrams(["A B", "C"], 2) == {"A B", "B C"}
    assert word_ngrams(["A"], 2) == set()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"texts": []}, ConfigError, "nothing to read"),
        ({"on_overlap": "ignore"}, ConfigError, "drop or stop"),
        ({"held_out": 0.0}, ConfigError, "held_out must be"),
        ({"ngram": 0}, ConfigError, "1 or more words"),
        ({"texts": ["no-such.txt"]}, CorpusError, "no such text file"),
        ({"overlap_with": ["no-such"]}, CorpusError, "no such text file"),
    ],
)
def test_settings_that_cannot_work(tmp_path, settings, error, message):
    source = write(tmp_path / "text.txt", sentences(50))
    with pytest.raises(error, match=message):
        prepare_text(**({"texts": [source], "output": tmp_path / "out"} | settings))


def test_a_damaged_archive_and_an_empty_text_say_so(tmp_path):
    path = tmp_path / "text.txt.xz"
    path.write_bytes(lzma.compress(b"ONE TWO\n" * 10_000)[:-20])
    with pytest.raises(CorpusError, match="cannot be read"):
        prepare_text([path], tmp_path / "out")
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(b"ONE TWO\n")[:10] + b"\xff" * 100)
    with pytest.raises(CorpusError, match=r"text.txt.gz: cannot be read"):
        prepare_text([path], tmp_path / "out")
    for line in ('{"id": "a"}', "ONE TWO", "[1]"):
        with pytest.raises(CorpusError, match=r"cuts.jsonl: a line is no JSON with a text"):
            prepare_text([write(tmp_path / "cuts.jsonl", [line])], tmp_path / "out")
    with pytest.raises(CorpusError, match="no sentence is left for train"):
        prepare_text([write(tmp_path / "empty.txt", ["", "--"])], tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CorpusError, match=r"holds neither \*.trans.txt"):
        prepare_text([tmp_path / "nothing"], tmp_path / "out")


def test_a_folder_that_is_not_whole_is_not_opened(tmp_path):
    with pytest.raises(CorpusError, match="no prepared text there"):
        PreparedText(tmp_path, "train")
    folder = tmp_path / "out"
    prepare_text([write(tmp_path / "text.txt", sentences(100))], folder, held_out=0.1)
    with pytest.raises(CorpusError, match="other characters"):
        PreparedText(folder, "train", CharTokenizer(" AB"))
    with open(folder / "train.ids", "ab") as file:
        file.write(b"x")
    with pytest.raises(CorpusError, match="damaged"):
        PreparedText(folder, "train")
    (folder / "text.json").write_text("{")
    with pytest.raises(CorpusError, match="damaged"):
        PreparedText(folder, "train")


def test_lengths_and_starts(tmp_path):
    prepare_text([write(tmp_path / "text.txt", sentences(100))], tmp_path / "out", held_out=0.1)
    text = PreparedText(tmp_path / "out", "train")
    assert text.ids.dtype == np.uint8
    assert (text.ids[text.starts - 1] == TOKENIZER.bos_id).all()
    assert (text.ids[text.starts + text.lengths] == TOKENIZER.eos_id).all()


def test_the_recipe_reports_and_ends_in_one_line(tmp_path):
    source = write(tmp_path / "text.txt", sentences(100))
    command = [sys.executable, ROOT / "recipes/language_model/prepare.py", f"output={tmp_path / 'out'}", "held_out=0.1"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, f"text=[{source}]"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "100 sentences read" in done.stdout
    assert "not checked against any evaluation transcripts" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("error: text: nothing to read")
    assert len(done.stderr.splitlines()) == 1

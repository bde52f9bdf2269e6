from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from asr.corpus.choose import ChooseConfig, choose_sentences, wanted_words, word_counts
from asr.corpus.text import prepare_text
from asr.errors import ConfigError, CorpusError

ROOT = Path(__file__).parents[2]
COMMON = ["THE", "OF", "AND", "TO", "IN", "HE", "WAS", "THAT", "HIS", "IT"]
RARE = [f"{a}{b}ING" for a in "BCDFG" for b in "AEIOU"]


def text(seed: int = 0) -> list[str]:
    """2,000 sentences of common words; every tenth has three rare ones."""
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(COMMON, k=6) + (rng.choices(RARE, k=3) if i % 10 == 0 else rng.choices(COMMON, k=3)))
        for i in range(2_000)
    ]


RECORDED = Counter(dict.fromkeys(COMMON, 100))


def choose(sentences: list[str], recorded: Counter[str], config: ChooseConfig) -> list[str]:
    return choose_sentences(sentences, wanted_words(word_counts(sentences), recorded, config), config)


def test_a_word_is_wanted_more_often_if_the_text_has_it_and_less_if_it_was_recorded():
    config = ChooseConfig(in_text=4, in_recordings=3, factor=2.0, at_most=10.0)
    wanted = wanted_words({"A": 3, "B": 4, "C": 9, "D": 400, "E": 9, "F": 900}, {"E": 2, "F": 4}, config)
    assert wanted == {"B": 4.0, "C": 6.0, "D": 10.0, "E": 2.0}


def test_sentences_with_rare_words_are_chosen():
    sentences = text()
    chosen = choose(sentences, RECORDED, ChooseConfig(words=500, factor=5.0))
    assert len(chosen) == 56  # of 9 words: the first at which there are 500
    assert all(set(sentence.split()) & set(RARE) for sentence in chosen)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(sentences)


def test_a_word_that_was_said_often_enough_counts_no_more():
    """The text has one of the rare words in 300 sentences more; few of these are chosen."""
    sentences = text() + ["BAING BAING BAING AND THE"] * 300
    said = word_counts(choose(sentences, RECORDED, ChooseConfig(factor=1.0)))
    assert word_counts(sentences)["BAING"] > 900
    assert said["BAING"] < 60


def test_recorded_words_are_not_looked_for():
    recorded = RECORDED + Counter(dict.fromkeys(RARE[:20], 9))
    chosen = choose(text(), recorded, ChooseConfig(words=300, factor=5.0))
    assert all(set(sentence.split()) & set(RARE[20:]) for sentence in chosen)


def test_the_same_seed_chooses_the_same():
    config = ChooseConfig(words=300)
    assert choose(text(), RECORDED, config) == choose(text(), RECORDED, config)
    assert choose(text(), RECORDED, config) != choose(text(), RECORDED, ChooseConfig(words=300, seed=2))


def test_sentences_of_other_lengths_are_left():
    with pytest.raises(CorpusError, match="no sentence of the text has enough rare words"):
        choose(text(), RECORDED, ChooseConfig(longest=8))


def test_nothing_wanted_is_an_error():
    with pytest.raises(CorpusError, match="give more text or lower in_text"):
        choose(text(), RECORDED, ChooseConfig(in_text=10_000))


@pytest.mark.parametrize(
    "setting", [{"words": 0}, {"in_text": 0}, {"in_recordings": -1}, {"factor": 0.0}, {"shortest": 9, "longest": 8}]
)
def test_a_setting_that_cannot_work_is_an_error(setting):
    with pytest.raises(ConfigError):
        ChooseConfig(**setting)


def test_the_recipe_writes_the_sentences_and_says_how_often_words_are_said(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(text()))
    prepare_text([tmp_path / "text.txt"], tmp_path / "text", held_out=0.05)
    spoken = tmp_path / "train" / "1" / "2"
    spoken.mkdir(parents=True)
    (spoken / "1-2.trans.txt").write_text("".join(f"1-2-{i:04} {' '.join(COMMON).lower()}\n" for i in range(20)))
    command = [sys.executable, ROOT / "recipes/synthetic/choose.py", f"text={tmp_path / 'text'}", "words=300"]
    output = tmp_path / "rare.txt"
    run = subprocess.run(
        [*command, f"recordings=[{tmp_path / 'train'}]", f"output={output}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    lines = output.read_text().splitlines()
    assert all(set(line.split()) & set(RARE) for line in lines)
    assert f"{len(lines)} of " in run.stdout
    assert "25 words, now said" in run.stdout
    failed = subprocess.run([*command, f"output={output}"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: recordings: nothing to compare with")
    assert output.read_text().splitlines() == lines

"""Sentences put together of recorded words say what they are said to say, in runs that were said."""

import numpy as np
import pytest

from asr.training.phrasebook import Phrasebook, loudness

SIZE = 800  # samples of a word


def said(*texts: str) -> list[list[tuple[str, np.ndarray]]]:
    """Utterances whose words sound as a number of their own: 100 times the utterance's and the word's."""
    return [
        [(word, np.full(SIZE, 100 * u + i, np.float32)) for i, word in enumerate(text.split())]
        for u, text in enumerate(texts)
    ]


RECORDED = ("I DO NOT KNOW WHAT TO SAY", "HE DID SAY SO", "WHAT DO YOU WANT", "SO DO I")


def heard(samples: np.ndarray) -> list[int]:
    """The number in the middle of each word."""
    return samples.reshape(-1, SIZE)[:, SIZE // 2].astype(int).tolist()


def test_sentences_of_the_speakers_words_are_chosen_and_those_of_long_runs_first():
    text = [
        "SO WHAT DID YOU SAY",  # five runs
        "I DO NOT KNOW WHAT DO YOU WANT",  # two
        "HE DID NOT SAY SO",  # three
        "DO NOT KNOW WHAT",  # was said in one go
        "HE KNOWS",  # not the speaker's
        "YOU SAY",  # too short
    ]
    book = Phrasebook(said(*RECORDED), text, words=7)
    assert [" ".join(sentence) for sentence in book.sentences] == [text[1], text[2], text[0]]
    assert [" ".join(run) for run in book.runs(text[2].split())] == ["HE DID", "NOT", "SAY SO"]
    assert len(Phrasebook(said(*RECORDED), text, words=4).sentences) == 1  # twice as many words as are needed
    assert not Phrasebook(said(*RECORDED), text[3:], words=7).sentences


def test_what_is_written_is_what_is_said_in_runs_of_the_recordings():
    utterances = said(*RECORDED)
    book = Phrasebook(utterances, ["HE DID NOT SAY SO", "I DO NOT KNOW WHAT DO YOU WANT"], words=13)
    seen = set()
    for seed in range(8):
        text, samples = book.compose(12, np.random.default_rng(seed))
        words = text.split()
        assert len(words) >= 12
        numbers = heard(samples)
        assert [utterances[n // 100][n % 100][0] for n in numbers] == words
        starts = [i for i in range(len(words)) if i == 0 or numbers[i] != numbers[i - 1] + 1]
        assert all(samples[i * SIZE] == 0 for i in starts)  # seams fade
        assert text == book.compose(12, np.random.default_rng(seed))[0]
        seen.add(text)
        rest = text
        for sentence in ("HE DID NOT SAY SO", "I DO NOT KNOW WHAT DO YOU WANT"):
            rest = rest.replace(sentence, "")
        assert not rest.strip()
    assert len(seen) > 1


def places(*texts: str, sentence: str, index: int, loud: dict[int, float] | None = None) -> list[int]:
    """Which utterance the word at that index of the sentence is taken from, 40 times."""
    utterances = said(*texts)
    for u, pieces in enumerate(utterances):
        for _, samples in pieces:
            samples[:160] = samples[-160:] = (loud or {}).get(u, 0.01)
    book = Phrasebook(utterances, [sentence], words=4)
    rng = np.random.default_rng(0)
    return [heard(book.compose(1, rng)[1])[index] // 100 for _ in range(40)]


def test_a_run_is_taken_from_where_it_is_quiet():
    texts = ("A X B", "A X B", "C D E F G")
    chosen = places(*texts, sentence="C X E F", index=1, loud={0: 0.1, 1: 0.001})
    assert chosen.count(1) > 36
    assert places(*texts, sentence="C X E F", index=1, loud={0: 0.001, 1: 0.1}).count(0) > 36


@pytest.mark.parametrize(("ends", "begins"), [("T", "S"), ("T", "X"), ("X", "S")])
def test_a_run_is_taken_from_between_neighbours_like_its_own(ends, begins):
    # Of THAT x SO the neighbours end in T and begin with S.
    texts = ("BEG M ROW", f"BE{ends} M {begins}OW", "THAT", "SO IT")
    chosen = places(*texts, sentence="THAT M SO IT", index=1)
    assert chosen.count(1) > (36 if (ends, begins) == ("T", "S") else 28)


def test_a_sentence_ends_as_an_utterance_did():
    texts = ("A B LAST", "A B LAST C", "X Y Z")
    assert places(*texts, sentence="X Y Z LAST", index=3).count(0) > 30


def test_loudness_of_borders():
    pieces = [("A", np.full(SIZE, 2, np.float32)), ("B", np.full(SIZE, 4, np.float32))]
    assert [loudness(pieces, i) for i in range(3)] == [0, pytest.approx((4 + 16) / 2), 0]
    assert loudness([("A", np.zeros(0, np.float32))] * 2, 1) == 0

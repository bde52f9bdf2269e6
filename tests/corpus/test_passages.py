import numpy as np
import pytest
import torch

from asr.corpus.passages import PassageSource
from asr.corpus.text import PreparedText, prepare_text
from asr.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
WORDS = ["ABLE", "BIRD", "CAVE", "DUNE", "ECHO", "FISH", "GOLD", "HAND"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(1)
    sentences = [" ".join(rng.choice(WORDS, size=rng.integers(1, 30))) for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(sentences))
    prepare_text([folder / "text.txt"], folder / "prepared", held_out=0.05)
    return PreparedText(folder / "prepared", "train")


def test_a_source_reads_the_whole_text_and_then_again(text):
    source = PassageSource(text, TOKENIZER, 1000, join=0.5, longest=1000)
    batches = [source[i] for i in range(len(source.plan))]
    spoken = " ".join(TOKENIZER.decode(row[row != TOKENIZER.pad_id].tolist()) for rows in batches for row in rows)
    expected = " ".join(TOKENIZER.decode(text[i].tolist()) for i in range(len(text)))
    assert sorted(spoken.split()) == sorted(expected.split())
    for rows in batches:
        assert (rows[:, 0] == TOKENIZER.bos_id).all()
        assert (rows == TOKENIZER.eos_id).sum(1).tolist() == [1] * len(rows)
        assert rows[:, 1:].numel() <= 1000 or len(rows) == 1
    padding = sum(float((rows == TOKENIZER.pad_id).sum()) for rows in batches) / sum(map(torch.numel, batches))
    assert padding < 0.15
    assert torch.equal(source[len(batches) + 2], batches[2])


def test_what_a_number_stands_for_depends_on_the_seed_alone(text):
    source, same, other = (PassageSource(text, TOKENIZER, 1000, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(source[3], same[3])
    assert source[3].shape != other[3].shape or not torch.equal(source[3], other[3])
    assert source[3].shape != source[4].shape or not torch.equal(source[3], source[4])


def test_longer_passages_end_where_an_utterance_would(text):
    source = PassageSource(text, TOKENIZER, 1000, longest=40)
    batches = [source[i] for i in range(len(source.plan))]
    assert max(rows.shape[1] for rows in batches) == 41
    asked = sum(int((rows[:, 1:] != TOKENIZER.pad_id).sum()) for rows in batches)
    assert asked == np.minimum(source.passages.steps, 40).sum()  # none ends before
    longest = next(rows for rows in batches if rows.shape[1] == 41 and (rows[:, -1] > TOKENIZER.eos_id).any())
    assert (longest[:, 0] == TOKENIZER.bos_id).all()

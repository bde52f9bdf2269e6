"""The word n-gram model as a model of characters, against sums over words and counts made by hand."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import yaml

from asr.errors import ConfigError, CorpusError, ModelError
from asr.model import word_lm
from asr.model.word_lm import WordLanguageModel, estimate, load_word_lm, save_word_lm
from asr.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
BOS, EOS = CharTokenizer.bos_id, CharTokenizer.eos_id
TEXT = [
    "THE CAT SAT",
    "THE CAT SAT ON THE MAT",
    "THE CATTLE SAT ON THE CAT",
    "A CAT ATE THE CATTLE'S MAT",
    "THE MAT THE CAT SAT ON",
    "A XYLOPHONE",
]


@pytest.fixture(scope="module")
def tables():
    return estimate(TEXT, order=3)


@pytest.fixture(scope="module")
def model(tables):
    return WordLanguageModel(tables)


def follow(model, text):
    """Log-probabilities of each character of the text and of EOS, and all those at every step (U + 1, V)."""
    ids, state, steps = TOKENIZER.encode(text), model.start(1), []
    for token in [BOS, *ids]:
        scores, state = model.step(torch.tensor([token]), state)
        steps.append(scores[0])
    steps = torch.stack(steps)
    return steps.gather(1, torch.tensor([*ids, EOS])[:, None])[:, 0], steps


def test_the_tree_of_words():
    first, size, is_word, child = word_lm._tree(["A", "AB", "ABC", "B"], "ABC")
    a, b = child[1, 0], child[1, 1]
    ab = child[a, 1]
    assert (first[[1, a, b, ab]].tolist(), size[[1, a, b, ab]].tolist()) == ([0, 0, 3, 1], [4, 3, 1, 2])
    assert is_word[[1, a, ab, child[ab, 2], b]].tolist() == [0, 1, 1, 1, 1]
    assert child[b].tolist() == [0, 0, 0]
    assert child[0].tolist() == [0, 0, 0]
    assert len(first) == 6


@pytest.mark.parametrize("text", ["", "THE", "THE CATT", "THE CAT SAT ON", "QQQ'Q THE", "A XYLO", "THE CAT "])
def test_a_step_sums_to_1(model, text):
    _, steps = follow(model, text)
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)
    assert steps[:, [0, 1, 3]].isinf().all()  # blank, BOS, unknown
    assert steps[:, [EOS, *range(4, 32)]].isfinite().all()


def test_what_is_likely_comes_first(model):
    _, steps = follow(model, "THE CAT SAT")
    best = [TOKENIZER.decode([i]) for i in steps.argmax(1).tolist()]
    assert "".join(best[:3]) == "THE"
    assert "".join(best[4:7]) == "CAT"
    assert best[8:11] == ["S", "A", "T"]


def by_hand(text, order):
    """Interpolated modified Kneser-Ney over words: log-probability of each word and the end."""
    lines = [*TEXT, "CATTLE'S"]
    counts = Counter(itertools.chain.from_iterable(line.split() for line in lines))
    known = {word for word, n in counts.items() if n >= 2}
    lines = [["<s>", *(w if w in known else "?" for w in line.split()), "</s>"] for line in lines]
    grams = [Counter(tuple(line[i : i + n]) for line in lines for i in range(len(line) - n + 1)) for n in range(1, 4)]
    kinds = len(known) + 2

    def weight(gram):
        if len(gram) == order or gram[0] == "<s>":
            return grams[len(gram) - 1][gram]
        return sum(longer[1:] == gram for longer in grams[len(gram)])

    def discount(n, count):
        there = Counter(weight(gram) for gram in grams[n - 1] if gram != ("<s>",))
        if not all(there[c] for c in (1, 2, 3, 4)):
            return 0.5
        y, c = there[1] / (there[1] + 2 * there[2]), min(count, 3)
        return min(max(c - (c + 1) * y * there[c + 1] / there[c], 0.1), c - 0.05 * c if c < 3 else 2.9)

    def p(gram):
        rest = p(gram[1:]) if len(gram) > 1 else 1 / kinds
        siblings = [weight(g) for g in grams[len(gram) - 1] if g[:-1] == gram[:-1] and g != ("<s>",)]
        if not siblings:
            return rest
        own = weight(gram)
        explicit = own - discount(len(gram), own) if own else 0
        return (explicit + sum(discount(len(gram), w) for w in siblings) * rest) / sum(siblings)

    words = ["<s>", *(w if w in known else "?" for w in text.split()), "</s>"]
    return [math.log(p(tuple(words[max(0, i - order + 1) : i + 1]))) for i in range(1, len(words))]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("text", ["THE CAT SAT", "A CAT", "MAT MAT THE", "SAT ON A MAT", "CATTLE'S CAT THE"])
def test_the_characters_of_known_words_are_worth_their_words(order, text, monkeypatch):
    monkeypatch.setattr(word_lm, "STEPS", 2000.0)  # finer than 8 bits hold, so that rounding does not blur it
    monkeypatch.setattr(word_lm, "_quantised", lambda p: -2000.0 * np.log(np.maximum(p, 1e-300)))
    monkeypatch.setattr(word_lm, "SPREAD", 0.0)
    tables = estimate([*TEXT, "CATTLE'S"], order=order)
    tables["letters"] = tables["letters"] * 0 + 2000.0 * math.log(28)  # all alike: known words are hardly ever spelled
    tables["letters"][-1, -1] = 1e6  # no word without letters
    scores, _ = follow(WordLanguageModel(tables), text)
    words = by_hand(text, order)
    # An empty text is impossible, so what the smoothing gave to an end right at the beginning goes to the words.
    empty = math.log1p(-math.exp(by_hand("", order)[0]))
    assert scores.double().sum().item() == pytest.approx(sum(words) - empty, abs=2e-3)


def test_unknown_words_are_spelled(model):
    known, _ = follow(model, "THE CATTLE")
    unknown, _ = follow(model, "THE XYLOGRAPH")
    assert unknown.isfinite().all()
    assert unknown[4] < known[4]
    plausible, _ = follow(model, "THE XYLOPHONE")
    assert plausible.sum() > follow(model, "THE QXZJKVBWQ")[0].sum()


def test_rows_do_not_know_of_each_other(model):
    texts = ["THE CAT SAT", "A MAT ON TH", "XQ'Z THE CA"]
    alone = torch.stack([follow(model, text)[1] for text in texts])
    ids = torch.tensor([[BOS, *TOKENIZER.encode(text)] for text in texts])
    state = model.start(3)
    for t in range(ids.shape[1]):
        rows = torch.tensor([2, 0, 1])
        scores, state = model.step(ids[:, t], state)
        assert torch.equal(scores, alone[:, t])
        back = model.select(model.select(state, rows), rows.argsort())
        for name in ("node", "letters", "spelled"):
            assert torch.equal(getattr(back, name), getattr(state, name))
        assert torch.equal(back.history, state.history)
        state = back


def test_fewer_ngrams(tables):
    """Pruning takes what is worth least; its share goes to the shorter history, and steps still sum to 1."""
    small = estimate(TEXT, order=3, ngrams=8)
    assert len(small["2.word"]) + len(small["3.word"]) < len(tables["2.word"]) + len(tables["3.word"])
    model = WordLanguageModel(small)
    scores, steps = follow(model, "THE CAT SAT ON THE MAT")
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)
    assert scores.sum() < follow(WordLanguageModel(tables), "THE CAT SAT ON THE MAT")[0].sum()


def test_on_disk(tables, model, tmp_path):
    folder = save_word_lm(tmp_path / "lm", tables, {"words": 23})
    again = load_word_lm(folder)
    assert torch.equal(follow(again, "THE CAT")[1], follow(model, "THE CAT")[1])
    assert sorted(p.name for p in folder.iterdir()) == ["language_model.safetensors", "language_model.yaml"]
    with pytest.raises(ModelError, match="over other characters"):
        load_word_lm(folder, CharTokenizer(" AB"))
    weights = folder / "language_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:500])
    with pytest.raises(ModelError, match=r"damaged .*copy the language model again"):
        load_word_lm(folder)
    entry = whole.index(b"PK\x01\x02")  # of the first table in the zip's directory
    for place, bits in ((entry + 6, 0xFF), (entry + 8, 0x01), (entry + 10, 0x20)):  # newer, encrypted, packed otherwise
        flipped = bytearray(whole)
        flipped[place] ^= bits
        weights.write_bytes(flipped)
        with pytest.raises(ModelError, match=r"damaged .*copy the language model again"):
            load_word_lm(folder)
    weights.unlink()
    with pytest.raises(ModelError, match=r"language_model\.safetensors is missing"):
        load_word_lm(folder)
    weights.write_bytes(whole)
    settings = yaml.safe_load((folder / "language_model.yaml").read_text())
    (folder / "language_model.yaml").write_text(yaml.safe_dump(settings | {"kind": "oracle"}))
    with pytest.raises(ModelError, match="of kind 'oracle'"):
        load_word_lm(folder)


def test_a_damaged_header_of_an_array(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez_compressed", np.savez)  # so that the header stands there to be damaged
    weights = save_word_lm(tmp_path, tables, {}) / "language_model.safetensors"
    before, name, table = weights.read_bytes().partition(b"letters.npy")  # so large that its checksum comes too late
    weights.write_bytes(before + name + table.replace(b"{'descr'", b"{{descr'", 1))
    with pytest.raises(ModelError, match=r"damaged .*copy the language model again"):
        load_word_lm(tmp_path)


def test_a_word_without_end(model):
    scores, steps = follow(model, "Q" * 400)
    assert scores.isfinite().all()
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)


def test_a_text_without_a_word_that_comes_twice():
    with pytest.raises(CorpusError, match=r"none of 3 different words .*least_count=2; give more text"):
        estimate(["THE CAT SAT"])


def test_what_cannot_be_counted():
    for settings in ({"order": 1}, {"ngrams": 0}):
        with pytest.raises(ConfigError, match="order must be at least 2 and ngrams at least 1"):
            estimate(TEXT, **settings)


def test_an_order_that_the_text_has_no_ngrams_of():
    single = WordLanguageModel(estimate(["YES", "NO", "STOP", "GO"] * 10, order=5))
    steps = follow(single, "STOP GO")[1]
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)
    assert single.start(2).history.shape == (4, 2)


def test_words_of_a_lexicon_are_known_though_the_text_lacks_them(model):
    larger = WordLanguageModel(estimate(TEXT, order=3, lexicon=["XYLOGRAPH", "CAT", "ZEBU"]))
    assert {"XYLOGRAPH", "ZEBU"} | set(model.words) == set(larger.words)
    for new in ("XYLOGRAPH", "ZEBU"):
        assert follow(larger, f"THE {new}")[0].sum() > follow(model, f"THE {new}")[0].sum() + 3
    scores, steps = follow(larger, "THE CAT SAT ON THE MAT")
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)
    assert scores.sum() == pytest.approx(follow(model, "THE CAT SAT ON THE MAT")[0].sum(), abs=1.5)


def test_more_words_than_16_bits_number(tmp_path):
    """The last in the alphabet has a number beyond 65,535 and keeps its n-grams, on disk and back."""
    letters = [chr(ord("A") + i) for i in range(26)]
    many = ["".join(word) for word in itertools.islice(itertools.product(letters, repeat=4), 70_000)]
    model = load_word_lm(save_word_lm(tmp_path, estimate([*TEXT, "THE ZZZZ SAT", "THE ZZZZ SAT"], lexicon=many), {}))
    assert model.words.index("ZZZZ") > 2**16
    after, steps = follow(model, "THE ZZZZ SAT")
    assert after[-5:-1].exp().prod() > 0.5  # what follows ZZZZ is known: " SAT"
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)

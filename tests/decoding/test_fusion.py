"""Language models in the search: an external one added, the speller's own one subtracted."""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import Bigrams, make_model, random_states, scripted
from torch import Tensor

from asr.decoding.beam_search import DecodingConfig, beam_search
from asr.decoding.scorers import Beams, InternalLmScorer, LanguageModel, LmScorer, SpellerScorer, Step
from asr.model import ListenAttendSpell
from asr.model.language_model import CharLanguageModel, LanguageModelConfig
from asr.model.word_lm import WordLanguageModel, estimate
from asr.tokenizer import CharTokenizer

TINY = CharTokenizer(" A")
BOS, EOS, SPACE, A = CharTokenizer.bos_id, CharTokenizer.eos_id, 4, 5
SPELLERS: dict[str, dict[str, Any]] = {
    "one hop": {"hops": 1},
    "two hops": {"hops": 2},
    "input feeding": {"input_feeding": True},
    "location": {"attention": "location"},
    "additive": {"attention": "additive"},
    "reader": {"reader": 10},
    "cho": {"context": "cho"},
}


def word_model() -> WordLanguageModel:
    return WordLanguageModel(estimate(["A AA A", "AA A", "A A AAA"], order=2, characters=TINY.characters), " A")


def char_model(vocabulary: int) -> CharLanguageModel:
    torch.manual_seed(5)
    return CharLanguageModel(LanguageModelConfig(vocabulary=vocabulary, embedding=4, d=8)).eval()


def lm_scores(lm: LanguageModel, ids: tuple[int, ...], eos: bool) -> list[float]:
    """log p of each character and the end; without `eos` a word's end and the text's are one."""
    state, gains = lm.start(1), []
    for last, token in itertools.pairwise([BOS, *ids, EOS]):
        logits, state = lm.step(torch.tensor([last]), state)
        p = logits[0].log_softmax(-1).exp()
        both = not eos and token in (SPACE, EOS)
        gains.append(math.log((p[SPACE] + p[EOS]) if both else p[token]))
    return gains


class Deaf:
    """The speller without a listener, by its own LSTMs: every a_t is 0."""

    def __init__(self, model: ListenAttendSpell) -> None:
        self.speller = model.speller

    def start(self, batch: int) -> list[int]:
        return []

    def step(self, tokens: Tensor, state: list[int]) -> tuple[Tensor, list[int]]:
        state = [*state, int(tokens)]
        x = self.speller.embedding(torch.tensor([state]))
        for lstm in self.speller.lstms:
            s, _ = lstm(x)
            x = torch.cat([torch.zeros_like(s), s], dim=-1)
        return self.speller.output(x)[:, -1], state

    def select(self, state: list[int], rows: Tensor) -> list[int]:
        return state


def internal(model: ListenAttendSpell, texts: Tensor, h: Tensor, lengths: Tensor) -> Tensor:
    """Scores (R, U, V) after each character of the texts (R, U), one text a hypothesis."""
    scorers: list[Any] = [SpellerScorer(model.speller), InternalLmScorer(model.speller, -0.5)]
    beams = Beams.of(torch.ones(len(h), len(texts) // len(h), dtype=torch.bool))
    # All begin as one hypothesis an utterance; nothing was scored yet, so that this is the state of the empty text.
    states = [s.select(s.start(h, lengths), beams.owners, texts[:, 0], beams) for s in scorers]
    swap, steps = torch.arange(len(texts)).flip(0), []  # rows change places and come back
    for t, tokens in enumerate(texts.T):
        step = Step(t, tokens, beams)
        for i, scorer in enumerate(scorers):
            scores, states[i] = scorer.score(states[i], step)
            if len(h) == 1:
                once = scorer.select(states[i], swap, tokens, beams)
                states[i] = scorer.select(once, swap, tokens, beams)
        steps.append(scores)
    return torch.stack(steps, 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_the_internal_model_is_the_speller_with_zero_context(hops: int, packed: bool) -> None:
    model = make_model(hops=hops)
    model.half().float()  # as in a model folder, so that packing rounds nothing
    if packed:
        model.speller.pack()
    texts = torch.tensor([[BOS, 7, 7, 12, 4, 9], [BOS, 9, 8, 31, 5, 5]])
    h, lengths = random_states([9])
    scores = internal(model, texts, h, lengths)
    for row, text in zip(scores, texts, strict=True):
        deaf, state = Deaf(model), []
        for t, token in enumerate(text):
            expected, state = deaf.step(token[None], state)
            torch.testing.assert_close(row[t], expected[0].log_softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("speller", SPELLERS.values(), ids=SPELLERS)
def test_the_internal_model_hears_nothing(speller: dict[str, Any]) -> None:
    """The same as the parallel speller on silence (encoder states of zeros), whatever is heard and beside whom."""
    model = make_model(**speller)
    texts = torch.tensor([[BOS, 7, 8, 9], [BOS, 9, 9, 4], [BOS, 5, 31, 7], [BOS, 6, 6, 6]])
    nothing = model.speller.memory(torch.zeros(4, 5, 12), torch.tensor([5, 2, 1, 3]))
    expected = model.speller(texts, nothing)[0].log_softmax(-1)
    for lengths in ([9], [6, 3]):
        torch.testing.assert_close(internal(model, texts, *random_states(lengths)), expected, atol=1e-5, rtol=1e-4)


def test_the_internal_model_of_the_utterances_that_go_on() -> None:
    for speller in SPELLERS.values():
        model = make_model(**speller)
        scorer = InternalLmScorer(model.speller, -1.0)
        h, lengths = random_states([6, 3])
        alone = Beams.of(torch.ones(1, 2, dtype=torch.bool))
        state = scorer.keep(scorer.start(h, lengths), torch.tensor([1]))
        state = scorer.select(state, torch.tensor([1, 1]), torch.tensor([7, 7]), alone)
        silent = model.speller.start(model.speller.memory(h, lengths))
        scores, _ = scorer.score(state, Step(4, torch.tensor([7, 7]), alone, spelled=silent))
        assert scores.shape == (2, 32)


def test_patience() -> None:
    """As long as an open hypothesis may make up for what it lacks, the search goes on."""
    scorer = InternalLmScorer(make_model().speller, -0.5, patience=7.0)
    assert (scorer.weight * scorer.most(None, torch.tensor([9]))).item() == 3.5
    script = scripted(lambda position: {"A": 0.1, "EOS": 0.9}, CharTokenizer())
    for patience, steps in ((0.0, 1), (1000.0, 10)):
        fixed: Any = InternalLmScorer(make_model().speller, -0.5, patience=patience)
        fixed.shares, fixed.model = False, Bigrams(32)
        script.speller.rows.clear()
        config, h = DecodingConfig(beam=2), torch.zeros(1, 9, 32)
        beam_search(script, h, torch.tensor([9]), config, CharTokenizer(), extra_scorers=[fixed])
        assert len(script.speller.rows) >= steps
        assert (len(script.speller.rows) == 10) == (patience > 0)


CONFIGS = {
    "lm": DecodingConfig(lm_weight=0.7),
    "lm without eos": DecodingConfig(lm_weight=0.7, lm_eos=False),
    "ilm": DecodingConfig(ilm_weight=0.6, ilm_patience=math.inf),
    "both": DecodingConfig(lm_weight=0.9, ilm_weight=0.4, ilm_patience=math.inf),
    "all": DecodingConfig(
        lm_weight=0.9, ilm_weight=0.5, ilm_patience=math.inf, lm_eos=False, word_bonus=-0.7, length_bonus=0.3
    ),
    "word bonus": DecodingConfig(word_bonus=1.2),
}


@pytest.mark.parametrize("kind", ["bigrams", "character LSTM", "words"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_wide_beam_finds_what_scoring_every_text_finds(config: DecodingConfig, kind: str) -> None:
    c = config
    model, frames = make_model(characters=2, seed=2, scale=2.0), 4
    lm: Any = {"bigrams": lambda: Bigrams(6), "character LSTM": lambda: char_model(6), "words": word_model}[kind]()
    h, lengths = random_states([frames], seed=2)
    memory = model.speller.memory(h, lengths)
    scores = {}
    with torch.no_grad():
        for n in range(frames + 1):
            for ids in itertools.product((SPACE, A), repeat=n):
                logits, _ = model.speller(torch.tensor([[BOS, *ids]]), memory)
                said = logits[0].log_softmax(-1).gather(1, torch.tensor([*ids, EOS])[:, None]).sum().item()
                said += c.lm_weight * sum(lm_scores(lm, ids, c.lm_eos))
                said -= c.ilm_weight * sum(lm_scores(Deaf(model), ids, c.lm_eos))
                scores[TINY.decode(ids)] = said + c.length_bonus * n + c.word_bonus * ids.count(SPACE)
    (found,) = beam_search(model, h, lengths, replace(c, beam=31, nbest=31), TINY, lm)
    expected = sorted(scores, key=scores.__getitem__, reverse=True)
    assert [x.score for x in found] == pytest.approx([scores[text] for text in expected], abs=1e-4)
    assert [scores[x.text] for x in found] == pytest.approx([scores[text] for text in expected], abs=1e-4)
    # Nothing is lost by stopping early, where that is still allowed.
    (best,) = beam_search(model, h, lengths, replace(c, beam=31), TINY, lm)
    assert best[0].score == pytest.approx(scores[expected[0]], abs=1e-4)


def test_all_weights_0_is_absence() -> None:
    model = make_model()
    h, lengths = random_states([14, 9, 1])
    plain = DecodingConfig(beam=4, nbest=4, ctc_weight=0.3)
    zero = replace(plain, lm_weight=0.0, lm_eos=False, ilm_weight=0.0, word_bonus=0.0)
    tokenizer = CharTokenizer()
    expected = itertools.chain(*beam_search(model, h, lengths, plain, tokenizer))
    found = itertools.chain(*beam_search(model, h, lengths, zero, tokenizer, Bigrams(32)))
    for a, b in zip(expected, found, strict=True):
        assert (a.tokens, a.score, a.token_scores) == (b.tokens, b.score, b.token_scores)


@pytest.mark.parametrize("speller", [SPELLERS["two hops"], SPELLERS["location"], SPELLERS["cho"]])
def test_a_batch_is_one_by_one(speller: dict[str, Any]) -> None:
    model, tokenizer, lengths = make_model(**speller), CharTokenizer(), (14, 9, 1, 17)
    h, n = random_states(lengths)
    lm = WordLanguageModel(estimate(["THE CAT SAT", "THE CAT ATE THE MAT", "A MAT SAT"]))
    config = DecodingConfig(
        beam=5, nbest=2, ctc_weight=0.3, lm_weight=0.5, ilm_weight=0.3, lm_eos=False, word_bonus=-0.5
    )
    together = beam_search(model, h, n, config, tokenizer, lm)
    for i, length in enumerate(lengths):
        (alone,) = beam_search(model, h[i : i + 1, :length], n[i : i + 1], config, tokenizer, lm)
        assert [x.text for x in alone] == [x.text for x in together[i]]
        assert [x.score for x in alone] == pytest.approx([x.score for x in together[i]], abs=1e-4)


def test_the_end_of_the_text_is_the_end_of_a_word() -> None:
    lm = Bigrams(32)
    whole, merged = LmScorer(lm, 1.0), LmScorer(lm, 1.0, space=SPACE)
    h, lengths = random_states([3])
    step = Step(0, torch.tensor([7]), Beams.single(1, torch.device("cpu")))
    a, _ = whole.score(whole.start(h, lengths), step)
    b, _ = merged.score(merged.start(h, lengths), step)
    assert b[0, SPACE] == b[0, EOS] == pytest.approx(math.log(a[0, SPACE].exp() + a[0, EOS].exp()))
    rest = [i for i in range(32) if i not in (SPACE, EOS)]
    assert torch.equal(a[0, rest], b[0, rest])


def test_the_speller_must_be_there_to_be_subtracted_from() -> None:
    with pytest.raises(ValueError, match="takes from the speller's score"):
        DecodingConfig(ctc_weight=1.0, ilm_weight=0.1)
    with pytest.raises(ValueError, match="ilm_weight must not be negative"):
        DecodingConfig(ilm_weight=-0.1)

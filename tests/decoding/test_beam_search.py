"""The search against plain loops, exhaustive search and the speller's own probabilities; and its guards at work."""

import itertools
import math
import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import Bigrams, ctc_says, make_model, random_states, scripted
from torch import Tensor, nn

from asr.decoding.beam_search import PRESETS, DecodingConfig, Hypothesis, _Search, beam_search
from asr.decoding.greedy import speller_greedy
from asr.decoding.scorers import LengthBonus, LmScorer, Step
from asr.errors import ConfigError
from asr.model import ListenAttendSpell
from asr.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
SPELLERS: dict[str, dict[str, Any]] = {
    "one hop": {"hops": 1},
    "two hops": {"hops": 2},
    "input feeding": {"input_feeding": True},
    "location": {"attention": "location"},
    "additive": {"attention": "additive", "hops": 1},
    "general": {"attention": "general"},
    "reader": {"reader": 10},
    "fixed": {"context": "fixed"},
    "cho": {"context": "cho"},
}
LENGTHS = (14, 9, 1, 17)
EOS_BIAS = (-1e4, 2.0, 4.0)  # never, now and then, soon


def speller_score(model: ListenAttendSpell, h: Tensor, ids: tuple[int, ...]) -> float:
    """log p(ids, EOS | h (N, d)) by the parallel speller, all characters at once."""
    memory = model.speller.memory(h[None], torch.tensor([len(h)]))
    logits, _ = model.speller(torch.tensor([[CharTokenizer.bos_id, *ids]]), memory)
    targets = torch.tensor([*ids, CharTokenizer.eos_id])
    return logits[0].log_softmax(-1).gather(1, targets[:, None]).sum().item()


def same(a: list[list[Hypothesis]], b: list[list[Hypothesis]]) -> None:
    for one, other in zip(a, b, strict=True):
        assert [x.text for x in one] == [x.text for x in other]
        for x, y in zip(one, other, strict=True):
            assert x.score == pytest.approx(y.score, abs=1e-4)
            assert x.token_scores == pytest.approx(y.token_scores, abs=1e-4)
            if x.attention is not None:
                torch.testing.assert_close(x.attention, y.attention, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("speller", SPELLERS.values(), ids=SPELLERS)
@pytest.mark.parametrize("eos", EOS_BIAS)
def test_beam_1_is_the_greedy_loop(speller: dict[str, Any], eos: float) -> None:
    model = make_model(seed=3, **speller)
    with torch.no_grad():
        model.speller.output.bias[CharTokenizer.eos_id] += eos
    h, lengths = random_states(LENGTHS)
    expected, weights = speller_greedy(model.speller, h, lengths)
    found = beam_search(model, h, lengths, DecodingConfig(beam=1), TOKENIZER)
    assert [list(hypotheses[0].tokens) for hypotheses in found] == expected
    for i, (hypothesis,) in enumerate(found):
        if speller.get("context") in ("fixed", "cho"):
            assert hypothesis.attention is None
        else:
            length = len(hypothesis.tokens)
            assert hypothesis.attention is not None
            torch.testing.assert_close(hypothesis.attention, weights[i, :length, : LENGTHS[i]], atol=1e-5, rtol=1e-4)


def test_greedy_cases_differ_in_length() -> None:
    """The comparison above means something: texts of different lengths, some cut at N characters, some ended."""
    h, lengths = random_states(LENGTHS)
    ends = set()
    for eos in EOS_BIAS:
        model = make_model(seed=3)
        with torch.no_grad():
            model.speller.output.bias[CharTokenizer.eos_id] += eos
        for length, ids in zip(LENGTHS, speller_greedy(model.speller, h, lengths)[0], strict=True):
            ends.add("cut" if len(ids) == length else "empty" if not ids else "ended")
    assert ends == {"cut", "ended", "empty"}


CONFIGS = {
    "speller": DecodingConfig(beam=4, nbest=3),
    "ctc": DecodingConfig(beam=4, nbest=3, ctc_weight=0.4),
    "ctc alone": DecodingConfig(beam=4, nbest=2, ctc_weight=1.0),
    "all": DecodingConfig(
        beam=5,
        nbest=2,
        ctc_weight=0.3,
        lm_weight=0.4,
        length_bonus=0.5,
        coverage=0.2,
        coverage_threshold=0.3,
        temperature=1.5,
        eos_threshold=0.5,
        min_length_ratio=0.4,
        max_length_ratio=1.3,
        max_repeats=2,
    ),
    "merged": DecodingConfig(beam=5, nbest=2, ctc_weight=0.3, lm_weight=0.4, merge_words=1),
    "pruned": DecodingConfig(beam=5, prune=0.4, ctc_weight=0.3, lm_weight=0.4, coverage=0.2, merge_words=1),
    "pruned, three best": DecodingConfig(beam=5, nbest=3, prune=0.4, ctc_weight=0.3),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("speller", [SPELLERS["two hops"], SPELLERS["input feeding"], SPELLERS["location"]])
@pytest.mark.parametrize("packed", [False, True])
def test_batched_is_one_by_one(config: DecodingConfig, speller: dict[str, Any], packed: bool) -> None:
    model, lm = make_model(**speller), Bigrams(32)
    if packed:
        model.speller.pack()
    h, lengths = random_states(LENGTHS)
    h[~(torch.arange(h.shape[1]) < lengths[:, None])] = 50.0  # what stands on padding does not matter
    together = beam_search(model, h, lengths, config, TOKENIZER, lm)
    alone = [
        beam_search(model, h[i : i + 1, :n], lengths[i : i + 1], config, TOKENIZER, lm)[0]
        for i, n in enumerate(LENGTHS)
    ]
    same(together, alone)
    others = beam_search(model, h[[3, 1]], lengths[[3, 1]], config, TOKENIZER, lm)
    same([together[3], together[1]], others)
    assert len({hypotheses[0].text for hypotheses in together}) > 2


@pytest.mark.parametrize("speller", SPELLERS.values(), ids=SPELLERS)
def test_token_scores_are_the_spellers(speller: dict[str, Any]) -> None:
    model = make_model(**speller)
    h, lengths = random_states(LENGTHS)
    for i, hypotheses in enumerate(beam_search(model, h, lengths, DecodingConfig(beam=6, nbest=6), TOKENIZER)):
        assert len(hypotheses) > 1
        for hypothesis in hypotheses:
            expected = speller_score(model, h[i, : LENGTHS[i]], hypothesis.tokens)
            assert sum(hypothesis.token_scores) == pytest.approx(expected, abs=1e-3)
            assert hypothesis.score == pytest.approx(expected, abs=1e-3)
            assert len(hypothesis.token_scores) == len(hypothesis.tokens) + 1
            assert hypothesis.text == TOKENIZER.decode(hypothesis.tokens)
            assert min(hypothesis.tokens, default=4) >= 4  # no special ids


def test_attention_is_that_of_the_hypothesis() -> None:
    model = make_model()
    h, lengths = random_states(LENGTHS)
    for i, hypotheses in enumerate(beam_search(model, h, lengths, DecodingConfig(beam=6, nbest=6), TOKENIZER)):
        memory = model.speller.memory(h[i : i + 1, : LENGTHS[i]], lengths[i : i + 1])
        for hypothesis in hypotheses:
            _, weights = model.speller(torch.tensor([[CharTokenizer.bos_id, *hypothesis.tokens]]), memory)
            assert weights is not None
            assert hypothesis.attention is not None
            torch.testing.assert_close(hypothesis.attention, weights[0, :-1], atol=1e-5, rtol=1e-4)


EXHAUSTIVE = {
    "speller": DecodingConfig(),
    "ctc": DecodingConfig(ctc_weight=0.5),
    "ctc alone": DecodingConfig(ctc_weight=1.0),
    "lm": DecodingConfig(lm_weight=0.8),
    "length": DecodingConfig(length_bonus=1.5),
    "length malus": DecodingConfig(length_bonus=-1.0),
    "coverage": DecodingConfig(coverage=1.5),
    "all": DecodingConfig(ctc_weight=0.3, lm_weight=0.5, length_bonus=0.9, coverage=0.4),
}


@pytest.mark.parametrize("config", EXHAUSTIVE.values(), ids=EXHAUSTIVE)
@pytest.mark.parametrize("seed", range(3))
def test_wide_enough_beam_is_exhaustive_search(config: DecodingConfig, seed: int) -> None:
    tokenizer = CharTokenizer("AB")
    model, lm, frames = make_model(characters=2, seed=seed, scale=2.0), Bigrams(6), 4
    h, lengths = random_states([frames], seed=seed)
    memory = model.speller.memory(h, lengths)
    ctc = model.ctc(h)[0].double().log_softmax(-1)
    scores = {}
    for n in range(frames + 1):
        for ids in itertools.product((4, 5), repeat=n):
            c = config
            score = (1 - c.ctc_weight) * speller_score(model, h[0], ids) + c.length_bonus * n
            if c.ctc_weight:
                sizes = torch.tensor(frames), torch.tensor(n)
                loss = nn.functional.ctc_loss(ctc, torch.tensor(ids, dtype=torch.long), *sizes, reduction="none")
                score -= c.ctc_weight * loss.item()
            if c.lm_weight:
                bigrams = zip([1, *ids], [*ids, 2], strict=True)
                score += c.lm_weight * sum(lm.table.log_softmax(-1)[a, b].item() for a, b in bigrams)
            if c.coverage:
                _, weights = model.speller(torch.tensor([[1, *ids]]), memory)
                assert weights is not None
                score += c.coverage * (weights[0].sum(0) > c.coverage_threshold).sum().item()
            if score > -math.inf:
                scores["".join("AB"[i - 4] for i in ids)] = score
    # 31 texts of up to 4 letters; a CTC head with 4 frames cannot say all of them
    assert len(scores) == 31 or config.ctc_weight
    config = replace(config, beam=31, nbest=31)
    (found,) = beam_search(model, h, lengths, config, tokenizer, lm)
    expected = sorted(scores, key=scores.__getitem__, reverse=True)
    assert [x.text for x in found] == expected
    assert [x.score for x in found] == pytest.approx([scores[text] for text in expected], abs=1e-4)
    # Stopping early costs nothing either: the best alone is the same best.
    (best,) = beam_search(model, h, lengths, replace(config, nbest=1), tokenizer, lm)
    assert [x.text for x in best] == expected[:1]


def beams(model: ListenAttendSpell, h: Tensor, lengths: Tensor, config: DecodingConfig) -> list[list[str]]:
    """The texts in the beam of each utterance after each step, traced back through the search's past."""
    found: list[list[str]] = []

    class Watched(_Search):
        def _advance(self, gain: Tensor, step: Step) -> None:
            super()._advance(gain, step)
            for row, utterance in enumerate(self.past[-1].utterances.tolist()):
                texts = []
                for k, score in enumerate(self.past[-1].score[row].tolist()):
                    ids: list[int] = []
                    for past in reversed(self.past):
                        at = past.utterances.tolist().index(utterance)
                        ids.append(int(past.token[at, k]))
                        k = int(past.parent[at, k])
                    if score > -math.inf:
                        texts.append(TOKENIZER.decode(ids[::-1]))
                found.append(texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asr.decoding.beam_search._Search", Watched)
        beam_search(model, h, lengths, config, TOKENIZER)
    return found


@pytest.mark.parametrize("words", [1, 2])
def test_merged_hypotheses_differ_in_their_last_words(words: int) -> None:
    model = make_model(seed=4)
    with torch.no_grad():
        model.speller.output.bias[TOKENIZER.space_id] += 4  # short words
        model.speller.output.bias[CharTokenizer.eos_id] -= 100
    h, lengths = random_states(LENGTHS)

    def ends(text: str) -> str:
        return " ".join(text.split(" ")[-1 - words :])

    def repeated(found: list[list[str]]) -> int:
        return sum(len(texts) - len({ends(text) for text in texts}) for texts in found)

    config = DecodingConfig(beam=24)
    assert repeated(beams(model, h, lengths, config)) > 0
    assert repeated(beams(model, h, lengths, replace(config, merge_words=words))) == 0


def test_merging_by_more_words_than_there_are_changes_nothing() -> None:
    model = make_model(seed=4)
    h, lengths = random_states(LENGTHS)
    config = DecodingConfig(beam=6, nbest=3, ctc_weight=0.3)
    plain = beam_search(model, h, lengths, config, TOKENIZER)
    same(plain, beam_search(model, h, lengths, replace(config, merge_words=30), TOKENIZER))


def test_nbest_is_sorted_and_unique() -> None:
    h, lengths = random_states(LENGTHS)
    for ctc_weight in (0.0, 0.4):
        config = DecodingConfig(beam=8, nbest=8, ctc_weight=ctc_weight)
        for hypotheses in beam_search(make_model(), h, lengths, config, TOKENIZER):
            scores = [x.score for x in hypotheses]
            assert scores == sorted(scores, reverse=True)
            assert len({x.text for x in hypotheses}) == len(hypotheses) > 1


def test_weight_0_is_absence() -> None:
    model = make_model()
    h, lengths = random_states(LENGTHS)
    plain = DecodingConfig(beam=4, nbest=4)
    expected = beam_search(model, h, lengths, plain, TOKENIZER)

    class Broken:
        """Whoever asks it anything fails."""

        weight = 0.0

    zero = replace(plain, lm_weight=0.0, ctc_weight=0.0, length_bonus=0.0, coverage=0.0)
    found = beam_search(model, h, lengths, zero, TOKENIZER, Broken(), [Broken()])  # type: ignore[arg-type,list-item]
    for a, b in zip(itertools.chain(*expected), itertools.chain(*found), strict=True):
        assert (a.tokens, a.score, a.token_scores) == (b.tokens, b.score, b.token_scores)
    lm = beam_search(model, h, lengths, replace(plain, lm_weight=0.5), TOKENIZER, Bigrams(32))
    assert [x.score for x in itertools.chain(*lm)] != [x.score for x in itertools.chain(*expected)]


def test_extra_scorers_count() -> None:
    model = make_model()
    h, lengths = random_states(LENGTHS)
    bonus = DecodingConfig(beam=4, length_bonus=2.0)
    expected = beam_search(model, h, lengths, bonus, TOKENIZER)
    found = beam_search(
        model, h, lengths, replace(bonus, length_bonus=0.0), TOKENIZER, extra_scorers=[LengthBonus(32, 2.0)]
    )
    same(expected, found)


def test_a_subtracted_language_model_keeps_the_search_going() -> None:
    """Its log-probabilities add to the score without limit, so nothing may stop early."""

    class Never:
        """Finds everything but EOS all but impossible."""

        def start(self, batch: int) -> Tensor:
            return torch.zeros(batch)

        def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            logits = torch.full((len(tokens), 32), -5.0)
            logits[:, CharTokenizer.eos_id] = 5.0
            return logits, state

        def select(self, state: Tensor, rows: Tensor) -> Tensor:
            return state[rows]

    model = scripted(lambda position: {"A": 0.01, "EOS": 0.9}, TOKENIZER)
    h, lengths = torch.zeros(1, 9, 32), torch.tensor([9])
    subtracted = LmScorer(Never(), -0.5)
    ((best,),) = beam_search(model, h, lengths, DecodingConfig(beam=4), TOKENIZER, extra_scorers=[subtracted])
    assert best.text == "A" * 9


def test_language_model_must_be_there() -> None:
    h, lengths = random_states([3])
    with pytest.raises(ConfigError, match="there is no language model"):
        beam_search(make_model(), h, lengths, DecodingConfig(lm_weight=0.3), TOKENIZER)


def test_coverage_needs_attention() -> None:
    h, lengths = random_states([3])
    with pytest.raises(ConfigError, match="coverage needs attention"):
        beam_search(make_model(context="cho"), h, lengths, DecodingConfig(coverage=0.3), TOKENIZER)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beam": 0}, "beam must be at least 1"),
        ({"beam": 2, "nbest": 3}, "nbest"),
        ({"prune": 0.0}, "prune must be above 0"),
        ({"ctc_weight": 1.5}, "ctc_weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"max_length_ratio": math.inf}, "max_length_ratio must be finite"),
        ({"ilm_patience": math.nan}, "ilm_patience"),
        ({"max_repeats": -1}, "max_repeats"),
        ({"min_length_ratio": 2.0, "max_length_ratio": 1.5}, "min_length_ratio"),
        ({"ctc_weight": 1.0, "coverage": 0.1}, "looks at the speller"),
    ],
)
def test_settings_that_cannot_work(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingConfig(**setting)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_those_of_conf(name: str) -> None:
    path = Path(__file__).parents[2] / "conf" / "decoding" / f"{name}.yaml"
    settings = yaml.safe_load(path.read_text())
    assert list(settings) == [field.name for field in fields(DecodingConfig)]
    assert DecodingConfig(**settings) == PRESETS[name]


# ------------------------------------------------------------------------------------------------- early stop, batches


def spells(text: str, share: float = 0.9, end: float = 0.02) -> Any:
    """A script that spells the text with this certainty a character, and then ends."""

    def script(position: int) -> dict[str, float]:
        return {text[position]: share, "EOS": end} if position < len(text) else {"EOS": share}

    return script


def test_the_search_stops_when_nothing_can_win() -> None:
    model = scripted(spells("HELLO"), TOKENIZER)
    h = torch.zeros(1, 200, 32)
    ((best,),) = beam_search(model, h, torch.tensor([200]), DecodingConfig(), TOKENIZER)
    assert best.text == "HELLO"
    assert len(model.speller.rows) == 6


def test_with_a_length_bonus_it_waits_for_what_may_still_win() -> None:
    """HELLO ends certainly; but every further character, though unlikely, is paid more than it costs."""

    def script(position: int) -> dict[str, float]:
        return {"A": 0.3, "EOS": 0.6}

    h, lengths = torch.zeros(1, 20, 32), torch.tensor([20])
    plain = beam_search(scripted(script, TOKENIZER), h, lengths, DecodingConfig(), TOKENIZER)
    paid = beam_search(scripted(script, TOKENIZER), h, lengths, DecodingConfig(length_bonus=1.3), TOKENIZER)
    assert (plain[0][0].text, paid[0][0].text) == ("", "A" * 20)


def test_finished_utterances_leave_the_batch() -> None:
    model = scripted(lambda position: {"A": 0.9, "EOS": 0.01}, TOKENIZER)
    lengths = torch.tensor([2, 5, 3])
    found = beam_search(model, torch.zeros(3, 5, 32), lengths, DecodingConfig(beam=2, length_bonus=1.0), TOKENIZER)
    assert [x.text for (x,) in found] == ["AA", "AAAAA", "AAA"]
    # The step at N characters is EOS's alone; "A" has one rival, which not even all bonuses bring before an early end.
    assert model.speller.rows == [3, 3, 3, 2, 1, 1]


# ------------------------------------------------------------------------------------------------------------- pruning


def test_what_falls_behind_by_more_than_prune_is_given_up() -> None:
    """Two beginnings, one 1.1 nats (a third as likely) behind; a wider margin keeps it and a narrower one does not."""

    def script(position: int) -> dict[str, float]:
        return {"A": 0.6, "B": 0.2} if position == 0 else {"C": 0.8, "EOS": 0.1} if position < 3 else {"EOS": 0.9}

    h, lengths = torch.zeros(2, 9, 32), torch.tensor([9, 9])
    rows = {}
    for prune in (1.0, 1.2):
        model = scripted(script, TOKENIZER)
        found = beam_search(model, h, lengths, DecodingConfig(beam=4, prune=prune), TOKENIZER)
        assert [x.text for (x,) in found] == ["ACC", "ACC"]
        rows[prune] = model.speller.rows
    assert rows == {1.0: [2, 2, 2, 2], 1.2: [2, 4, 4, 4]}


def test_a_late_winner_is_lost_to_a_narrow_margin_alone() -> None:
    """B begins three times less likely than A and is far ahead after its next character."""
    table = torch.full((32, 32), -9.0)
    a, b, c, d = TOKENIZER.encode("ABCD")
    end = CharTokenizer.eos_id
    for before, after, p in ((1, a, 0.75), (1, b, 0.25), (a, c, 0.1), (a, d, 0.9), (b, c, 1.0), (c, end, 1.0)):
        table[before, after] = math.log(p)
    lm = Bigrams(32)
    lm.table = table
    model = scripted(lambda position: dict.fromkeys("ABC", 0.3) | {"EOS": 0.3}, TOKENIZER)
    for prune, text in ((0.9, "AC"), (1.4, "BC"), (math.inf, "BC")):
        config = DecodingConfig(beam=4, prune=prune, lm_weight=1.0, min_length_ratio=0.5)
        ((best,),) = beam_search(model, ctc_says("BC", 9, TOKENIZER), torch.tensor([9]), config, TOKENIZER, lm)
        assert best.text == text


@pytest.mark.parametrize("config", [CONFIGS["ctc"], CONFIGS["merged"], CONFIGS["all"]])
def test_a_margin_that_nothing_falls_behind_of_changes_nothing(config: DecodingConfig) -> None:
    model, lm = make_model(), Bigrams(32)
    h, lengths = random_states(LENGTHS)
    expected = beam_search(model, h, lengths, config, TOKENIZER, lm)
    same(beam_search(model, h, lengths, replace(config, prune=1e4), TOKENIZER, lm), expected)


def test_as_many_hypotheses_as_are_asked_for_stay() -> None:
    model = make_model()
    h, lengths = random_states([14, 9])
    for hypotheses in beam_search(model, h, lengths, DecodingConfig(beam=6, nbest=4, prune=1e-6), TOKENIZER):
        assert len({x.text for x in hypotheses}) == 4


# ------------------------------------------------------------------------------------------------------------- guards


def recognise(script: Any, says: str, frames: int = 60, **settings: Any) -> str:
    h = ctc_says(says, frames, TOKENIZER)
    ((best,),) = beam_search(
        scripted(script, TOKENIZER), h, torch.tensor([frames]), DecodingConfig(**settings), TOKENIZER
    )
    return best.text


def loops(position: int) -> dict[str, float]:
    return {"BEEN PLIED "[position % 11]: 0.9, "EOS": 0.03, "S": 0.02}


def most_repeats(text: str, longest: int = 40) -> int:
    """How often the most repeated unit of `text` stands in a row."""
    units = (re.finditer(rf"(?=((.{{{n}}})\2*))", text) for n in range(1, longest + 1))
    return max(len(m[1]) // len(m[2]) for matches in units for m in matches)


def test_loops() -> None:
    text = "BEEN PLIED"
    assert most_repeats(recognise(loops, text, beam=1)) == 5  # to the end of the 60 encoder states
    for beam, times in itertools.product((1, 8), (1, 2, 3)):
        # (Without eos_threshold a wide beam ends at once: every character costs, and the end is never certain.)
        guarded = recognise(loops, text, beam=beam, eos_threshold=0.5, max_repeats=times)
        assert most_repeats(guarded) <= times < len(guarded)
    assert recognise(loops, text, beam=8, ctc_weight=0.3) == text
    for config in (PRESETS["beam"], PRESETS["beam_ctc"]):
        assert 10 <= len(recognise(loops, text, **asdict(config))) <= 15
    assert recognise(loops, text, **asdict(PRESETS["beam_ctc"])) == text


def test_early_end() -> None:
    """After THE CAT the speller would rather end; the sentence goes on."""
    text = "THE CAT SAT ON THE MAT"

    def script(position: int) -> dict[str, float]:
        if position == 7:
            return {"EOS": 0.55, text[position]: 0.4}
        return spells(text, share=0.95, end=1e-3)(position)

    assert recognise(script, text) == "THE CAT"
    assert recognise(script, text, min_length_ratio=0.5) == text
    assert recognise(script, text, ctc_weight=0.3) == text
    assert recognise(script, text, coverage=0.3) == text
    assert recognise(script, text, length_bonus=0.5, max_length_ratio=1.0) == text


def test_eos_at_every_length() -> None:
    """EOS has a fair share everywhere: a wide beam finds that the shortest texts are the most likely ones."""
    text = "THE CAT SAT ON THE MAT"
    script = spells(text, share=0.7, end=0.25)
    assert recognise(script, text, beam=1) == text
    assert recognise(script, text) == ""
    assert recognise(script, text, eos_threshold=0.5) == text
    assert recognise(script, text, ctc_weight=0.3) == text
    assert recognise(script, text, min_length_ratio=1.0) == text


def test_insertions_in_silence() -> None:
    """CTC hears nothing; the speller has a favourite sentence."""
    assert recognise(spells("THANK YOU"), "") == "THANK YOU"
    assert recognise(spells("THANK YOU"), "", max_length_ratio=1.5) == ""
    assert recognise(spells("THANK YOU"), "", ctc_weight=0.3) == ""
    assert recognise(spells("THANK YOU"), "", ctc_weight=1.0) == ""


@pytest.mark.parametrize("config", [DecodingConfig(beam=1), *CONFIGS.values()])
def test_empty_input(config: DecodingConfig) -> None:
    model, lm = make_model(), Bigrams(32)
    h, _ = random_states([6, 6, 6])
    lengths = torch.tensor([0, 6, 1])
    found = beam_search(model, h, lengths, config, TOKENIZER, lm)
    assert (found[0][0].tokens, found[0][0].text, found[0][0].score) == ((), "", 0.0)
    assert all(len(x.tokens) <= 1 for x in found[2])
    same(found[1:], beam_search(model, h[1:], lengths[1:], config, TOKENIZER, lm))
    assert beam_search(model, h[:0], lengths[:0], config, TOKENIZER, lm) == []
    (nothing,) = beam_search(model, h[:1, :0], lengths[:1], config, TOKENIZER, lm)
    assert [x.text for x in nothing] == [""]


def test_numbers_that_are_none_give_an_empty_hypothesis() -> None:
    h, lengths = random_states([4, 5])
    h[0] = math.nan
    found = beam_search(make_model(), h, lengths, DecodingConfig(ctc_weight=0.3), TOKENIZER)
    assert found[0][0].text == ""
    same(found[1:], beam_search(make_model(), h[1:], lengths[1:], DecodingConfig(ctc_weight=0.3), TOKENIZER))

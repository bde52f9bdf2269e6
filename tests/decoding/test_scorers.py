"""The parts of the score, each against its definition."""

import itertools
import math

import pytest
import torch
from tiny_models import Bigrams
from torch import Tensor, nn

from asr.decoding.scorers import Beams, CoverageScorer, CtcPrefixScorer, LengthBonus, LmScorer, RepetitionGuard, Step
from asr.tokenizer import CharTokenizer

BLANK, EOS = CharTokenizer.blank_id, CharTokenizer.eos_id
A, B = 4, 5


def beams(*counts: int) -> Beams:
    """Of utterances with so many rows."""
    return Beams.of(torch.arange(max(counts)) < torch.tensor(counts)[:, None])


def step(tokens: Tensor, position: int = 0, whose: Beams | None = None) -> Step:
    return Step(position, tokens, whose or beams(*[1] * len(tokens)))


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def brute_force(log_probs: Tensor, prefix: tuple[int, ...]) -> tuple[float, float]:
    """log p(all that begins with the prefix), log p(the prefix alone): sums over all V^T paths."""
    begins, equals = 0.0, 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        label = collapsed(path)
        if label[: len(prefix)] == prefix:
            p = math.exp(sum(float(log_probs[t, c]) for t, c in enumerate(path)))
            begins += p
            equals += p if label == prefix else 0.0
    return math.log(begins) if begins else -math.inf, math.log(equals) if equals else -math.inf


def follow(scorer: CtcPrefixScorer, logits: Tensor, lengths: Tensor, prefix: tuple[int, ...], beam: int = 1):
    """Scores of every next character after the prefix (B beam, V), and what the prefix itself has gained."""
    state, rows, whose = scorer.start(logits, lengths), torch.arange(len(logits)), beams(*[1] * len(logits))
    gained, tokens = torch.zeros(len(rows), dtype=torch.float64), torch.full((len(rows),), CharTokenizer.bos_id)
    for i, token in enumerate(prefix):
        scores, state = scorer.score(state, step(tokens, i, whose))
        gained = gained + scores[:, token]
        if i == 0:
            rows, whose = rows.repeat_interleave(beam), beams(*[beam] * len(logits))
            gained = gained[rows]
        tokens = torch.full((len(rows),), token)
        state, rows = scorer.select(state, rows, tokens, whose), torch.arange(len(rows))
    return scorer.score(state, step(tokens, len(prefix), whose))[0], gained


@pytest.mark.parametrize("prefix", [(), (A,), (A, B), (A, A), (B, B, A), (A, B, A, B)])
def test_ctc_scores_are_sums_over_all_paths(prefix: tuple[int, ...]) -> None:
    logits = 2 * torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([4, 3])
    scores, gained = follow(CtcPrefixScorer(nn.Identity(), 1.0), logits, lengths, prefix)
    for b, length in enumerate(lengths):
        log_probs = logits[b, :length].double().log_softmax(-1)
        before, whole = brute_force(log_probs, prefix)
        if before == -math.inf:
            assert gained[b] == -math.inf
            continue
        assert gained[b].item() == pytest.approx(before, abs=1e-5)
        for token in (A, B):
            after, _ = brute_force(log_probs, (*prefix, token))
            assert scores[b, token].item() == pytest.approx(after - before, abs=1e-5)
        assert scores[b, EOS].item() == pytest.approx(whole - before, abs=1e-5)


def test_ctc_continuations_and_end_share_the_probability_of_the_prefix() -> None:
    logits = 3 * torch.randn(1, 30, 6, generator=torch.Generator().manual_seed(1))
    logits[:, :, 1:4] = -math.inf  # the other three special ids; -inf is a fair logit
    scores, _ = follow(CtcPrefixScorer(nn.Identity(), 1.0), logits, torch.tensor([30]), (A, A, B))
    assert scores[0, [A, B, EOS]].exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("certainty", [1.0, 30.0])
def test_ctc_equals_the_recursion_over_frames_on_long_input(certainty: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = certainty * torch.randn(2, 400, 32, generator=generator)
    lengths = torch.tensor([400, 377])
    prefix = tuple(torch.randint(4, 32, (150,), generator=generator).tolist())
    scores, gained = follow(CtcPrefixScorer(nn.Identity(), 1.0), logits, lengths, prefix)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    losses = nn.functional.ctc_loss(
        log_probs.double(), torch.tensor([prefix] * 2), lengths, torch.tensor([150] * 2), reduction="none"
    )
    assert (gained + scores[:, EOS]).tolist() == pytest.approx((-losses).tolist(), abs=5e-3, rel=1e-6)


def test_ctc_forbids_what_the_frames_cannot_hold() -> None:
    logits = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(0))
    scores, _ = follow(CtcPrefixScorer(nn.Identity(), 1.0), logits, torch.tensor([2]), (A,))
    assert scores[0, A] == -math.inf  # AA needs a blank in between: three frames
    assert scores[0, B] > -math.inf


def test_ctc_prefix_of_as_many_characters_as_frames() -> None:
    logits = torch.randn(1, 26, 6, generator=torch.Generator().manual_seed(0))
    scores, gained = follow(CtcPrefixScorer(nn.Identity(), 1.0), logits, torch.tensor([26]), (A, B) * 13)
    only_path = logits[0].double().log_softmax(-1)[range(26), [A, B] * 13].sum().item()
    assert gained.item() == pytest.approx(only_path, abs=1e-4)
    assert scores[0, EOS].item() == pytest.approx(0, abs=1e-5)


def test_ctc_prefixes_of_more_characters_than_frames() -> None:
    logits = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))
    scores, gained = follow(CtcPrefixScorer(nn.Identity(), 1.0), logits, torch.tensor([9]), (A, B) * 12)
    assert gained.item() == -math.inf
    assert (scores == -math.inf).all()


def test_ctc_padding_and_neighbours_change_nothing() -> None:
    logits = 3 * torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([20, 11, 5])
    scorer = CtcPrefixScorer(nn.Identity(), 1.0)
    together, _ = follow(scorer, logits, lengths, (A, B, B), beam=2)
    for b, length in enumerate(lengths):
        alone, _ = follow(scorer, logits[b : b + 1, :length], length[None], (A, B, B), beam=1)
        pair = together[2 * b : 2 * b + 2, [EOS, A, B]]
        torch.testing.assert_close(pair, alone[:, [EOS, A, B]].expand(2, -1), atol=1e-5, rtol=1e-5)


def test_ctc_rows_go_their_own_ways_and_utterances_leave() -> None:
    logits = 2 * torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(5))
    lengths = torch.tensor([8, 7, 8])
    scorer = CtcPrefixScorer(nn.Identity(), 1.0)
    state = scorer.start(logits, lengths)
    _, state = scorer.score(state, step(torch.full((3,), 1)))
    state = scorer.select(state, torch.tensor([0, 0, 1, 2, 2]), torch.tensor([A, B, A, A, B]), beams(2, 1, 2))
    scores, state = scorer.score(state, step(torch.tensor([A, B, A, A, B]), 1, beams(2, 1, 2)))
    assert scores.shape == (5, 6)
    state = scorer.keep(state, torch.tensor([0, 2]))
    state = scorer.select(state, torch.tensor([1, 4, 4, 3]), torch.tensor([A, A, B, A]), beams(1, 3))  # BA; BA, BB, AA
    scores, _ = scorer.score(state, step(torch.tensor([A, A, B, A]), 2, beams(1, 3)))
    for row, (b, prefix) in enumerate([(0, (B, A)), (2, (B, A)), (2, (B, B)), (2, (A, A))]):
        alone, _ = follow(scorer, logits[b : b + 1], lengths[b : b + 1], prefix)
        torch.testing.assert_close(scores[row, [EOS, A, B]], alone[0, [EOS, A, B]], atol=1e-5, rtol=1e-5)


def test_beams_of_different_widths() -> None:
    places = torch.tensor([[False, True, False, False], [True, True, True, False]])
    found = Beams.of(places)
    assert found.slots.tolist() == [1, 3, 4, 5]  # in a table of three places
    assert found.rows.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert found.owners.tolist() == [0, 1, 1, 1]
    assert not found.full
    rows = torch.tensor([10, 20, 30, 40])
    assert found.spread(rows).tolist() == [[10, 10, 10], [20, 30, 40]]
    assert torch.equal(found.gather(found.spread(rows)), rows)
    everyone = Beams.of(torch.ones(2, 2, dtype=torch.bool))
    assert everyone.full
    assert everyone.spread(rows).tolist() == [[10, 20], [30, 40]]
    assert torch.equal(everyone.gather(everyone.spread(rows)), rows)


def test_language_model_rows_follow_the_hypotheses() -> None:
    lm = Bigrams(6)
    scorer = LmScorer(lm, 0.5)
    state = scorer.start(torch.zeros(2, 3, 1), torch.tensor([3, 3]))
    scores, state = scorer.score(state, step(torch.tensor([A, B])))
    torch.testing.assert_close(scores, lm.table[[A, B]].log_softmax(-1))
    state = scorer.select(scorer.keep(state, torch.tensor([1])), torch.tensor([1, 1]), torch.tensor([A, A]), beams(2))
    assert state.tolist() == [1, 1]


def test_length_bonus_pays_every_character_but_eos() -> None:
    scorer = LengthBonus(6, 0.7)
    state = scorer.start(torch.zeros(2, 3, 1), torch.tensor([3, 3]))
    scores, state = scorer.score(state, step(torch.tensor([1, 1])))
    assert scores.tolist() == [[1, 1, 0, 1, 1, 1]]
    assert scorer.most(state, torch.tensor([3, 2])).tolist() == [3, 2]


def test_coverage_counts_each_encoder_state_once() -> None:
    scorer = CoverageScorer(0.1, threshold=0.5)
    state = scorer.start(torch.zeros(1, 3, 1), torch.tensor([3]))
    gains = []
    for attention in ([0.4, 0.6, 0.0], [0.4, 0.6, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 1.0]):
        current = Step(0, torch.tensor([A]), beams(1), attention=torch.tensor([attention]))
        score, state = scorer.score(state, current)
        gains.append(score.item())
        hope = scorer.most(state, torch.tensor([9])).item()
        state = scorer.select(state, torch.tensor([0]), torch.tensor([A]), beams(1))
    assert gains == [1, 1, 1, 0]
    assert hope == 0


@pytest.mark.parametrize(
    ("written", "forbidden"),
    [
        ("AA", {"A"}),  # a third A
        ("BABA", set()),  # BABAB and BABAA are both fine
        ("BABAB", {"A"}),  # would be the third BA
        ("ABAAB", set()),
        ("ABAABAAB", {"A"}),  # would be the third ABA (and the second A is nothing yet)
        ("", set()),
    ],
)
def test_no_unit_more_than_twice_in_a_row(written: str, forbidden: set[str]) -> None:
    tokenizer = CharTokenizer("AB")
    scorer = RepetitionGuard(len(tokenizer), times=2, longest=4)
    state = scorer.start(torch.zeros(1, 9, 1), torch.tensor([9]))
    for token in tokenizer.encode(written):
        state = scorer.select(state, torch.tensor([0]), torch.tensor([token]), beams(1))
    scores, _ = scorer.score(state, step(torch.tensor([A])))
    assert {c for c in "AB" if scores[0, tokenizer.encode(c)[0]] == -math.inf} == forbidden
    assert scores[0, EOS] == 0


@pytest.mark.parametrize(("longest", "forbidden"), [(2, False), (3, True)])
def test_units_longer_than_the_span_go_unnoticed(longest: int, forbidden: bool) -> None:
    scorer = RepetitionGuard(7, times=1, longest=longest)
    state = scorer.start(torch.zeros(1, 9, 1), torch.tensor([9]))
    for token in (4, 5, 6, 4, 5):
        state = scorer.select(state, torch.tensor([0]), torch.tensor([token]), beams(1))
    scores, _ = scorer.score(state, step(torch.tensor([5])))
    assert bool(scores[0, 6] == -math.inf) == forbidden  # ABC ABC
    assert scores[0, 5] == -math.inf  # BB


def test_repetition_rows_go_their_own_ways_and_utterances_leave() -> None:
    scorer = RepetitionGuard(6, times=2, longest=3)
    state = scorer.start(torch.zeros(2, 9, 1), torch.tensor([9, 9]))
    state = scorer.select(state, torch.tensor([0, 1, 1]), torch.tensor([A, B, A]), beams(1, 2))
    state = scorer.select(state, torch.tensor([0, 1, 2]), torch.tensor([A, B, B]), beams(1, 2))  # AA; BB, AB
    state = scorer.keep(state, torch.tensor([1]))
    state = scorer.select(state, torch.tensor([2, 1]), torch.tensor([A, A]), beams(2))
    state = scorer.select(state, torch.tensor([1, 0]), torch.tensor([A, B]), beams(2))  # BBAA; ABAB
    scores, _ = scorer.score(state, step(torch.tensor([A, B])))
    assert scores[:, [A, B]].isinf().tolist() == [[True, False], [False, False]]
    state = scorer.select(state, torch.tensor([1, 1]), torch.tensor([A, B]), beams(2))  # ABABA; ABABB
    scores, _ = scorer.score(state, step(torch.tensor([A, B])))
    assert scores[:, [A, B]].isinf().tolist() == [[False, True], [False, True]]

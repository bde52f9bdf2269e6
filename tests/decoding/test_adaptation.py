"""The encoder gets used to a voice: what it learns from, and that the model stays as it is."""

import pytest
import torch

from asr.config import from_mapping
from asr.decoding import adaptation
from asr.decoding.adaptation import CTC_SHARE, RATE, adapt
from asr.model import ListenAttendSpell, ModelConfig
from asr.model.encoder import Adaptation
from asr.model.loss import joint_loss
from asr.model.lstm import PackedCell
from asr.tokenizer import CharTokenizer

LENGTHS = (41, 16, 30, 60, 33, 50)
TEXTS = ("ABCD", "E", "FGH", "THE CAB", "BAD", "A BAG")


@pytest.fixture
def model() -> ListenAttendSpell:
    torch.manual_seed(0)
    settings = {
        "encoder": {"n_mels": 12, "d": 16, "layers": 4, "residual": 1},
        "speller": {"d": 16, "embedding": 8},
    }
    model = ListenAttendSpell(from_mapping(ModelConfig, settings, "model"))
    with torch.no_grad():
        model.encoder.norms[-1].weight.fill_(0.5)  # as if it had been trained: it begins at 0
    return model.eval().requires_grad_(False)


@pytest.fixture
def frames() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(length, 12) for length in LENGTHS]


@pytest.fixture
def written() -> list[list[int]]:
    return [CharTokenizer().encode(text) for text in TEXTS]


def loss_of(
    model: ListenAttendSpell, frames: torch.Tensor, tokens: list[int], learned: Adaptation | None
) -> torch.Tensor:
    t = CharTokenizer
    characters = torch.tensor([[t.bos_id, *tokens, t.eos_id]])
    h, lengths = model.listen(frames[None], torch.tensor([len(frames)]), adaptation=learned)
    logits, _ = model.speller(characters[:, :-1], model.speller.memory(h, lengths))
    attention, ctc = joint_loss(logits, model.ctc(h), lengths, characters, torch.tensor([len(tokens)]))
    return CTC_SHARE * ctc + (1 - CTC_SHARE) * attention


def test_what_was_written_is_likelier_then_and_what_was_not_is_not(
    model: ListenAttendSpell,
    frames: list[torch.Tensor],
    written: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adaptation, "PASSES", 20)
    learned = adapt(model, frames, written)
    for segment, tokens in zip(frames, written, strict=True):
        assert loss_of(model, segment, tokens, learned) < loss_of(model, segment, tokens, None)
    other = adapt(model, frames, [CharTokenizer().encode("XYZ")] * len(frames))
    total = sum(loss_of(model, f, w, learned) for f, w in zip(frames, written, strict=True))
    assert total < sum(loss_of(model, f, w, other) for f, w in zip(frames, written, strict=True))


def test_one_voice_has_one_scale_and_one_shift_of_every_value(
    model: ListenAttendSpell,
    frames: list[torch.Tensor],
    written: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adaptation, "PASSES", 1)
    monkeypatch.setattr(adaptation, "ROWS", len(frames))
    learned = adapt(model, frames, written)
    assert [scale.shape for scale, _ in learned] == [(1, 1, 12), *[(1, 1, 16)] * 4]
    for scale, shift in learned:
        for values in (scale, shift):
            assert not values.requires_grad
            assert values.abs().median() == pytest.approx(RATE, rel=1e-3)  # the first step of Adam


def test_segments_without_text_or_speech_teach_nothing(model: ListenAttendSpell, frames: list[torch.Tensor]) -> None:
    assert not any(values.any() for pair in adapt(model, frames, [[]] * len(frames)) for values in pair)
    assert not any(values.any() for pair in adapt(model, [], []) for values in pair)
    assert not any(values.any() for pair in adapt(model, [frames[0][:5]], [[7]]) for values in pair)
    one = adapt(model, [frames[0], frames[1], frames[2][:5]], [[7, 8], [], [9]])
    alone = adapt(model, frames[:1], [[7, 8]])
    assert all(
        torch.equal(a, b) for mine, others in zip(one, alone, strict=True) for a, b in zip(mine, others, strict=True)
    )


@pytest.mark.parametrize(("share", "part"), [(0.0, "ctc"), (1.0, "speller")])
def test_what_may_never_have_been_trained_is_left_out(
    model: ListenAttendSpell, frames: list[torch.Tensor], written: list[list[int]], share: float, part: str
) -> None:
    both = adapt(model, frames, written, ctc_weight=0.2)
    before = adapt(model, frames, written, ctc_weight=share)
    for values in getattr(model, part).parameters():
        values.fill_(torch.nan)
    after = adapt(model, frames, written, ctc_weight=share)
    for mine, others, either in zip(before, after, both, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(mine, either, strict=True))


def test_more_characters_than_states_do_no_harm(model: ListenAttendSpell, frames: list[torch.Tensor]) -> None:
    learned = adapt(model, frames[1:2], [list(range(5, 25))])  # four states: CTC cannot say it
    assert all(values.isfinite().all() for pair in learned for values in pair)


def test_the_same_again_and_no_random_number_of_others_is_used(
    model: ListenAttendSpell, frames: list[torch.Tensor], written: list[list[int]]
) -> None:
    state, shares = torch.get_rng_state(), list[float]()
    first = adapt(model, frames, written, on_step=shares.append)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again = adapt(model, frames, written)
    assert all(
        torch.equal(a, b) for mine, others in zip(first, again, strict=True) for a, b in zip(mine, others, strict=True)
    )
    assert sum(shares) == pytest.approx(1)


@torch.inference_mode()
def test_the_model_stays_as_it_is(
    model: ListenAttendSpell, frames: list[torch.Tensor], written: list[list[int]]
) -> None:
    before = {name: values.clone() for name, values in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    adapt(model, [f.clone() for f in frames], written)  # inference tensors
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_all_phases_hear_with_what_was_learned(
    model: ListenAttendSpell, frames: list[torch.Tensor], written: list[list[int]]
) -> None:
    learned = [(10 * scale, 10 * shift) for scale, shift in adapt(model, frames, written)]
    lengths = torch.tensor(LENGTHS)
    h, _ = model.listen(torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), lengths, 2, adaptation=learned)
    for row, segment in enumerate(frames):
        x, states = segment[None], len(segment) // 4
        total = model.encoder(x, torch.tensor([len(segment)]), learned)[0]
        later = torch.cat([x[:, :1], x], 1)
        total = total + model.encoder(later, torch.tensor([len(segment) + 1]), learned)[0][:, :states]
        torch.testing.assert_close(h[row : row + 1, :states], total / 2, atol=1e-5, rtol=1e-4)
        plain = model.listen(x, torch.tensor([len(segment)]), 2)[0]
        assert (total / 2 - plain).abs().max() > 1e-3


@pytest.mark.skipif(not PackedCell.available(), reason="needs FBGEMM (x86-64)")
@pytest.mark.parametrize("speller", [{"input_feeding": True}, {"attention": "location"}])
def test_a_speller_that_goes_step_by_step_teaches_it_too(
    frames: list[torch.Tensor], written: list[list[int]], speller: dict[str, object]
) -> None:
    settings = {"encoder": {"n_mels": 12, "d": 16, "layers": 2}, "speller": {"d": 16, "embedding": 8} | speller}
    model = ListenAttendSpell(from_mapping(ModelConfig, settings, "model")).eval().requires_grad_(False)
    plain = adapt(model, frames, written)
    model.speller.pack()  # as it is after loading
    for mine, others in zip(adapt(model, frames, written), plain, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, others, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_learns_the_same(model: ListenAttendSpell, frames: list[torch.Tensor], written: list[list[int]]) -> None:
    here = adapt(model, frames, written)
    there = adapt(model.cuda(), [f.cuda() for f in frames], written)
    for mine, others in zip(here, there, strict=True):
        for a, b in zip(mine, others, strict=True):
            assert (a - b.cpu()).abs().mean() < 0.1 * RATE

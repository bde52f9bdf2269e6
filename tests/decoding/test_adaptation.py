"""The encoder adapts to an utterance: what it learns from, that rows are alone, and that the model stays as it is."""

import pytest
import torch

from asr.config import from_mapping
from asr.decoding.adaptation import ENTROPY, RATE, adapt, confusion
from asr.model import ListenAttendSpell, ModelConfig

LENGTHS = (41, 16, 30, 7)


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
        model.ctc.weight.mul_(3)  # surer of itself
    return model.eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), max(LENGTHS), 12), torch.tensor(LENGTHS)


def test_confusion_by_hand() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])  # the second state hears a blank
    entropy = -(p * p.log()).sum(-1)
    sure = 1 + torch.exp(-entropy)
    together = sum(w * torch.outer(q, q) for w, q in zip(sure / sure.sum(), p, strict=True))
    together = together / together.sum(1, keepdim=True)
    expected = ENTROPY * (entropy[0] + entropy[2]) / 2 + (1 - ENTROPY) * (1 - together.diagonal().mean())
    logits = 2.5 * p.log()
    torch.testing.assert_close(confusion(logits[None], torch.tensor([3])), expected[None])
    longer = torch.cat([logits, torch.randn(4, 3)])  # padding
    other = torch.cat([logits[1:2].expand(5, 3), torch.randn(2, 3)])  # nothing but blanks: no entropy counts
    one, two = confusion(torch.stack([longer, other]), torch.tensor([3, 5]))
    torch.testing.assert_close(one, expected)
    blanks = torch.outer(p[1], p[1]) / p[1][:, None]
    torch.testing.assert_close(two, (1 - ENTROPY) * (1 - blanks.diagonal().mean()))
    certain = torch.tensor([[[0.0, 99, 0], [0, 0, 99], [99, 0, 0]]])
    assert confusion(certain, torch.tensor([3])) < 1e-6


def test_nothing_learned_is_nothing_changed(model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert all(not values.any() for pair in adapt(model, *batch, steps=0) for values in pair)
    assert torch.equal(model.listen(*batch, adaptation=adapt(model, *batch, steps=0))[0], model.listen(*batch)[0])


def test_steps_make_the_head_surer(model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    def unsure(steps: int) -> torch.Tensor:
        h, lengths = model.listen(*batch, adaptation=adapt(model, *batch, steps))
        return confusion(model.ctc(h), lengths)

    before, one, several = unsure(0), unsure(1), unsure(20)
    assert (several[:3] < one[:3]).all()
    assert (one[:3] < before[:3]).all()
    assert several[3] <= before[3]  # of one state, perhaps a blank


def test_first_step_is_as_long_for_every_utterance(
    model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    adaptation = adapt(model, *batch, steps=1)
    assert len(adaptation) == 5
    assert [scale.shape for scale, _ in adaptation] == [(4, 1, 12), *[(4, 1, 16)] * 4]
    for scale, shift in adaptation:
        for values in (scale, shift):
            assert not values.requires_grad
            assert values[:3].abs().median() == pytest.approx(RATE, rel=1e-3)  # Adam's


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_utterances_adapt_each_by_itself(
    model: ListenAttendSpell,
    batch: tuple[torch.Tensor, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    monkeypatch.setattr("asr.decoding.adaptation.ROWS", rows)
    frames, lengths = batch
    together = adapt(model, frames, lengths, 3)
    for row, length in enumerate(LENGTHS[:3]):
        alone = adapt(model, frames[row : row + 1, :length], torch.tensor([length]), 3)
        for mine, all_rows in zip(alone, together, strict=True):
            for a, b in zip(mine, all_rows, strict=True):
                assert (a[0] - b[row]).abs().mean() < 0.02 * RATE  # rounding turns a step about where a slope is none


@torch.inference_mode()
def test_the_model_stays_as_it_is(model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    before = {name: values.clone() for name, values in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    adapt(model, *(x.clone() for x in batch), steps=2)  # inference tensors
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_all_phases_hear_with_what_was_learned(
    model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    frames, lengths = batch
    adaptation = [(10 * scale, 10 * shift) for scale, shift in adapt(model, *batch, steps=2)]
    h, _ = model.listen(frames, lengths, 2, adaptation=adaptation)
    for row, length in enumerate(LENGTHS):
        mine = [(scale[row : row + 1], shift[row : row + 1]) for scale, shift in adaptation]
        x = frames[row : row + 1, :length]
        total = model.encoder(x, torch.tensor([length]), mine)[0]
        total = (
            total + model.encoder(torch.cat([x[:, :1], x], 1), torch.tensor([length + 1]), mine)[0][:, : length // 4]
        )
        torch.testing.assert_close(h[row : row + 1, : length // 4], total / 2, atol=1e-5, rtol=1e-4)
        plain = model.listen(x, torch.tensor([length]), 2)[0]
        assert (total / 2 - plain).abs().max() > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_learns_the_same(model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    here = adapt(model, *batch, steps=2)
    there = adapt(model.cuda(), *(x.cuda() for x in batch), steps=2)
    for mine, others in zip(here, there, strict=True):
        for a, b in zip(mine, others, strict=True):
            assert (a[:3] - b[:3].cpu()).abs().mean() < 0.05 * RATE

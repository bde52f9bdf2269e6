"""Listening at several phases: the mean of what the encoder says of an utterance that begins earlier or later."""

import pytest
import torch

from asr.config import from_mapping
from asr.model import ListenAttendSpell, ModelConfig

LENGTHS = (41, 16, 30, 7)


@pytest.fixture
def model() -> ListenAttendSpell:
    torch.manual_seed(0)
    settings = {"encoder": {"n_mels": 12, "d": 16, "layers": 3}, "speller": {"d": 16, "embedding": 8}}
    return ListenAttendSpell(from_mapping(ModelConfig, settings, "model")).eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(len(LENGTHS), max(LENGTHS), 12), torch.tensor(LENGTHS)


def test_one_phase_is_the_encoder(model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    for heard, plain in zip(model.listen(*batch), model.encoder(*batch), strict=True):
        assert torch.equal(heard, plain)


def test_an_utterance_may_be_shorter_than_the_phases() -> None:
    settings = {"encoder": {"n_mels": 12, "d": 16, "layers": 2}, "speller": {"d": 16, "embedding": 8}}
    model = ListenAttendSpell(from_mapping(ModelConfig, settings, "model")).eval()
    h, lengths = model.listen(torch.randn(1, 4, 12), torch.tensor([4]), phases=12)
    assert h.shape[:2] == (1, 1) == (1, int(lengths))
    assert h.isfinite().all()


@pytest.mark.parametrize("phases", [2, 3, 4])
def test_h_is_the_mean_over_shifts(
    model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor], phases: int
) -> None:
    frames, lengths = batch
    h, found = model.listen(frames, lengths, phases)
    assert found.tolist() == [n // 4 for n in LENGTHS]
    for row, length in zip(range(len(LENGTHS)), LENGTHS, strict=True):
        x, total = frames[row, :length], torch.zeros(length // 4, 16)
        for shift in range(-((phases - 1) // 2), phases // 2 + 1):
            if shift < 0:  # what is lost in front is silence behind
                moved = torch.cat([x[-shift:], torch.zeros(-shift, 12)])
            else:
                moved = torch.cat([x[:1].expand(shift, -1), x])
            total += model.encoder(moved[None], torch.tensor([len(moved)]))[0][0, : length // 4]
        torch.testing.assert_close(h[row, : length // 4], total / phases, atol=1e-5, rtol=1e-4)


def test_each_phase_has_a_warp_of_its_own(model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    frames, lengths = batch
    warps = torch.randn(2, 12, 12, generator=torch.Generator().manual_seed(2))
    h, _ = model.listen(frames, lengths, 2, warps)
    for row, length in enumerate(LENGTHS):
        x = frames[row, :length]
        total = torch.zeros(length // 4, 16)
        for moved, warp in zip((x, torch.cat([x[:1], x])), warps, strict=True):
            total += model.encoder((moved @ warp)[None], torch.tensor([len(moved)]))[0][0, : length // 4]
        torch.testing.assert_close(h[row, : length // 4], total / 2, atol=1e-5, rtol=1e-4)


def test_phases_of_a_batch_are_those_of_its_rows(
    model: ListenAttendSpell, batch: tuple[torch.Tensor, torch.Tensor]
) -> None:
    frames, lengths = batch
    h, _ = model.listen(frames, lengths, 4)
    for row, length in enumerate(LENGTHS):
        alone, _ = model.listen(frames[row : row + 1, :length], torch.tensor([length]), 4)
        torch.testing.assert_close(alone[0], h[row, : length // 4], atol=1e-5, rtol=1e-4)


def test_a_shift_by_a_whole_state_moves_h_by_one() -> None:
    """Reduction 4: with 4 phases an utterance that begins 4 frames later is heard one state later, if nothing else."""
    torch.manual_seed(0)
    settings = {"encoder": {"n_mels": 12, "d": 16, "layers": 3}, "speller": {"d": 16, "embedding": 8}}
    model = ListenAttendSpell(from_mapping(ModelConfig, settings, "model")).eval()
    x = torch.randn(1, 80, 12)
    late = torch.cat([x[:, :1].expand(-1, 4, -1), x], 1)
    h, _ = model.listen(x, torch.tensor([80]), 4)
    moved, _ = model.listen(late, torch.tensor([84]), 4)
    apart = (h[0, 5:] - moved[0, 6:]).norm() / h[0, 5:].norm()
    unmoved = (h[0, 5:] - moved[0, 5:-1]).norm() / h[0, 5:].norm()
    assert apart < 0.2 * unmoved

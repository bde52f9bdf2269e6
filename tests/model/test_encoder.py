from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.model import encoder as module
from asr.model.encoder import BiLSTM, EncoderConfig, PyramidalEncoder, join_pairs

LENGTHS = torch.tensor([13, 7, 1])


def packed(lstm: nn.LSTM, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    sequence = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(sequence)[0], batch_first=True, total_length=x.shape[1])[0]


def test_flagged_lstm_equals_the_packed_one_with_its_gradients():
    layer = BiLSTM(5, 8)
    x = torch.randn(3, 13, 5, requires_grad=True)
    ours = layer(x, LENGTHS)
    ours.square().sum().backward()
    gradients = [p.grad.clone() for p in layer.parameters()] + [x.grad.clone()]
    layer.zero_grad()
    x.grad = None
    theirs = packed(layer.lstm, x, LENGTHS)
    theirs.square().sum().backward()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients, [p.grad for p in layer.parameters()] + [x.grad], strict=True):
        torch.testing.assert_close(mine, other)


def test_what_is_quicker_in_fp32_is_exactly_so_under_autocast(monkeypatch):
    layer = BiLSTM(5, 8)
    x = torch.randn(3, 13, 5, requires_grad=True)
    expected = layer(x, LENGTHS)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in [*layer.parameters(), x]]
    layer.zero_grad()
    x.grad = None
    asked = []
    monkeypatch.setattr(module, "quicker_in_fp32", lambda given: asked.append(given.shape) or True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer(x, LENGTHS)
    ours.square().sum().backward()
    assert asked == [(3, 13, 5 + module.FLAG_COLUMNS)]
    assert torch.equal(ours, expected)
    for mine, theirs in zip([p.grad for p in [*layer.parameters(), x]], gradients, strict=True):
        assert torch.equal(mine, theirs)


def test_padding_does_not_reach_the_backward_direction():
    # A plain bidirectional LSTM on the padded tensor would start its backward pass in the padding.
    layer = BiLSTM(5, 8)
    x = torch.randn(3, 13, 5)
    plain = layer.lstm(x)[0]
    assert not torch.allclose(plain[1, :7], layer(x, LENGTHS)[1, :7])


def test_bilstm_padding_is_exactly_zero():
    h = BiLSTM(5, 8)(torch.randn(3, 13, 5), LENGTHS)
    assert (h[1, 7:] == 0).all()
    assert (h[2, 1:] == 0).all()
    assert (h[0] != 0).all()


def test_join_pairs_exact():
    x = torch.arange(10.0).reshape(1, 5, 2)
    joined, lengths = join_pairs(x, torch.tensor([5]))
    assert joined.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
    assert lengths.tolist() == [2]


@pytest.mark.parametrize(
    ("joins", "reduction"), [((), 1), ((1,), 2), ((0, 1), 4), ((1, 2), 4), ((0, 0), 4), ((0, 1, 2), 8)]
)
def test_pyramid_lengths(joins, reduction):
    encoder = PyramidalEncoder(EncoderConfig(n_mels=6, d=8, layers=3, join_before=joins)).eval()
    for time in (8, 17, 31):
        h, lengths = encoder(torch.randn(2, time, 6), torch.tensor([time, 8]))
        assert h.shape == (2, time // reduction, 8)
        assert lengths.tolist() == [time // reduction, 8 // reduction]
        assert encoder.output_lengths(torch.tensor([time, 8])).tolist() == lengths.tolist()


def test_alone_equals_in_a_batch_whatever_the_padding_holds():
    encoder = PyramidalEncoder(EncoderConfig(n_mels=6, d=8, layers=3)).eval()
    lengths = torch.tensor([40, 27, 9])
    x = torch.randn(3, 40, 6)
    together, out = encoder(x, lengths)
    noise = x.clone()
    noise[1, 27:] = 100.0
    torch.testing.assert_close(encoder(noise, lengths)[0][1, : out[1]], together[1, : out[1]])
    for i, length in enumerate(lengths):
        alone, n = encoder(x[i : i + 1, :length], length[None])
        torch.testing.assert_close(alone[0, : n[0]], together[i, : out[i]])


@pytest.mark.parametrize("d", [7, 9])
def test_odd_d_is_refused(d):
    with pytest.raises(ValueError, match="even"):
        BiLSTM(4, d)


def test_join_before_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        PyramidalEncoder(EncoderConfig(layers=3, join_before=(3,)))


def test_residual_layers_begin_as_if_they_were_not_there_and_learn():
    config = EncoderConfig(n_mels=6, d=8, layers=2, dropout=0.0)
    small = PyramidalEncoder(config)
    deep = PyramidalEncoder(replace(config, layers=4, residual=2))
    deep.load_state_dict(deep.state_dict() | small.state_dict())
    x, lengths = torch.randn(3, 40, 6), torch.tensor([40, 27, 9])
    h, n = deep(x, lengths)
    for row, length in zip(range(3), n, strict=True):
        assert torch.equal(h[row, :length], small(x, lengths)[0][row, :length])
    optimizer = torch.optim.SGD(deep.parameters(), lr=0.1)
    for _ in range(2):  # the norm's scale first, then what it scales
        optimizer.zero_grad()
        deep(x, lengths)[0].square().sum().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for layer in deep.layers[2:] for p in layer.parameters())


def test_residual_layers_alone_equal_in_a_batch():
    encoder = PyramidalEncoder(EncoderConfig(n_mels=6, d=8, layers=4, residual=2)).eval()
    for norm in encoder.norms:
        torch.nn.init.normal_(norm.weight)
    lengths = torch.tensor([40, 27])
    x = torch.randn(2, 40, 6)
    together, out = encoder(x, lengths)
    alone, n = encoder(x[1:, :27], lengths[1:])
    torch.testing.assert_close(alone[0, : n[0]], together[1, : out[1]])
    plain = PyramidalEncoder(EncoderConfig(n_mels=6, d=8, layers=4)).eval()
    plain.load_state_dict(encoder.state_dict())
    assert not torch.allclose(plain(x, lengths)[0], together)


@pytest.mark.parametrize(
    "config", [EncoderConfig(residual=r, layer_norm=n) for r, n in [(3, True), (5, True), (-1, True), (1, False)]]
)
def test_layers_that_cannot_be_residual_are_refused(config):
    with pytest.raises(ValueError, match="residual"):
        PyramidalEncoder(config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_equals_cpu():
    encoder = PyramidalEncoder(EncoderConfig(n_mels=6, d=8, layers=3)).eval()
    x, lengths = torch.randn(3, 40, 6), torch.tensor([40, 27, 9])
    cpu, _ = encoder(x, lengths)
    gpu, _ = encoder.cuda()(x.cuda(), lengths.cuda())
    torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-3, atol=1e-4)

import pytest
import torch

from asr.model import EncoderConfig, ListenAttendSpell, ModelConfig, Speller, SpellerConfig
from asr.model.language_model import CharLanguageModel, LanguageModelConfig
from asr.model.lstm import PackedCell
from asr.model.speller import READER_SHARE, sinusoids

VARIANTS = {
    "attention": {},
    "one hop": {"hops": 1},
    "input feeding": {"input_feeding": True},
    "input feeding, one hop": {"input_feeding": True, "hops": 1},
    "positions": {"positions": 4},
    "reader": {"reader": 6},
    "reader, one hop, input feeding": {"reader": 6, "hops": 1, "input_feeding": True},
    "general": {"attention": "general"},
    "location": {"attention": "location", "hops": 1},
    "location, two hops": {"attention": "location"},
    "fixed": {"context": "fixed"},
    "cho": {"context": "cho"},
}


def make(**settings) -> Speller:
    speller = Speller(SpellerConfig(vocabulary=9, d=8, embedding=5, **settings)).eval()
    if speller.position is not None:
        torch.nn.init.normal_(speller.position.weight)  # it begins at 0
    if speller.reader is not None:
        torch.nn.init.normal_(speller.read.weight)  # so does this
    return speller


@pytest.fixture
def batch():
    characters = torch.randint(3, 9, (2, 6))
    characters[:, 0] = 1
    return torch.randn(2, 7, 8), torch.tensor([7, 4]), characters


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_parallel_equals_step_by_step(settings, batch):
    h, lengths, characters = batch
    speller = make(**settings)
    memory = speller.memory(h, lengths)
    logits, weights = speller(characters, memory)
    state = speller.start(memory)
    for t in range(characters.shape[1]):
        step, state = speller.step(characters[:, t], memory, state)
        torch.testing.assert_close(step, logits[:, t])
        if weights is not None:
            torch.testing.assert_close(state.weights[:, -1], weights[:, t])


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_without_speech_nothing_is_heard(settings, batch):
    """As if every state were 0, however many there are, with gradients for what predicts characters from characters."""
    h, lengths, characters = batch
    speller = make(**settings)
    logits = speller.without_speech(characters)
    speller.position, position = None, speller.position
    expected, _ = speller(characters, speller.memory(torch.zeros_like(h), lengths))
    speller.position = position
    torch.testing.assert_close(logits, expected)
    other = characters.clone()
    other[:, 3] = 3 + (other[:, 3] - 2) % 6
    changed = speller.without_speech(other)
    torch.testing.assert_close(changed[:, :3], logits[:, :3])
    assert (changed[:, 3:] - logits[:, 3:]).abs().amin(-1).gt(0).all()  # each later one knows of it
    logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in speller.lstms.parameters())


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_alone_equals_in_a_batch(settings, batch):
    h, lengths, characters = batch
    speller = make(**settings)
    together, _ = speller(characters, speller.memory(h, lengths))
    alone, _ = speller(characters[1:], speller.memory(h[1:, :4], lengths[1:]))
    torch.testing.assert_close(alone[0], together[1])


@pytest.mark.skipif(not PackedCell.available(), reason="needs FBGEMM (x86-64)")
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_packed_steps_of_hypotheses_with_one_parent(settings, batch):
    h, lengths, _ = batch
    speller = make(**settings).half().float()  # packing rounds nothing
    own_memory = torch.arange(2).repeat_interleave(3)
    found = {}
    for packed in (False, True):
        memory = speller.memory(h, lengths).select(own_memory)
        state, steps = speller.start(memory), []
        for characters, parents in (
            ([1] * 6, [0, 0, 2, 3, 5, 5]),
            ([3, 4, 5, 5, 6, 3], [1, 1, 1, 4, 3, 3]),
            ([8] * 6, []),
        ):
            logits, state = speller.step(torch.tensor(characters), memory, state)
            steps.append((logits, state.weights))
            state = state.select(torch.tensor(parents, dtype=torch.long))
        found[packed] = steps
        speller.pack()
    for ours, expected in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_selecting_rows_of_selected_rows(batch):
    h, lengths, characters = batch
    speller = make()
    memory = speller.memory(h, lengths)
    _, state = speller.step(characters[:, 0], memory, speller.start(memory))
    twice = state.select(torch.tensor([1, 0, 1])).select(torch.tensor([2, 1]))
    for ours, expected in ((twice.unfolded(), state.hidden), (twice.cell, state.cell)):
        assert [x.tolist() for x in ours] == [x[[1, 0]].tolist() for x in expected]


def test_positions_begin_as_if_they_were_not_there_and_learn(batch):
    h, lengths, characters = batch
    without = make()
    speller = Speller(SpellerConfig(vocabulary=9, d=8, embedding=5, positions=4)).eval()
    speller.load_state_dict(speller.state_dict() | without.state_dict())
    logits, _ = speller(characters, speller.memory(h, lengths))
    assert torch.equal(logits, without(characters, without.memory(h, lengths))[0])
    logits.square().sum().backward()
    assert speller.position.weight.grad.abs().amin() > 0


def test_positions_tell_where_a_state_is():
    """Equal states can only be told apart by their place, and the wavelengths leave no two places within 10 s alike."""
    speller = make(positions=16)
    memory = speller.memory(torch.ones(1, 256, 8), torch.tensor([256]))
    closest = torch.cdist(memory.h[0], memory.h[0]) + torch.eye(256) * 1e9
    assert closest.min() > 0.1
    table = sinusoids(300, 6)
    assert table.shape == (300, 6)
    for row, wavelength in enumerate((8, 2048**0.5, 256)):
        angle = torch.arange(300) * 2 * torch.pi / wavelength
        torch.testing.assert_close(table[:, row], angle.sin(), atol=1e-3, rtol=0)
        torch.testing.assert_close(table[:, 3 + row], angle.cos(), atol=1e-3, rtol=0)


def test_positions_are_sines_and_cosines():
    with pytest.raises(ValueError, match="an even number; got 3"):
        SpellerConfig(positions=3)


def test_a_reader_begins_as_a_share_of_the_language_model_and_is_not_trained(batch):
    h, lengths, characters = batch
    without, model = make(), CharLanguageModel(LanguageModelConfig(vocabulary=9, d=6)).eval()
    speller = Speller(SpellerConfig(vocabulary=9, d=8, embedding=5, reader=6)).eval()
    speller.load_state_dict(speller.state_dict() | without.state_dict())
    speller.take_reader(model)
    logits, _ = speller(characters, speller.memory(h, lengths))
    expected = without(characters, without.memory(h, lengths))[0] + READER_SHARE * model(characters)[0]
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    untrained = {name for name, p in speller.named_parameters() if p.grad is None}
    assert untrained == {
        "reader.embedding.weight",
        *(f"reader.lstm.{name}" for name in speller.reader.lstm.state_dict()),
    }
    assert speller.read.weight.grad.abs().amin() > 0
    assert speller.reader.output.weight.grad.abs().amin() > 0
    with pytest.raises(ValueError, match=r"wanted is .*d=6.*, this is .*d=7"):
        speller.take_reader(CharLanguageModel(LanguageModelConfig(vocabulary=9, d=7)))
    with pytest.raises(ValueError, match="no reader"):
        without.take_reader(model)


def test_only_input_feeding_and_location_need_a_loop():
    loops = {name for name, settings in VARIANTS.items() if make(**settings).sequential}
    assert loops == {
        "input feeding",
        "input feeding, one hop",
        "reader, one hop, input feeding",
        "location",
        "location, two hops",
    }


@pytest.mark.parametrize("context", ["fixed", "cho"])
def test_fixed_contexts_see_nothing_but_the_last_state(context, batch):
    h, lengths, characters = batch
    speller = make(context=context)
    changed = h.clone()
    changed[0, :6] += 1.0
    changed[1, :3] += 1.0
    changed[1, 4:] += 1.0
    logits, weights = speller(characters, speller.memory(h, lengths))
    assert weights is None
    torch.testing.assert_close(speller(characters, speller.memory(changed, lengths))[0], logits)
    changed[1, 3] += 1.0
    assert not torch.allclose(speller(characters, speller.memory(changed, lengths))[0][1], logits[1])


def test_fixed_crosses_over_once_and_cho_at_every_step(batch):
    h, lengths, _characters = batch
    for context, input_size, output_size in (("fixed", 5, 8), ("cho", 5 + 8, 16)):
        speller = make(context=context, hops=1)
        assert speller.lstms[0].input_size == input_size
        assert speller.output.in_features == output_size
        assert torch.equal(speller.start(speller.memory(h, lengths)).hidden[0][1], h[1, 3])


def test_input_feeding_puts_the_last_context_into_the_input(batch):
    h, lengths, characters = batch
    speller = make(input_feeding=True)
    memory = speller.memory(h, lengths)
    state = speller.start(memory)
    other = type(state)(state.hidden, state.cell, state.context + 1.0, state.weights)
    assert not torch.allclose(
        speller.step(characters[:, 0], memory, state)[0], speller.step(characters[:, 0], memory, other)[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": "none"}, "context must be one of attention, fixed, cho"),
        ({"attention": "none"}, "attention must be one of dot"),
        ({"context": "fixed", "input_feeding": True}, "context=attention"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        SpellerConfig(**settings)


def test_las_wants_one_d_and_gives_the_documented_shapes():
    with pytest.raises(ValueError, match="one d"):
        ModelConfig(EncoderConfig(d=16), SpellerConfig(d=8))
    model = ListenAttendSpell(
        ModelConfig(EncoderConfig(n_mels=6, d=8, layers=2), SpellerConfig(vocabulary=9, d=8, embedding=5))
    )
    out = model(torch.randn(2, 21, 6), torch.tensor([21, 12]), torch.randint(3, 9, (2, 4)))
    assert out.logits.shape == (2, 4, 9)
    assert out.weights.shape == (2, 4, 5)
    assert out.ctc_logits.shape == (2, 5, 9)
    assert out.lengths.tolist() == [5, 3]
    assert model.num_parameters == sum(p.numel() for p in model.parameters())

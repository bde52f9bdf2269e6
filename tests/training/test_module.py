import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from asr.bundle import load_bundle
from asr.corpus.dataset import Batch
from asr.decoding.beam_search import Hypothesis
from asr.errors import ConfigError
from asr.model.encoder import join_pairs
from asr.model.loss import ctc_loss, joint_loss, spelling_loss
from asr.training.checkpoint import average_checkpoints, latest_checkpoint, load_checkpoint
from asr.training.completion import completion_loss, optimal_completions
from asr.training.failures import TrainingStoppedError
from asr.training.module import (
    LasModule,
    TrainingConfig,
    consistency_loss,
    off_diagonal,
    sampled_inputs,
    word_errors,
)
from asr.training.run import train


def test_joint_loss_ignores_padding_and_counts_characters():
    logits, ctc_logits = torch.randn(2, 4, 9), torch.randn(2, 12, 9)
    characters = torch.tensor([[1, 4, 5, 6, 2], [1, 4, 2, 0, 0]])
    attention, ctc = joint_loss(logits, ctc_logits, torch.tensor([12, 5]), characters, torch.tensor([3, 1]))
    log_p = logits.log_softmax(-1)
    expected = -(log_p[0, 0, 4] + log_p[0, 1, 5] + log_p[0, 2, 6] + log_p[0, 3, 2] + log_p[1, 0, 4] + log_p[1, 1, 2])
    torch.testing.assert_close(attention, expected / 6)
    # One character in five frames: blanks, a run of the character, blanks.
    q = ctc_logits[1].log_softmax(-1)
    paths = [
        q[:start, 0].sum() + q[start:end, 4].sum() + q[end:5, 0].sum()
        for start in range(5)
        for end in range(start + 1, 6)
    ]
    single = -torch.logsumexp(torch.stack(paths), 0)
    _, alone = joint_loss(logits[1:, :2], ctc_logits[1:], torch.tensor([5]), characters[1:, :3], torch.tensor([1]))
    torch.testing.assert_close(alone, single)
    _, other = joint_loss(logits[:1], ctc_logits[:1], torch.tensor([12]), characters[:1], torch.tensor([3]))
    torch.testing.assert_close(ctc, (single + 3 * other) / 4)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [("A B C", "A B C", 0), ("A B C", "A X", 2), ("A", "", 1), ("", "A B", 2), ("", "", 0), ("A B", "A B C D", 2)],
)
def test_word_errors(reference, hypothesis, errors):
    assert word_errors(reference, hypothesis) == errors


@pytest.fixture
def module(toy_settings):
    return LasModule.from_settings(toy_settings)


def test_learning_rate_warms_up_and_falls_to_its_end(module):
    module.settings = TrainingConfig(learning_rate=1e-3, warmup_steps=100, final_learning_rate=1e-5)
    rates = [module.learning_rate_at(step, 0.0) for step in (0, 49, 99, 500)]
    assert rates == pytest.approx([1e-5, 5e-4, 1e-3, 1e-3])
    assert module.learning_rate_at(10_000, 0.5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert module.learning_rate_at(10_000, 1.0) == pytest.approx(1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_batch_has_random_numbers_of_its_own(module, batch, monkeypatch, accumulate):
    drawn = []
    trainer = SimpleNamespace(global_step=0, accumulate_grad_batches=accumulate)
    monkeypatch.setattr(LasModule, "trainer", trainer)
    module.sets_learning_rate = False
    for number in range(4):
        trainer.global_step = number // accumulate
        module.on_train_batch_start(batch, number)
        drawn.append(torch.rand(1).item())
    assert len(set(drawn)) == 4


def test_a_step_that_is_not_finite_changes_no_weight_and_names_its_utterances(module, caplog):
    module.log = lambda *_, **__: None
    optimizer = module.configure_optimizers()
    before = [p.clone() for p in module.model.parameters()]

    def step(loss: float, gradient: float, ids: list[str]) -> None:
        for p in module.model.parameters():
            p.grad = torch.full_like(p, gradient)
        module._last_loss, module._last_ids = torch.tensor(loss), ids
        module.on_before_optimizer_step(optimizer)
        optimizer.step()

    step(1.0, math.nan, ["bad-1"])
    step(math.inf, 0.1, ["bad-2"])
    assert all(map(torch.equal, before, module.model.parameters()))
    assert module.skipped == [["bad-1"], ["bad-2"]]
    assert "bad-1" in caplog.text
    step(1.0, 0.1, ["good"])
    assert not any(map(torch.equal, before, module.model.parameters()))
    assert module.skipped_in_a_row == 0
    for _ in range(9):
        step(math.nan, 0.1, ["bad-3"])
    with pytest.raises(TrainingStoppedError, match=r"10 steps in a row .* bad-3"):
        step(math.nan, 0.1, ["bad-3"])


def test_off_diagonal_by_hand():
    # Two characters over four states: the diagonal is state 0 for the first and state 2 for the second.
    on = torch.zeros(1, 3, 6)
    on[0, 0, 0] = on[0, 1, 2] = 1.0
    lengths, steps = torch.tensor([4]), torch.tensor([2])
    assert off_diagonal(on, lengths, steps, 0.1) == 0
    off = torch.zeros(1, 3, 6)
    off[0, 0, 1] = off[0, 1, 2] = 1.0
    off[0, 2, 3] = 1.0  # past the end of the row: does not count
    expected = (1 - math.exp(-(0.25**2) / (2 * 0.1**2))) / 2
    assert off_diagonal(off, lengths, steps, 0.1) == pytest.approx(expected)


def test_ctc_comes_first_then_fades_to_its_weight_and_guidance_fades_to_nothing(module, monkeypatch):
    module.settings = TrainingConfig(
        ctc_weight=0.4, ctc_only_epochs=2, ctc_warmup_epochs=1, guided_attention=3.0, guided_attention_epochs=4
    )

    def at(epoch):
        monkeypatch.setattr(LasModule, "epochs_done", epoch)
        return module.ctc_weight, module.guidance

    assert at(0.0) == (1.0, 3.0)
    assert at(2.0) == (1.0, 3.0)
    assert at(2.5) == pytest.approx((0.7, 3.0 * (1 - 0.5 / 4)))
    assert at(3.0) == pytest.approx((0.4, 3.0 * (1 - 1 / 4)))
    assert at(9.0) == (0.4, 0.0)


def test_dev_wer_is_of_the_search_that_the_model_is_ready_for(module, monkeypatch):
    def at(epoch, **settings):
        module.settings = TrainingConfig(**settings)
        monkeypatch.setattr(LasModule, "epochs_done", epoch)
        return module.search

    assert at(0.0) == at(5.0) == "joint"
    assert at(2.0, ctc_only_epochs=2) == "ctc"  # asked at the end of the second epoch
    assert at(3.0, ctc_only_epochs=2) == "joint"
    assert at(3.0, ctc_weight=1.0) == "ctc"
    assert at(3.0, ctc_weight=0.0) == "attention"


BOS, EOS = 1, 2


def test_sampled_inputs_are_the_models_own_characters_where_the_coin_says_so():
    characters = torch.tensor([[BOS, 7, 8, 9], [BOS, 7, EOS, 0]])
    logits = torch.randn(2, 4, 32)
    logits[..., :4] = 99.0  # blank, BOS, EOS and unknown are no inputs
    assert torch.equal(sampled_inputs(characters, logits, 0.0), characters)
    own = logits[..., 4:].argmax(-1) + 4
    expected = torch.tensor([[BOS, own[0, 0], own[0, 1], own[0, 2]], [BOS, own[1, 0], EOS, 0]])
    assert torch.equal(sampled_inputs(characters, logits, 1.0), expected)
    # A coin a character, not a coin a batch.
    rows = torch.full((50, 41), 7)
    rows[:, 0] = BOS
    logits = torch.zeros(50, 41, 32)
    logits[..., 9] = 1.0
    replaced = (sampled_inputs(rows, logits, 0.3)[:, 1:] == 9).float()
    assert replaced.mean() == pytest.approx(0.3, abs=0.05)
    assert replaced.mean(1).std() == pytest.approx((0.3 * 0.7 / 40) ** 0.5, rel=0.3)


@pytest.fixture
def batch():
    return Batch(
        ids=["a", "b"],
        texts=["ABC", "AB"],
        frames=torch.randn(2, 60, 40),
        lengths=torch.tensor([60, 40]),
        characters=torch.tensor([[BOS, 6, 7, 8, EOS], [BOS, 6, 7, EOS, 0]]),
        character_lengths=torch.tensor([3, 2]),
    )


def test_with_sampling_the_second_pass_reads_what_the_first_wrote(module, batch, monkeypatch):
    monkeypatch.setattr(LasModule, "epochs_done", 1.0)
    monkeypatch.setattr(LasModule, "log", lambda *_, **__: None)
    module.eval()  # no dropout
    seen = []
    module.model.speller.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out[0])))
    plain = module.training_step(batch, 0)
    assert len(seen) == 1
    monkeypatch.setattr(LasModule, "sampling", 1e-30)  # coins are thrown, none falls that way
    assert torch.equal(module.training_step(batch, 0), plain)
    monkeypatch.setattr(LasModule, "sampling", 1.0)
    loss = module.training_step(batch, 0)
    given, first = seen[3]
    assert torch.equal(given, batch.characters[:, :-1])
    assert torch.equal(seen[4][0], sampled_inputs(given, first, 1.0))
    assert not first.requires_grad
    assert loss.requires_grad
    assert loss != plain


def test_utterances_are_given_as_the_search_spells_them(module, batch, monkeypatch):
    monkeypatch.setattr(LasModule, "epochs_done", 1.0)
    monkeypatch.setattr(LasModule, "log", lambda *_, **__: None)
    module.eval()  # no dropout
    seen: list = []
    module.model.speller.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out[0])))
    plain = module.training_step(batch, 0)
    seen_plain, smoothing = seen[0][1], module.settings.label_smoothing

    def spelled(*texts):
        """Loss, and what the speller was given, where the search writes these texts."""
        seen.clear()
        rows = [[Hypothesis(module.tokenizer.encode(text), text, 0.0, [], None)] for text in texts]

        def search(model, h, lengths, *_):
            assert not h.requires_grad
            return [rows[0] if length == lengths.max() else rows[1] for length in lengths]  # in any order

        monkeypatch.setattr("asr.training.module.beam_search", search)
        loss = module.training_step(batch, 0)
        return loss, seen[0][0]

    module.settings = replace(module.settings, optimal_completion=1.0)
    monkeypatch.setattr(LasModule, "trainer", SimpleNamespace(global_step=0))
    loss, given = spelled("ABC", "AB")
    torch.testing.assert_close(loss, plain)  # what was said is followed by what was said
    assert torch.equal(given, batch.characters[:, :-1].masked_fill(batch.characters[:, :-1] == EOS, 0))
    loss, given = spelled("ABBC", "B")
    assert given.tolist() == [[BOS, 6, 7, 7, 8], [BOS, 7, 0, 0, 0]]
    ctc = (plain - (1 - module.ctc_weight) * spelling_loss(seen_plain, batch.characters, smoothing)) / module.ctc_weight
    best = optimal_completions(given, batch.characters, batch.character_lengths, 32)
    expected = (1 - module.ctc_weight) * completion_loss(seen[0][1], best, smoothing) + module.ctc_weight * ctc
    torch.testing.assert_close(loss, expected)
    assert loss.requires_grad
    assert not module.model.training


def test_consistency_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.125, 0.125, 0.75])
    apart = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    rows = torch.stack([p.log(), q.log()])[:, None].repeat(1, 4, 1)  # (2, 4, 3): the same in all states
    lengths, characters = torch.tensor([3, 3]), torch.tensor([2, 2])
    torch.testing.assert_close(consistency_loss(rows, lengths, characters), 3 * apart / 4)
    beyond = rows.clone()
    beyond[:, 3:] = torch.randn(2, 1, 3)  # padding
    torch.testing.assert_close(consistency_loss(beyond, lengths, characters), 3 * apart / 4)
    # Two utterances: the copies of one are B rows apart. The second is heard alike.
    several = torch.cat([rows[:1], rows[:1], rows[1:], rows[:1]])
    loss = consistency_loss(several, torch.tensor([3, 2, 3, 2]), torch.tensor([2, 5, 2, 5]))
    torch.testing.assert_close(loss, 3 * apart / 14)
    # The target is held fast: a copy is drawn by p_own - p_other alone.
    rows.requires_grad_()
    consistency_loss(rows, lengths, characters).backward()
    torch.testing.assert_close(rows.grad[0, 0], (p - q) / 4)
    torch.testing.assert_close(rows.grad[1, 0], (q - p) / 4)
    assert not rows.grad[:, 3].any()


def test_with_consistency_both_copies_are_heard_and_learned_from(module, batch, monkeypatch):
    monkeypatch.setattr(LasModule, "epochs_done", 1.0)
    logged = {}
    monkeypatch.setattr(LasModule, "log", lambda self, name, value, **_: logged.update({name: value}))
    module.eval()  # neither dropout nor masks: the copies are the same
    plain = module.training_step(batch, 0)
    module.settings = replace(module.settings, consistency=3.0)
    torch.testing.assert_close(module.training_step(batch, 0), plain)
    assert logged["train/consistency"] < 1e-6

    heard = []

    def changed(frames, lengths):
        heard.append(frames)
        return frames * torch.tensor([1.0, 1.0, 0.5, 0.7])[:, None, None]

    monkeypatch.setattr(module.spec_augment, "forward", changed)
    loss = module.training_step(batch, 0)
    assert torch.equal(heard[0][:2], heard[0][2:])
    two = batch.twice()
    frames = module.normalizer(two.frames, two.lengths) * torch.tensor([1.0, 1.0, 0.5, 0.7])[:, None, None]
    h, lengths = module.model.encoder(frames, two.lengths)
    memory = module.model.speller.memory(h, lengths)
    attention = spelling_loss(
        module.model.speller(two.characters[:, :-1], memory)[0], two.characters, module.settings.label_smoothing
    )
    ctc = ctc_loss(module.model.ctc(h), lengths, two.characters, two.character_lengths)
    apart = consistency_loss(module.model.ctc(h), lengths, two.character_lengths)
    assert apart > 0
    weight = module.ctc_weight
    torch.testing.assert_close(loss, (1 - weight) * attention + weight * (ctc + 3 * apart))
    monkeypatch.setattr(LasModule, "epochs_done", -1.0)  # CTC alone
    torch.testing.assert_close(module.training_step(batch, 0), ctc + 3 * apart)


def test_phones_are_told_at_their_layer_and_have_their_share_of_ctcs_loss(toy_settings, batch, monkeypatch):
    toy_settings["training"] |= {"phones": 0.25, "phones_layer": 2, "consistency": 0.2}
    module = LasModule.from_settings(toy_settings).eval()
    module.pronounce = lambda text: {"ABC": [3, 3, 9], "AB": [1]}[text]
    monkeypatch.setattr(LasModule, "epochs_done", -1.0)  # CTC alone
    logged = {}
    monkeypatch.setattr(LasModule, "log", lambda self, name, value, **_: logged.update({name: value}))
    loss = module.training_step(batch, 0)
    two = batch.twice()
    encoder = module.model.encoder
    x, lengths = (
        encoder.layers[0](*join_pairs(module.normalizer(two.frames, two.lengths), two.lengths)),
        two.lengths // 2,
    )
    x, lengths = join_pairs(encoder.norms[0](x), lengths)
    x = encoder.norms[1](encoder.layers[1](x, lengths))
    said = torch.tensor([[0, 3, 3, 9, 0], [0, 1, 0, 0, 0]]).repeat(2, 1)
    phones = ctc_loss(module.phones(x), lengths, said, torch.tensor([3, 1, 3, 1]))
    torch.testing.assert_close(logged["train/phones"], phones)
    characters = ctc_loss(module.model.ctc(x), lengths, two.characters, two.character_lengths)
    torch.testing.assert_close(loss, 0.75 * characters + 0.25 * phones)
    # It learns with the model, but is none of it.
    learned = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert learned == {id(p) for p in module.parameters()}
    assert not any("phones" in name for name in module.model.state_dict())
    module.pronounce = lambda text: [1] * 40  # more than there are states
    assert module.training_step(batch, 0).isfinite()


def test_phones_are_told_between_the_pyramid_and_residual_layers(toy_settings):
    for layer in (1, 3):
        toy_settings["training"] |= {"phones": 0.5, "phones_layer": layer}
        with pytest.raises(ConfigError, match=rf"training.phones_layer={layer}: .* \(0, 1, .* not residual, 2"):
            LasModule.from_settings(toy_settings)


def test_a_run_with_phones_goes_on_and_leaves_a_model_without_them(toy_settings, monkeypatch):
    monkeypatch.setattr("asr.training.module.Pronouncer", lambda: lambda text: [ord(c) - 64 for c in text if c != " "])
    toy_settings["training"] |= {"phones": 0.5, "phones_layer": 2, "average": 2}
    toy_settings["trainer"]["max_epochs"] = 1
    train(toy_settings)
    toy_settings["trainer"]["max_epochs"] = 2
    folder = train(toy_settings)
    last = latest_checkpoint(folder.parent / "checkpoints")
    weights = load_checkpoint(last)["state_dict"]
    assert "phones.weight" in weights
    assert load_bundle(folder).model.state_dict().keys() == {
        name.removeprefix("model.") for name in weights if name.startswith("model.")
    }
    assert average_checkpoints([last, folder])["state_dict"].keys() == weights.keys()


@pytest.mark.parametrize(("consistency", "rows"), [(0.0, 2), (0.2, 4)])
def test_both_copies_count_where_memory_runs_out(module, batch, monkeypatch, consistency, rows):
    module.settings = replace(module.settings, consistency=consistency)
    module.sets_learning_rate = False
    monkeypatch.setattr(LasModule, "trainer", SimpleNamespace(global_step=0, accumulate_grad_batches=1))
    monkeypatch.setattr(LasModule, "global_rank", 0)
    module.on_train_batch_start(batch, 0)
    assert module.batch_shape.startswith(f"{rows} x {batch.frames.shape[1]} frames")


def test_with_consistency_the_search_spells_one_of_the_copies(module, batch, monkeypatch):
    monkeypatch.setattr(LasModule, "epochs_done", 1.0)
    monkeypatch.setattr(LasModule, "log", lambda *_, **__: None)
    monkeypatch.setattr(LasModule, "trainer", SimpleNamespace(global_step=0))
    module.settings = replace(module.settings, optimal_completion=1.0, consistency=0.2)
    given = []
    module.model.speller.register_forward_hook(lambda _, inputs, out: given.append(inputs[0]))

    def search(model, h, lengths, *_):
        assert len(h) == len(lengths) == 2
        return [[Hypothesis(module.tokenizer.encode(text), text, 0.0, [], None)] for text in ("ABBC", "B")]

    monkeypatch.setattr("asr.training.module.beam_search", search)
    assert module.training_step(batch, 0).requires_grad
    assert given[0].tolist() == [[BOS, 6, 7, 7, 8], [BOS, 7, 0, 0, 0]] * 2


@pytest.mark.parametrize("every", [1, 2, 10], ids=lambda every: f"every {every}")
@pytest.mark.parametrize("share", [0.0, 0.4, 0.5, 1.0])
def test_share_of_the_steps_with_own_spelling(module, monkeypatch, share, every):
    module.settings = TrainingConfig(optimal_completion=share)
    trainer = SimpleNamespace(global_step=0)
    monkeypatch.setattr(LasModule, "trainer", trainer)
    count = 0
    for trainer.global_step in range(20, 20 + 200 * every, every):  # those that are logged, too
        count += module.spells_itself
    assert abs(count - 200 * share) <= (3 if 0 < share < 1 else 0)


def test_sampling_rises_once_the_speller_learns(module, monkeypatch):
    module.settings = TrainingConfig(scheduled_sampling=0.4, ctc_only_epochs=2)

    class Trainer:
        max_epochs = 10

    monkeypatch.setattr(LasModule, "trainer", Trainer)
    for epoch, expected in ((0.0, 0.0), (2.0, 0.0), (6.0, 0.2), (10.0, 0.4)):
        monkeypatch.setattr(LasModule, "epochs_done", epoch)
        assert module.sampling == pytest.approx(expected)


def test_weight_noise_is_on_the_matrices_for_the_gradient_alone(module, batch, monkeypatch):
    monkeypatch.setattr(LasModule, "epochs_done", 1.0)
    monkeypatch.setattr(LasModule, "log", lambda *_, **__: None)
    module.eval()
    module.settings = TrainingConfig(weight_noise=0.1)
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    plain = module.training_step(batch, 0)
    module._add_weight_noise()
    loss = module.training_step(batch, 0)
    assert loss != plain
    moved = torch.cat([(p - before[n]).detach().flatten() for n, p in module.model.named_parameters() if p.ndim > 1])
    assert moved.std() == pytest.approx(0.1, rel=0.05)
    assert all(torch.equal(p, before[n]) for n, p in module.model.named_parameters() if p.ndim == 1)
    loss.backward()
    module.on_after_backward()
    assert all(torch.equal(p, before[n]) for n, p in module.model.named_parameters())
    noisy = module.model.ctc.weight.grad.clone()
    module.zero_grad()
    module.training_step(batch, 0).backward()
    assert not torch.equal(module.model.ctc.weight.grad, noisy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"average": 0},
        {"scheduled_sampling": 1.5},
        {"optimal_completion": -0.1},
        {"consistency": -0.1},
        {"weight_noise": -0.1},
        {"phones": 1.0},
        {"phones": -0.1},
    ],
)
def test_settings_that_cannot_be_meant(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainingConfig(**wrong)

"""The character language model: its equations, its folder, and how it is trained and measured."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from asr.corpus.passages import Passages, plan_batches
from asr.corpus.text import PreparedText, prepare_text
from asr.decoding.scorers import Beams, LmScorer, Step
from asr.errors import AsrError, ConfigError, ModelError
from asr.model.language_model import (
    CharLanguageModel,
    LanguageModelConfig,
    language_model_summary,
    load_language_model,
    save_language_model,
)
from asr.tokenizer import CharTokenizer
from asr.training.language_model import (
    LanguageModelModule,
    LanguageModelTraining,
    Window,
    WindowLoader,
    bits_per_character,
    train,
)

TOKENIZER = CharTokenizer()
WORDS = ["ABLE", "BIRD", "CAVE", "DUNE", "ECHO", "FISH", "GOLD", "HAND"]


@pytest.fixture
def model() -> CharLanguageModel:
    return CharLanguageModel(LanguageModelConfig(embedding=8, d=16, layers=2)).eval()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """800 sentences of up to six of eight words."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(1)
    lines = [" ".join(rng.choice(WORDS, size=rng.integers(3, 7))) for _ in range(800)]
    (folder / "text.txt").write_text("\n".join(lines))
    prepare_text([folder / "text.txt"], folder, held_out=0.1)
    return folder


@pytest.fixture
def settings(prepared, tmp_path):
    """What Hydra would hand to `train` for a run of seconds."""
    return {
        "text": str(prepared),
        "output": str(tmp_path / "run"),
        "resume": "auto",
        "model": {"embedding": 8, "d": 48, "layers": 1, "dropout": 0.1},
        "training": {"learning_rate": 1e-2, "warmup_steps": 5, "batch_characters": 400, "window": 24, "join": 0.5},
        "trainer": {
            "max_epochs": 2, "max_steps": -1, "max_minutes": None, "measurements": 3, "measured_sentences": 30,
            "checkpoint_minutes": 5.0, "precision": "32-true", "accelerator": "cpu", "devices": 1, "num_nodes": 1,
            "progress": False, "log_every": 10,
        },
    }  # fmt: skip


def history(run: dict) -> list[dict]:
    with open(f"{run['output']}/history.jsonl") as file:
        return [json.loads(line) for line in file]


# ---- the model -------------------------------------------------------------------------------------------------------


def test_step_by_step_is_the_whole_sequence(model):
    tokens = torch.randint(4, 32, (3, 7))
    whole, last = model(tokens, model.start(3))
    assert torch.equal(whole, model(tokens)[0])  # no state is the state before BOS
    state = model.start(3)
    for t in range(7):
        logits, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(logits, whole[:, t])
    torch.testing.assert_close(state.s, last.s)
    torch.testing.assert_close(state.c, last.c)


def test_a_carried_state_is_one_long_pass(model):
    tokens = torch.randint(4, 32, (2, 10))
    whole, _ = model(tokens)
    first, state = model(tokens[:, :4])
    second, _ = model(tokens[:, 4:], state.detach())
    torch.testing.assert_close(torch.cat([first, second], 1), whole)


def test_selected_rows_go_on_as_themselves(model):
    tokens = torch.randint(4, 32, (3, 5))
    whole, _ = model(tokens)
    _, state = model(tokens[:, :4])
    rows = torch.tensor([2, 0, 0, 1])
    logits, _ = model.step(tokens[rows, 4], model.select(state, rows))
    torch.testing.assert_close(logits, whole[rows, 4])


def test_it_is_what_the_search_asks_for(model):
    scorer = LmScorer(model, 0.5)
    state = scorer.start(torch.zeros(2, 9, 4), torch.tensor([9, 5]))
    single, three = (Beams.of(torch.ones(shape, dtype=torch.bool)) for shape in ((2, 1), (1, 3)))
    scores, state = scorer.score(state, Step(0, torch.full((2,), TOKENIZER.bos_id), single))
    assert scores.shape == (2, len(TOKENIZER))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(2))
    tokens = torch.tensor([7, 8, 7])
    state = scorer.select(scorer.keep(state, torch.tensor([1])), torch.tensor([1, 1, 1]), tokens, three)
    scores, _ = scorer.score(state, Step(1, tokens, three))
    assert scores.shape == (3, len(TOKENIZER))
    assert torch.equal(scores[0], scores[2])
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("wrong", [{"d": 0}, {"layers": 0}, {"dropout": 1.0}])
def test_sizes_that_cannot_work(wrong):
    with pytest.raises(ValueError, match="must be"):
        LanguageModelConfig(**wrong)


# ---- on disk ---------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same_in_fp16(model, tmp_path):
    save_language_model(tmp_path / "lm", model, TOKENIZER, {"steps": 7})
    loaded = load_language_model(tmp_path / "lm")
    assert not loaded.training
    assert loaded.config == model.config
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    assert language_model_summary(tmp_path / "lm") == {"steps": 7}
    assert sorted(p.name for p in (tmp_path / "lm").iterdir()) == [
        "language_model.safetensors",
        "language_model.yaml",
    ]
    size = (tmp_path / "lm" / "language_model.safetensors").stat().st_size
    assert 2 * model.num_parameters < size < 2 * model.num_parameters + 2000


def test_other_characters_are_refused(model, tmp_path):
    save_language_model(tmp_path, model, CharTokenizer(" AB"), {})
    with pytest.raises(ModelError, match="other characters"):
        load_language_model(tmp_path)


def test_missing_and_damaged_files_say_so(model, tmp_path):
    with pytest.raises(ModelError, match="no language model there"):
        load_language_model(tmp_path / "nowhere")
    weights, settings = tmp_path / "language_model.safetensors", tmp_path / "language_model.yaml"
    save_language_model(tmp_path, model, TOKENIZER, {})
    whole, text = weights.read_bytes(), settings.read_text()
    weights.write_bytes(whole[:100])
    with pytest.raises(ModelError, match="damaged"):
        load_language_model(tmp_path)
    weights.write_bytes(whole)
    for changed, message in (
        ("format: [", "damaged"),
        ("- 1\n", "damaged"),
        (text.replace("format: 2", "format: 3"), "newer version"),
        (text.replace("kind: character LSTM", "kind: word n-gram"), "of kind 'word n-gram'"),
        (text.replace("d: 16", "d: 17"), "do not fit"),
        (text.replace("d: 16", "d: many"), "should be int"),
        (text.replace("d: 16", "d: 1000000000"), "damaged"),
        (f"{text}checked: 2026-13-45\n", "damaged"),
        ("[" * 3000, "damaged"),
        (text.replace("tokenizer:", "other:"), "damaged"),
    ):
        assert changed != text
        settings.write_text(changed)
        with pytest.raises(ModelError, match=message):
            load_language_model(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match="safetensors is missing"):
        load_language_model(tmp_path)


def test_a_folder_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AsrError, match="cannot be written"):
        save_language_model(tmp_path / "file" / "lm", model, TOKENIZER, {})


# ---- passages and windows --------------------------------------------------------------------------------------------


def test_passages_hold_every_sentence_once():
    lengths = np.random.default_rng(0).integers(1, 60, size=500)
    passages = Passages.draw(lengths, 0.5, (1, 0))
    assert sorted(passages.order) == list(range(500))
    assert passages.count.sum() == 500
    assert 1 <= passages.count.min() < passages.count.max() <= 4
    for first, count, steps in zip(passages.first, passages.count, passages.steps, strict=True):
        sentences = passages.order[first : first + count]
        assert steps == sum(lengths[sentences]) + count  # a space after each but the last, and EOS
    alone = Passages.draw(lengths, 0.0, None)
    assert (alone.steps == lengths + 1).all()


def test_a_plan_fits_its_passages_and_wastes_little():
    steps = np.random.default_rng(0).integers(5, 300, size=3000)
    plan = plan_batches(steps, 2000, 100)
    assert sorted(np.concatenate([batch.passages for batch in plan])) == list(range(3000))
    for batch in plan:
        assert steps[batch.passages].max() <= batch.windows * batch.width
        assert batch.width <= 100
        assert len(batch.passages) * batch.width <= 2000
    padded = sum(len(batch.passages) * batch.windows * batch.width for batch in plan)
    assert steps.sum() / padded > 0.9
    halves = plan_batches(steps, 2000, 100, multiple=16, seed=(1, 0))
    assert all(len(batch.passages) % 16 == 0 for batch in halves)
    assert sum(len(batch.passages) for batch in halves) > 3000 - 16


def test_windows_spell_the_text(prepared):
    text = PreparedText(prepared, "train")
    known = {TOKENIZER.decode(text[i].tolist()) for i in range(len(text))}
    loader = WindowLoader(text, LanguageModelTraining(batch_characters=400, window=24), TOKENIZER)
    windows = list(loader)
    assert len(windows) == len(loader)
    rows: list[list[int]] = []
    last = torch.zeros(0)
    found = 0
    for inputs, targets, first, characters in windows:
        assert inputs.shape[1] <= 24
        assert characters == int((targets != 0).sum())
        if first:
            found += sum(TOKENIZER.decode(row).count(" ") for row in rows)
            rows = [[] for _ in inputs]
            assert (inputs[:, 0] == TOKENIZER.bos_id).all()
        else:
            assert (inputs[:, 0] == last).all()
        last = targets[:, -1]
        for row, ids in zip(rows, targets.tolist(), strict=True):
            row += ids
    for row in rows:  # of the last batch
        spelled = TOKENIZER.decode(row)
        assert row.index(TOKENIZER.eos_id) == len(spelled)
        words = spelled.split()
        assert set(words) <= set(WORDS)
        assert any(" ".join(words[:n]) in known for n in range(1, 7))
    assert found > 1000


def test_processes_share_every_batch_and_a_loader_goes_on_where_it_stopped(prepared):
    text = PreparedText(prepared, "train")
    settings = LanguageModelTraining(batch_characters=200, window=24)
    two = [list(WindowLoader(text, settings, TOKENIZER, 0, rank, 2)) for rank in range(2)]
    assert len(two[0]) == len(two[1])
    assert all(a.inputs.shape == b.inputs.shape and not a.inputs.equal(b.inputs) for a, b in zip(*two, strict=True))

    whole = list(WindowLoader(text, settings, TOKENIZER))
    stopped = WindowLoader(text, settings, TOKENIZER)
    iterator = iter(stopped)
    position = next(i for i, window in enumerate(whole) if i > 5 and not window.first)
    for _ in range(position):
        next(iterator)
    again = WindowLoader(text, settings, TOKENIZER)
    again.load_state_dict(stopped.state_dict())
    rest = list(again)
    assert len(rest) == len(whole) - position
    assert all(a.inputs.equal(b.inputs) and a.first == b.first for a, b in zip(rest, whole[position:], strict=True))
    pair = WindowLoader(text, settings, TOKENIZER, 0, 1, 2)
    pair.load_state_dict(stopped.state_dict())
    assert next(iter(pair)).first  # a state that is not known begins with the next batch


# ---- bits per character ----------------------------------------------------------------------------------------------


def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary(model, prepared):
    for parameter in model.parameters():
        parameter.data.zero_()
    text = PreparedText(prepared, "held_out")
    bits, count = bits_per_character(model, text, TOKENIZER)
    assert count == text.lengths.sum() + len(text)  # EOS of every sentence
    assert bits / count == pytest.approx(math.log2(len(TOKENIZER)))


def test_bits_are_those_of_sentences_read_one_by_one(model, prepared):
    text = PreparedText(prepared, "held_out")
    expected = 0.0
    with torch.no_grad():
        for i in range(20):
            ids = torch.tensor([TOKENIZER.bos_id, *text[i].tolist(), TOKENIZER.eos_id])
            log_probs = model(ids[None, :-1])[0][0].log_softmax(-1)
            expected -= log_probs.gather(1, ids[1:, None]).sum().item() / math.log(2)
    bits, count = bits_per_character(model, text, TOKENIZER, sentences=20, batch_characters=100, window_size=10)
    assert bits == pytest.approx(expected, rel=1e-5)
    assert count == text.lengths[:20].sum() + 20
    parts = [bits_per_character(model, text, TOKENIZER, sentences=20, rank=r, world_size=2) for r in range(2)]
    assert sum(b for b, _ in parts) == pytest.approx(expected, rel=1e-5)


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_learns_what_letter_counts_cannot_tell(settings, prepared):
    settings["trainer"]["max_epochs"] = epochs = 6
    folder = train(settings)
    text = PreparedText(prepared, "train")
    counts = Counter(text.ids[text.ids != TOKENIZER.bos_id].tolist())
    total = sum(counts.values())
    unigram = -sum(n / total * math.log2(n / total) for n in counts.values())
    records = history(settings)
    assert [record["held_out/bits_per_character"] for record in records] == sorted(
        (record["held_out/bits_per_character"] for record in records), reverse=True
    )
    assert len(records) == 3
    summary = language_model_summary(folder)
    assert summary["held_out"]["bits_per_character"] < 1.2 < unigram
    assert summary["held_out"]["sentences"] == len(PreparedText(prepared, "held_out"))
    assert summary["steps"] == records[-1]["steps"]
    bits, count = bits_per_character(load_language_model(folder), PreparedText(prepared, "held_out"), TOKENIZER)
    assert summary["held_out"]["bits_per_character"] == pytest.approx(bits / count, abs=1e-4)
    assert 0.9 < records[-1]["characters_read"] / (epochs * total) <= 1.01


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(settings, tmp_path):
    settings["trainer"] |= {"max_steps": 24, "measurements": 6}
    whole = settings | {"output": str(tmp_path / "whole")}
    train(whole)
    # Stopped in the middle of a batch of several windows, which all batches here have.
    stopped = settings | {"output": str(tmp_path / "stopped")}
    checkpoints = tmp_path / "stopped" / "checkpoints"
    with pytest.MonkeyPatch.context() as patch:
        from asr.training import language_model

        measure = language_model.Measure.measure

        def measure_and_stop(self, trainer, module):
            measure(self, trainer, module)
            if trainer.global_step >= 12:
                raise KeyError("stop")

        patch.setattr(language_model.Measure, "measure", measure_and_stop)
        with pytest.raises(KeyError, match="stop"):
            train(stopped)
    (newest,) = checkpoints.glob("*.ckpt")
    state = torch.load(newest, weights_only=True)
    assert state["global_step"] == 12
    assert state["language_model"]["carried"] is not None
    train(stopped)
    keys = ("steps", "characters_read", "learning_rate", "held_out/bits_per_character")
    assert [[record[key] for key in keys] for record in history(stopped)] == [
        [record[key] for key in keys] for record in history(whole)
    ]
    a, b = (load_language_model(f"{run['output']}/model").state_dict() for run in (whole, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)

    tuned = tmp_path / "stopped" / "model" / "language_model.yaml"
    tuned.write_text(tuned.read_text() + "decoding:\n  lm_weight: 0.4\n")  # as tune.py does
    train(stopped)  # finished already: nothing is done again
    assert len(history(stopped)) == 6
    assert yaml.safe_load(tuned.read_text())["decoding"] == {"lm_weight": 0.4}
    with pytest.raises(ConfigError, match="holds a run already"):
        train(stopped | {"resume": "never"})
    with pytest.raises(ConfigError, match=r"another model \(d: 48 -> 32\)"):
        train(stopped | {"model": {"embedding": 8, "d": 32}})
    with pytest.raises(ModelError, match="no such checkpoint"):
        train(stopped | {"resume": str(tmp_path / "none.ckpt")})
    other = tmp_path / "other"
    other.mkdir()
    lines = [line for part in ("held_out", "train") for line in PreparedText(settings["text"], part).lines()]
    (other / "text.txt").write_text("\n".join(lines[:-1]))
    prepare_text([other / "text.txt"], other, held_out=0.1)
    with pytest.raises(ConfigError, match="has learned from another text; set text= back or choose another output="):
        train(stopped | {"text": str(other)})


def test_a_finished_run_goes_on_where_it_is_to_end_later(settings):
    folder = train(settings)
    before, steps = history(settings), language_model_summary(folder)["steps"]
    assert before[-1]["steps"] == steps
    settings["trainer"] |= {"max_epochs": 4}
    train(settings)
    after = history(settings)
    assert after[: len(before)] == before
    assert after[-1]["steps"] == pytest.approx(2 * steps, abs=2)
    assert (folder.parent / "checkpoints" / f"step-{after[-1]['steps']:07d}.ckpt").is_file()
    best = min(after, key=lambda record: record["held_out/bits_per_character"])
    assert language_model_summary(folder)["steps"] == best["steps"] > steps


def test_what_a_run_goes_on_from_is_not_cleared_away(settings):
    settings["trainer"] |= {"max_epochs": 1}
    train(settings)
    (good,) = (Path(settings["output"]) / "checkpoints").iterdir()
    damaged = good.with_name("step-9999999.ckpt")
    damaged.write_bytes(good.read_bytes()[:1000])
    settings["trainer"] |= {"max_epochs": 2}
    train(settings)
    assert history(settings)[-1]["steps"] > int(good.stem.partition("-")[2])


def test_a_limit_in_minutes_ends_the_run_and_its_schedule(settings):
    settings["trainer"] |= {"max_epochs": 1000, "max_minutes": 0.03}
    train(settings)
    last = history(settings)[-1]
    assert last["learning_rate"] == pytest.approx(1e-5, rel=0.1)
    assert 0.03 <= last["minutes"] + 0.05 < 0.5


def test_settings_that_cannot_work(settings):
    with pytest.raises(ConfigError, match="join must be"):
        train(settings | {"training": {"join": 1.0}})
    with pytest.raises(ConfigError, match=r"unknown setting model\.size"):
        train(settings | {"model": {"size": 3}})
    for wrong, message in (
        ({"measurements": 0}, "trainer.measurements must be a whole number of at least 1, got 0"),
        ({"measurements": "ten"}, "trainer.measurements must be a whole number"),
        ({"devices": "auto"}, "trainer.devices must be a whole number"),
        ({"max_epochs": 0}, "trainer.max_epochs must be a whole number of at least 1"),
        ({"checkpoint_minutes": None}, "trainer.checkpoint_minutes must be a number above 0, got None"),
        ({"max_minutes": "1h"}, "trainer.max_minutes must be a number above 0, got '1h'"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(settings | {"trainer": settings["trainer"] | wrong})
    with pytest.raises(ConfigError, match="resume must be auto, never or the path of a checkpoint, got None"):
        train(settings | {"resume": None})
    with pytest.raises(AsrError, match=r"prepare\.py first"):
        train(settings | {"text": "nowhere"})
    assert yaml.safe_dump(settings)  # plain values: they go into config.yaml as they are


def test_a_gradient_that_is_no_number_costs_one_step_and_not_the_run(settings, monkeypatch):
    settings["trainer"] |= {"max_steps": 6, "measurements": 1}
    clip, weights = LanguageModelModule.on_before_optimizer_step, []

    def spoil(self, optimizer):
        weights.append([p.detach().clone() for p in self.model.parameters()])
        if self.trainer.global_step == 3:
            next(self.model.parameters()).grad[0, 0] = torch.inf
        clip(self, optimizer)

    monkeypatch.setattr(LanguageModelModule, "on_before_optimizer_step", spoil)
    train(settings)
    same = [all(torch.equal(a, b) for a, b in zip(x, y, strict=True)) for x, y in pairwise(weights)]
    assert same == [False, False, False, True, False]
    assert all(p.isfinite().all() for p in load_language_model(f"{settings['output']}/model").parameters())


def test_a_window_without_a_target_has_a_loss(settings):
    """As the last windows of a batch may be for one of several processes."""
    module = LanguageModelModule.from_settings(settings)
    ids = torch.zeros(2, 5, dtype=torch.long)
    loss, _ = module.nats(Window(ids, ids, first=True, characters=0), None)
    assert loss == 0


def test_a_state_from_a_checkpoint_goes_where_the_model_is(settings, monkeypatch):
    module = LanguageModelModule.from_settings(settings)
    state = torch.zeros(1, 2, 48)
    module.on_load_checkpoint({"language_model": {"seconds": 0.0, "characters": 0, "carried": (state, state)}})
    module.to("meta")  # as a GPU, it does not take what is in the processor's memory
    seen = []

    def nats(batch, state):
        seen.append((state.s.device.type, state.c.device.type))
        raise KeyError

    monkeypatch.setattr(module, "nats", nats)
    ids = torch.zeros(2, 5, dtype=torch.long, device="meta")
    with pytest.raises(KeyError):
        module.training_step(Window(ids, ids, first=False, characters=10), 0)
    assert seen == [("meta", "meta")]

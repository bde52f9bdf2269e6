"""A word LSTM trained beside an n-gram model on a little text, and what is written of both."""

import json

import numpy as np
import pytest
import torch

from asr.bundle import load_any_language_model
from asr.corpus.text import PreparedText, prepare_text
from asr.errors import ConfigError, ModelError
from asr.model.language_model import language_model_summary
from asr.model.word_lm import estimate, load_word_lm, measure, save_word_lm
from asr.model.word_lstm import BEGIN, FIRST_WORD, PAD, UNKNOWN, MixedLanguageModel
from asr.tokenizer import CharTokenizer
from asr.training.checkpoint import latest_checkpoint
from asr.training.language_model import LanguageModelTraining, Measure
from asr.training.word_lstm import WordLoader, WordText, choose_shortlist, class_table, train

ANIMALS = ["CAT", "DOG", "BIRD", "FISH"]
FILLERS = ["ONE", "TWO", "THREE", "FOUR", "FIVE"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Sentences that end with the animal they begin with, three words later: out of a 3-gram's sight."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(1500):
        animal = rng.choice(ANIMALS)
        lines.append(" ".join([animal, *rng.choice(FILLERS, 3), animal]))
    lines[::100] = [f"RARE WORD {rng.choice(FILLERS)} {rng.choice(FILLERS)}" for _ in lines[::100]]
    (folder / "text.txt").write_text("\n".join(lines))
    prepare_text([folder / "text.txt"], folder, held_out=0.1)
    return folder


@pytest.fixture(scope="module")
def ngram(prepared, tmp_path_factory):
    tables = estimate(PreparedText(prepared, "train").lines(), vocabulary=50, order=3, ngrams=10_000)
    return save_word_lm(tmp_path_factory.mktemp("ngram"), tables, {"order": 3, "words": 1, "sentences": 1})


@pytest.fixture
def settings(prepared, ngram, tmp_path):
    """What Hydra would hand to `train` for a run of seconds."""
    return {
        "text": str(prepared),
        "ngram": str(ngram),
        "share": 0.5,
        "output": str(tmp_path / "run"),
        "resume": "auto",
        "model": {"shortlist": 9, "embedding": 16, "d": 32, "cutoffs": [6], "shrink": 2.0, "dropout": 0.0},
        "training": {"learning_rate": 2e-2, "warmup_steps": 5, "batch_characters": 200, "window": 16, "join": 0.2},
        "trainer": {
            "max_epochs": 16,
            "max_steps": -1,
            "max_minutes": None,
            "measurements": 2,
            "measured_sentences": 100,
            "checkpoint_minutes": 5.0,
            "precision": "32-true",
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "progress": False,
            "log_every": 10,
        },
    }


def history(settings):
    return [json.loads(line) for line in open(f"{settings['output']}/history.jsonl")]


def test_a_text_as_words(prepared, ngram):
    model = load_word_lm(ngram)
    prepared_text = PreparedText(prepared, "train")
    text = WordText(prepared_text, model)
    names = [*model.words, "end", "?", "begin"]
    lines = prepared_text.lines()
    assert len(text) == len(lines) == len(prepared_text)
    for start, length, line in zip(text.starts, text.lengths, lines, strict=True):
        known = [word if word in model.words else "?" for word in line.split()]
        assert [names[i] for i in text.words[start : start + length]] == known
    shortlist = choose_shortlist(text, model, 9)
    assert {names[i] for i in shortlist} == {*ANIMALS, *FILLERS}
    counts = [int((text.words == i).sum()) for i in shortlist]
    assert counts == sorted(counts, reverse=True)
    table = class_table(model, shortlist)
    assert table[shortlist].tolist() == [*range(FIRST_WORD, FIRST_WORD + 9)]
    assert table[[model.words.index("RARE"), model.unknown]].tolist() == [UNKNOWN, UNKNOWN]


def test_windows_hold_every_word_once(prepared, ngram):
    model = load_word_lm(ngram)
    text = WordText(PreparedText(prepared, "train"), model)
    classes = class_table(model, choose_shortlist(text, model, 9))
    training = LanguageModelTraining(batch_characters=200, window=8, join=0.5)
    loader = WordLoader(text, classes, training, CharTokenizer())
    found, targets = np.zeros(FIRST_WORD + 9, int), 0
    for window in loader:
        assert window.first == bool((window.inputs[:, 0] == BEGIN).all())
        assert (window.targets != BEGIN).all()
        assert ((window.inputs != PAD) | (window.targets == PAD)).all()  # nothing is asked for after an end
        found += np.bincount(window.targets.flatten(), minlength=len(found))
        targets += window.characters
    expected = np.bincount(classes[text.words], minlength=len(found))
    # the last passages may be left out, so that batches have a multiple of 8 rows
    assert (found[1:] <= expected[1:]).all()
    assert found[1:].sum() == targets > 0.98 * expected.sum()


def test_it_learns_what_an_ngram_cannot_see(settings, ngram, prepared):
    folder = train(settings)
    records = history(settings)
    assert [record["words_read"] for record in records] == sorted(record["words_read"] for record in records)
    # An animal, three of five words, and the same animal: 2 + 3 * log2(5) bits a sentence of five.
    assert 1.79 < records[-1]["held_out/bits_per_word"] < 1.95
    model = load_any_language_model(folder)
    assert isinstance(model, MixedLanguageModel)
    lines = PreparedText(prepared, "held_out").lines()
    mixed, counted = (measure(m, lines, CharTokenizer())[1] for m in (model, load_word_lm(ngram)))
    assert mixed < 0.87 * counted  # of six words, the end included, one is twice as likely or more: 0.5 ** (1 / 6)
    about = language_model_summary(folder)
    assert about["word_perplexity"] == pytest.approx(mixed, abs=0.05)
    assert about["steps"] == records[-1]["steps"]
    assert about["words"] == sum(len(line.split()) for line in PreparedText(prepared, "train").lines())


def test_its_bits_are_those_of_sentences_read_one_by_one(settings, prepared, ngram):
    settings["trainer"] |= {"max_steps": 10, "measurements": 1}
    model = load_any_language_model(train(settings))
    words = WordText(PreparedText(prepared, "held_out"), model)
    bits, count = 0.0, 0
    with torch.no_grad():
        for start, length in zip(words.starts[:100], words.lengths[:100], strict=True):
            classes = torch.from_numpy(model.class_of.numpy()[words.words[start : start + length]])
            s, _ = model.lstm(torch.cat([torch.tensor([BEGIN]), classes[:-1]])[None])
            bits -= model.lstm.probabilities(s[0]).gather(1, classes[:, None]).log2().sum().item()
            count += int(length)
    assert history(settings)[-1]["held_out/bits_per_word"] == pytest.approx(bits / count, rel=2e-3)  # fp16 weights


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(settings, tmp_path):
    settings["trainer"] |= {"max_steps": 12, "measurements": 4}
    settings["training"]["window"] = 8  # several to a batch
    whole = settings | {"output": str(tmp_path / "whole")}
    train(whole)
    stopped = settings | {"output": str(tmp_path / "stopped")}
    with pytest.MonkeyPatch.context() as patch:
        measure = Measure.measure

        def measure_and_stop(self, trainer, module):
            measure(self, trainer, module)
            if trainer.global_step >= 6:
                raise KeyError("stop")

        patch.setattr(Measure, "measure", measure_and_stop)
        with pytest.raises(KeyError, match="stop"):
            train(stopped)
    train(stopped)
    keys = ("steps", "words_read", "learning_rate", "held_out/bits_per_word")
    assert [[record[key] for key in keys] for record in history(stopped)] == [
        [record[key] for key in keys] for record in history(whole)
    ]
    with pytest.raises(ConfigError, match="another model"):
        train(stopped | {"model": settings["model"] | {"d": 16}})
    path = latest_checkpoint(tmp_path / "stopped" / "checkpoints")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["hyper_parameters"]["model"]["layers"]  # as before there were any
    torch.save(checkpoint, path.with_name("older.ckpt"))
    train(stopped | {"resume": str(path.with_name("older.ckpt"))})
    with pytest.raises(ConfigError, match=r"another model \(layers: 1 -> 2\)"):
        train(stopped | {"resume": str(path.with_name("older.ckpt")), "model": settings["model"] | {"layers": 2}})


def test_figures_are_those_of_the_share_in_the_folder(settings, prepared):
    settings["trainer"] |= {"max_steps": 10, "measurements": 1}
    found = []
    for share in (0.9, 0.1):
        folder = train(settings | {"share": share})  # the second time the run is over already
        model = load_any_language_model(folder)
        assert model.share == share
        perplexity = measure(model, PreparedText(prepared, "held_out").lines(), CharTokenizer(), 1000)[1]
        found.append(language_model_summary(folder)["word_perplexity"])
        assert found[-1] == pytest.approx(perplexity, abs=0.06)
    assert abs(found[0] - found[1]) > 0.3
    for share in (75, "half", True):
        with pytest.raises(ConfigError, match=f"share must be from 0 to 1, got {share!r}"):
            train(settings | {"share": share})


def test_what_cannot_be_trained(settings, tmp_path):
    with pytest.raises(ConfigError, match=r"ask for 500 words: .* has 11; lower"):
        train(settings | {"model": settings["model"] | {"shortlist": 500}})
    with pytest.raises(ModelError, match="no language model there"):
        train(settings | {"ngram": str(tmp_path)})
    settings["trainer"] |= {"max_steps": 2, "measurements": 1}
    train(settings)
    # On the same text, but with an n-gram model of other words, each of the LSTM's would be another.
    tables = estimate(["BIRD ONE", "CAT TWO RARE", "FISH FIVE FOUR THREE ONE"] * 9, vocabulary=50, order=3, ngrams=1000)
    other = save_word_lm(tmp_path / "other", tables, {"order": 3, "words": 1, "sentences": 1})
    with pytest.raises(ConfigError, match="has learned from another text; set text= back"):
        train(settings | {"ngram": str(other)})


def test_training_goes_on_from_a_folder_of_both_on_another_text(settings, prepared, tmp_path):
    settings["trainer"] |= {"max_epochs": 8}
    first = train(settings)
    learned = history(settings)[-1]["held_out/bits_per_word"]
    words = load_any_language_model(first)
    # Of this text the most frequent words are others: a shortlist chosen anew would be another.
    (tmp_path / "other.txt").write_text("\n".join(f"FIVE {filler} DOG FIVE DOG" for filler in FILLERS * 60))
    other = tmp_path / "other"
    prepare_text([tmp_path / "other.txt", prepared / "text.txt"], other, held_out=0.1)
    on = settings | {"output": str(tmp_path / "on"), "ngram": str(first), "init_from": str(first)}
    on["training"] = settings["training"] | {"learning_rate": 1e-9}
    on["trainer"] = settings["trainer"] | {"max_steps": 2, "measurements": 1}
    again = train(on)
    assert history(on)[-1]["held_out/bits_per_word"] == pytest.approx(learned, abs=0.02)  # int8
    on |= {"output": str(tmp_path / "new"), "text": str(other)}
    model = load_any_language_model(train(on))
    assert model.shortlist.tolist() == words.shortlist.tolist()
    torch.testing.assert_close(model.lstm.embedding.weight, words.lstm.embedding.weight, atol=0.01, rtol=0)
    about, then = language_model_summary(again), language_model_summary(first)
    assert about["init_from"] == {key: then[key] for key in ("words_read", "steps", "minutes")}
    assert about["ngram"] == then["ngram"]
    assert about["steps"] == 2


def test_training_goes_on_with_more_layers_and_rare_words(settings, prepared, tmp_path):
    settings["trainer"] |= {"max_epochs": 8}
    first = train(settings)
    before = load_any_language_model(first)
    on = settings | {"output": str(tmp_path / "on"), "ngram": str(first), "init_from": str(first)}
    on["model"] = settings["model"] | {"layers": 2, "rare": 2}
    on["training"] = settings["training"] | {"learning_rate": 1e-9}
    on["trainer"] = settings["trainer"] | {"max_steps": 1, "measurements": 1}
    after = load_any_language_model(train(on))
    names = [after.words[i] for i in after.shortlist]
    assert names[:9] == [before.words[i] for i in before.shortlist]
    assert set(names[9:]) == {"RARE", "WORD"}  # the most frequent ones of the others
    lines = PreparedText(prepared, "held_out").lines()
    old, new = (measure(model, lines, CharTokenizer())[1] for model in (before, after))
    assert new == pytest.approx(old, rel=0.03)  # it knows nothing yet of which rare word it is
    on |= {"output": str(tmp_path / "learned"), "training": settings["training"]}
    on["trainer"] = settings["trainer"] | {"max_epochs": 2}
    assert measure(load_any_language_model(train(on)), lines, CharTokenizer())[1] < old
    further = on | {"output": str(tmp_path / "further"), "init_from": on["output"] + "/model"}
    further["trainer"] = settings["trainer"] | {"max_steps": 1, "measurements": 1}
    then = language_model_summary(train(further))["init_from"]  # all that has been read can be told
    assert then["words_read"] == language_model_summary(further["init_from"])["words_read"]
    assert then["init_from"]["words_read"] == language_model_summary(first)["words_read"]
    with pytest.raises(ConfigError, match=r"another model \(layers: 2 -> 1, rare: 2 -> 0"):
        train(settings | {"output": str(tmp_path / "less"), "ngram": str(first), "init_from": on["output"] + "/model"})


def test_training_goes_on_only_from_what_fits(settings, ngram, prepared, tmp_path):
    settings["trainer"] |= {"max_steps": 2, "measurements": 1}
    on = settings | {"output": str(tmp_path / "on"), "init_from": str(train(settings))}
    with pytest.raises(ConfigError, match=r"another model \(d: 32 -> 16\)"):
        train(on | {"model": settings["model"] | {"d": 16}})
    tables = estimate(PreparedText(prepared, "train").lines()[:300], vocabulary=7, order=2, ngrams=100)
    fewer = save_word_lm(tmp_path / "fewer", tables, {"order": 2, "words": 1, "sentences": 1})
    with pytest.raises(ConfigError, match=r"fewer: the n-grams lack \d of the LSTM's words, [A-Z]+ for one; set ngram"):
        train(on | {"ngram": str(fewer)})
    with pytest.raises(ModelError, match=r"not .*LSTM"):
        train(on | {"init_from": str(ngram)})

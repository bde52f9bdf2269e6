"""The word LSTM mixed with the n-gram model, as a model of characters: against both, word by word, made by hand."""

import copy

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

from asr.bundle import load_any_language_model
from asr.errors import ModelError
from asr.model.int8 import from_int8, to_int8
from asr.model.lstm import PackedCell
from asr.model.word_lm import WordLanguageModel, estimate, load_word_lm, packed, read_tensors, save_word_lm
from asr.model.word_lstm import (
    BEGIN,
    FIRST_WORD,
    PAD,
    UNKNOWN,
    MixedLanguageModel,
    WordLstm,
    WordLstmConfig,
    load_mixed,
    save_mixed,
)
from asr.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer()
BOS, EOS, SPACE = CharTokenizer.bos_id, CharTokenizer.eos_id, TOKENIZER.space_id
TEXT = [
    "THE CAT SAT",
    "THE CAT SAT ON THE MAT",
    "THE CATTLE SAT ON THE CAT",
    "A CAT ATE THE CATTLE'S MAT",
    "THE MAT THE CAT SAT ON",
    "A XYLOPHONE",
]
SHORTLIST = ["THE", "CAT", "SAT", "MAT"]  # A and ON are known to the n-gram model alone


@pytest.fixture(scope="module")
def tables():
    return estimate(TEXT, order=3)


@pytest.fixture(scope="module")
def lstm():
    torch.manual_seed(0)
    lstm = WordLstm(WordLstmConfig(shortlist=4, embedding=4, d=8, cutoffs=[3, 5], shrink=2.0)).eval()
    for parameter in lstm.parameters():
        # opinions worth the name, which a file can hold: multiples of 1 / 64, in every row one of 127 / 64
        levels = parameter.data.normal_(std=50).round().clamp(-127, 127)
        levels[..., 0] = levels[..., 0].sign().add(0.5).sign() * 127
        parameter.data = levels / 64
    return lstm


@pytest.fixture(scope="module")
def shortlist(tables):
    words = WordLanguageModel(tables).words
    return np.array([words.index(word) for word in SHORTLIST])


@pytest.fixture(scope="module")
def mixed(tables, lstm, shortlist):
    return lambda share: MixedLanguageModel(tables, lstm, shortlist, share)


@torch.no_grad()
def follow(model, text):
    """Log-probabilities after each character of the text and before the first: (U + 1, V)."""
    state, steps = model.start(1), []
    for token in [BOS, *TOKENIZER.encode(text)]:
        scores, state = model.step(torch.tensor([token]), state)
        steps.append(scores[0])
    return torch.stack(steps)


def likelihood(model, text, ends=(SPACE, EOS)):
    """Of the characters of a text and a space or the end after them."""
    steps = follow(model, text).double()
    ends = steps[-1, list(ends)].logsumexp(0)
    return float((steps[:-1].gather(1, torch.tensor(TOKENIZER.encode(text))[:, None]).sum() + ends).exp())


@torch.no_grad()
def of_lstm(lstm, words):
    """P(next class | begin, words): without padding and begin, which are no words."""
    classes = [BEGIN, *(FIRST_WORD + SHORTLIST.index(w) if w in SHORTLIST else UNKNOWN for w in words)]
    p = lstm.probabilities(lstm(torch.tensor([classes]))[0][0, -1:])[0].double()
    p[[PAD, BEGIN]] = 0
    return p / p.sum()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("text", ["", "THE", "THE CATT", "THE CAT SAT ON", "QQQ'Q THE", "A XYLO", "THE CAT "])
def test_a_step_sums_to_1(mixed, text, share):
    steps = follow(mixed(share), text)
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)
    assert steps[:, [0, 1, 3]].isinf().all()  # blank, BOS, unknown
    assert steps[:, [EOS, *range(4, 32)]].isfinite().all()


def test_a_step_sums_to_1_where_the_lstm_leaves_nothing_for_unknown_words(tables, lstm, shortlist):
    sure = copy.deepcopy(lstm)
    with torch.no_grad():
        sure.output.head.bias[UNKNOWN] -= 40
    steps = follow(MixedLanguageModel(tables, sure, shortlist, 1.0), "THE QQQ XYLO THE")
    assert torch.allclose(steps.exp().sum(1), torch.ones(len(steps)), atol=1e-5)


def test_without_a_share_it_is_the_ngram_model(mixed, tables):
    plain = WordLanguageModel(tables)
    for text in ("THE CAT SAT ON", "A XYLO", "CATTLE'S MAT"):
        assert torch.allclose(follow(mixed(0.0), text), follow(plain, text), atol=1e-6)


def spelled(model, word):
    """p(the word | it is unknown), by its letters."""
    p, before = 1.0, model.base**3 - 1
    for letter in [*model.digit[TOKENIZER.encode(word)].tolist(), model.base - 1]:
        p *= float(model.spelling[before, letter].exp())
        before = before % model.base**2 * model.base + letter
    return p


@pytest.mark.parametrize("before", ["", "THE", "A CAT", "THE XYLOPHONE ON", "THE CAT SAT THE"])
def test_a_word_is_worth_what_the_lstm_says(mixed, lstm, before):
    model = mixed(1.0)
    unigrams = np.diff(model.unigrams.numpy())
    p = of_lstm(lstm, before.split()).tolist()
    # What is left for the words that the LSTM does not know is shared among them as their unigram probabilities are.
    left = {word: unigrams[model.words.index(word)] for word in ("A", "ON")} | {"others": unigrams[model.unknown]}
    left = {word: value / sum(left.values()) * p[UNKNOWN] for word, value in left.items()}
    so_far = likelihood(model, before, [SPACE]) if before else 1.0
    for word in [*SHORTLIST, "A", "ON", "XYLO"]:
        known = p[FIRST_WORD + SHORTLIST.index(word)] if word in SHORTLIST else left.get(word, 0.0)
        expected = known + left["others"] * spelled(model, word)  # a word may be written either way
        # some of each step is spread evenly (SPREAD)
        assert likelihood(model, f"{before} {word}".strip()) / so_far == pytest.approx(expected, rel=5e-3)


def test_both_are_mixed_by_the_share(mixed):
    for history, word in [("", "THE"), ("THE ", "CAT"), ("THE CAT ", "SAT"), ("A ", "MAT"), ("ON THE ", "ON")]:
        values = []
        for share in (0.0, 0.4, 1.0):
            model = mixed(share)
            so_far = likelihood(model, history.strip(), [SPACE]) if history else 1.0
            values.append(likelihood(model, history + word) / so_far)
        none, some, all_ = values
        assert some == pytest.approx(0.6 * none + 0.4 * all_, rel=2e-3)


def test_rows_do_not_depend_on_each_other(mixed):
    """Hypotheses that branch, end words at different times and are dropped, as in a search."""
    model, rng = mixed(0.5), np.random.default_rng(0)
    texts = ["", "", "", "", ""]
    with torch.no_grad():
        scores, state = model.step(torch.full((5,), BOS), model.start(5))
        for _ in range(60):
            rows = torch.from_numpy(rng.integers(0, 5, 5))
            characters = [str(rng.choice([" ", "A", "C", "T", "H", "E"])) for _ in rows]
            texts = [texts[row] + character for row, character in zip(rows, characters, strict=True)]
            tokens = torch.tensor([TOKENIZER.encode(c)[0] if c != " " else SPACE for c in characters])
            scores, state = model.step(tokens, model.select(state, rows))
    for text, row in zip(texts, scores, strict=True):
        state, expected = model.start(1), None
        with torch.no_grad():
            for token in [BOS, *(SPACE if c == " " else TOKENIZER.encode(c)[0] for c in text)]:
                expected, state = model.step(torch.tensor([token]), state)
        assert torch.allclose(row, expected[0], atol=1e-4)


def test_a_state_can_be_gone_on_from_twice(mixed):
    model = mixed(0.5)
    with torch.no_grad():
        _, state = model.step(torch.tensor([BOS]), model.start(1))
        for token in TOKENIZER.encode("THE"):
            _, state = model.step(torch.tensor([token]), state)
        first, _ = model.step(torch.tensor([SPACE]), state)
        for _ in range(20):
            model.step(torch.tensor([SPACE]), state)
        assert torch.equal(model.step(torch.tensor([SPACE]), state)[0], first)


def test_the_loss_is_that_of_the_probabilities(lstm):
    classes = torch.tensor([[BEGIN, 3, 4, 2, 6], [BEGIN, 5, 3, PAD, PAD]])
    s, _ = lstm(classes[:, :-1])
    nats = lstm.nats(s, classes[:, 1:])
    log_probs = lstm.probabilities(s.flatten(0, 1)).log().view(2, 4, -1)
    expected = [-log_probs[b, t, classes[b, t + 1]] for b in range(2) for t in range(4) if classes[b, t + 1] != PAD]
    assert torch.allclose(nats, torch.stack(expected), atol=1e-5)
    half, state = lstm(classes[:, :2])
    rest, _ = lstm(classes[:, 2:], state)
    assert torch.allclose(torch.cat([half, rest], 1)[:, :4], s, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"shortlist": 0},
        {"rare": -1},
        {"layers": 0},
        {"dropout": 1.0},
        {"cutoffs": [5, 3]},
        {"cutoffs": [30000]},
        {"cutoffs": [21000], "rare": 5000},
        {"cutoffs": [0, 5]},
    ],
)
def test_settings_that_cannot_work(change):
    with pytest.raises(ValueError, match=r"shortlist|dropout|cutoffs"):
        WordLstmConfig(**change)


# ---- more layers, rare words -----------------------------------------------------------------------------------------

SMALL = {"shortlist": 6, "embedding": 4, "d": 8, "cutoffs": [4, 7], "shrink": 2.0}


def larger(**more):
    """With opinions in every layer, of weights that fp16 can hold."""
    torch.manual_seed(2)
    lstm = WordLstm(WordLstmConfig(**SMALL, **more)).eval()
    for parameter in lstm.parameters():
        parameter.data.normal_().half().float()
    return lstm


def test_further_layers_add_to_what_they_read():
    lstm = larger(layers=3)
    x = lstm.embedding(torch.tensor([[BEGIN, 4, 5, 2, 8]]))
    with torch.no_grad():
        y = lstm.lstm(x)[0]
        for layer in lstm.further:
            y = y + layer(y)[0]
        found, _ = lstm(torch.tensor([[BEGIN, 4, 5, 2, 8]]))
    torch.testing.assert_close(found, y)


@pytest.mark.parametrize("pack", [False, True])
def test_steps_are_the_sequence(pack):
    lstm = larger(layers=3, rare=5, rare_projection=3)
    if pack:
        lstm.pack()
    classes = torch.tensor([[BEGIN, 4, 9, 2, 12], [BEGIN, 13, 8, 3, 4]])
    with torch.no_grad():
        expected, after = lstm(classes)
        state = lstm.start(2)
        for t in range(5):
            y, state = lstm.step(classes[:, t], state)
            torch.testing.assert_close(y, expected[:, t], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(state.c, after.c, atol=2e-3, rtol=2e-3)
    assert not lstm.train()._packed


def test_rare_words_are_written_but_read_as_unknown():
    lstm = larger(rare=5, rare_projection=3)
    assert lstm.embedding.num_embeddings == 9
    s, _ = lstm(torch.tensor([[BEGIN, 4, 9], [BEGIN, 4, 13], [BEGIN, 4, UNKNOWN]]))
    assert torch.equal(s[0], s[2])
    assert torch.equal(s[1], s[2])
    p = lstm.probabilities(s[0])
    assert p.shape == (3, 14)
    torch.testing.assert_close(p.sum(1), torch.ones(3))
    torch.testing.assert_close(p, lstm.output.log_prob(s[0]).exp())
    targets = torch.tensor([[10, 4, 13]])
    torch.testing.assert_close(lstm.nats(s[:1], targets), -p.gather(1, targets.T)[:, 0].log())


def test_probabilities_of_words_in_units_packed_or_not():
    lstm = larger(rare=5, rare_projection=3)
    for parameter in lstm.parameters():
        if parameter.dim() == 2:
            parameter.data = from_int8(*to_int8(parameter.data))
    s = torch.randn(3, lstm.config.d) / 4
    p = lstm.probabilities(s)
    words = lstm.probabilities(s, 1000)
    torch.testing.assert_close(words[:, UNKNOWN:].sum(1), torch.full((3,), 1000.0))
    torch.testing.assert_close(words[:, UNKNOWN:] / words[:, UNKNOWN, None], p[:, UNKNOWN:] / p[:, UNKNOWN, None])
    if PackedCell.available():
        assert lstm.pack()._packed_output
        torch.testing.assert_close(lstm.probabilities(s), p, atol=0.02, rtol=0.1)
        assert not lstm.train()._packed_output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_learned_in_either_precision(dtype):
    lstm = WordLstm(WordLstmConfig(**SMALL, layers=2, rare=5))
    classes = torch.tensor([[BEGIN, 4, 9, 2, 12], [BEGIN, 13, 8, 3, PAD]])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        s, state = lstm(classes[:, :-1])
        s, _ = lstm(classes[:, :-1], state.detach())
        lstm.nats(s, classes[:, 1:]).mean().backward()
    assert all(p.grad is not None for p in lstm.parameters())
    # The new layer's cell has a gradient though nothing comes out of it yet.
    assert lstm.further[0].weight_ih_l0.grad[16:24].abs().max() > 0


def test_a_larger_one_begins_as_the_smaller_one():
    small = larger()
    large = WordLstm(WordLstmConfig(**SMALL, layers=3, rare=5, rare_projection=3)).eval()
    large.begin_as(small)
    classes = torch.tensor([[BEGIN, 4, UNKNOWN, 8]])
    with torch.no_grad():
        p, q = small.probabilities(small(classes)[0][0]), large.probabilities(large(classes)[0][0])
    expected = p.clone()
    expected[:, UNKNOWN] /= 2
    torch.testing.assert_close(q[:, :9], expected)
    torch.testing.assert_close(q[:, 9:].sum(1), p[:, UNKNOWN] / 2)
    again = WordLstm(large.config).eval()
    again.begin_as(large)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), large.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="size mismatch"):
        small.begin_as(large)
    with pytest.raises(RuntimeError, match="do not fit"):
        WordLstm(WordLstmConfig(**SMALL)).begin_as(larger(layers=2))


# ---- on disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, tables, lstm, shortlist):
    return save_mixed(tmp_path / "lm", tables, lstm, shortlist, 0.4, {"words": 30})


def test_what_is_written_is_what_is_read(folder, mixed):
    model = load_any_language_model(folder)
    assert isinstance(model, MixedLanguageModel)
    assert not model.training
    assert (
        bool(model.lstm._packed) == PackedCell.available()
    )  # which rounds nothing of these weights, but what they get
    found, expected = (follow(one, "THE CAT SAT ON") for one in (model, mixed(0.4)))
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.01)
    for name, value in model.lstm.state_dict().items():
        assert torch.equal(value, mixed(0.4).lstm.state_dict()[name]), name
    torch.testing.assert_close(follow(model.train(), "THE CAT SAT ON"), expected)  # without packing
    tensors = load_file(folder / "language_model.safetensors")
    kinds = {(v.ndim, str(v.dtype)) for k, v in tensors.items() if k.startswith("lstm.")}
    assert kinds == {(2, "int8"), (1, "float16")}


@pytest.mark.parametrize("targets", [[[3, 4, 7]], [[8, 5, 6]], [[3, 4, 4]]], ids=["some", "all", "frequent"])
def test_the_loss_is_the_adaptive_softmax_with_gradients_for_groups_that_no_target_is_of(targets):
    lstm = WordLstm(WordLstmConfig(shortlist=6, embedding=4, d=8, cutoffs=[5, 7], shrink=2.0))
    inputs, targets = torch.tensor([[BEGIN, 3, 4]]), torch.tensor(targets)

    def gradients(loss):
        lstm.zero_grad()
        loss.mean().backward()
        return {name: p.grad for name, p in lstm.named_parameters()}

    expected = -lstm.output(lstm(inputs)[0][0], targets[0]).output
    loss = lstm.nats(lstm(inputs)[0], targets)
    torch.testing.assert_close(loss, expected)
    found, theirs = gradients(loss), gradients(expected)
    for name, gradient in found.items():
        assert gradient is not None, name  # or a training of several processes waits for ever
        torch.testing.assert_close(gradient, torch.zeros_like(gradient) if theirs[name] is None else theirs[name])
    assert sum(gradient is None for gradient in theirs.values()) == {7: 2, 6: 0, 4: 4}[targets[0, 2].item()]


def test_in_training_the_products_are_bf16_and_the_sums_fp32():
    torch.manual_seed(1)
    lstm = WordLstm(WordLstmConfig(shortlist=60, embedding=8, d=16, cutoffs=[20, 40], shrink=2.0))
    s, targets = torch.randn(8, 10, 16), torch.randint(FIRST_WORD, 63, (8, 10))
    exact = lstm.nats(s, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = lstm.nats(s, targets)
        assert torch.equal(lstm.eval().nats(s, targets), exact)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.01)


def test_matrices_are_rounded_to_127_levels_of_each_row(tmp_path, tables, shortlist):
    torch.manual_seed(1)
    lstm = WordLstm(WordLstmConfig(shortlist=4, embedding=4, d=8, cutoffs=[3, 5], shrink=2.0)).eval()
    lstm.embedding.weight.data[0] = 0
    read = load_mixed(save_mixed(tmp_path / "once", tables, lstm, shortlist, 0.4, {})).lstm
    for (name, before), after in zip(lstm.state_dict().items(), read.state_dict().values(), strict=True):
        error = (before - after).abs()
        step = before.abs().amax(-1, keepdim=True) / 127 if before.dim() == 2 else before.abs() / 1024
        assert (error <= 0.57 * step + 1e-7).all(), name  # half a step, and the step's own rounding to fp16
        assert before.dim() < 2 or len(before) == 1 or error.max() > 0
    again = load_mixed(save_mixed(tmp_path / "twice", tables, read, shortlist, 0.4, {})).lstm
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), again.parameters(), strict=True))


def test_files_of_format_1_are_read(folder, mixed, tables, tmp_path):
    """They hold the tables one by one."""
    for path in (folder, save_word_lm(tmp_path / "ngrams", tables, {})):
        weights, settings = path / "language_model.safetensors", path / "language_model.yaml"
        save_file(read_tensors(weights), weights)
        assert {"words", "3.word"} <= set(load_file(weights))
        settings.write_text(settings.read_text().replace("format: 2", "format: 1"))
    torch.testing.assert_close(follow(load_mixed(folder).train(), "A CAT"), follow(mixed(0.4), "A CAT"))
    assert torch.equal(follow(load_word_lm(tmp_path / "ngrams"), "A CAT"), follow(WordLanguageModel(tables), "A CAT"))


@pytest.mark.parametrize(
    "damage",
    [
        "weights",
        "one byte",
        "no tables",
        "fewer words",
        "other size",
        "no lstm",
        "no scale",
        "empty",
        "shrink",
        "share",
    ],
)
def test_a_damaged_folder_is_one_line(folder, tables, damage):
    settings, path = folder / "language_model.yaml", folder / "language_model.safetensors"
    about = yaml.safe_load(settings.read_text())
    if damage == "weights":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "one byte":
        content = load_file(path)["packed"].copy()
        content[len(content) // 3] ^= 1
        save_file({**load_file(path), "packed": content}, path)
    elif damage == "no tables":
        save_file({**load_file(path), "packed": np.zeros(50, np.uint8)}, path)
    elif damage == "fewer words":
        tables = {n: v for n, v in read_tensors(path).items() if not n.startswith(("lstm.", "scale."))}
        save_file({**load_file(path), **packed(tables | {"shortlist": np.array([0, 1, 2], np.uint16)})}, path)
    elif damage == "other size":
        about["lstm"]["d"] = 16
    elif damage == "empty":
        about["lstm"] = None
    elif damage == "shrink":
        about["lstm"]["shrink"] = 0
    elif damage in ("no lstm", "no scale"):
        prefix = damage.removeprefix("no ") + "."
        save_file({name: value for name, value in load_file(path).items() if not name.startswith(prefix)}, path)
    else:
        about["share"] = 2.0
    settings.write_text(yaml.safe_dump(about))
    with pytest.raises(ModelError, match="copy it again") as error:
        load_mixed(folder)
    assert "\n" not in str(error.value)


def test_kinds_are_not_mistaken_for_each_other(folder, tables, tmp_path):
    save_word_lm(tmp_path / "plain", tables, {})
    with pytest.raises(ModelError, match="kind"):
        load_mixed(tmp_path / "plain")
    assert type(load_any_language_model(tmp_path / "plain")) is WordLanguageModel

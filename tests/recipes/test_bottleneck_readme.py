"""The page on the bottleneck: its lines of code stand where it says, its numbers are those measured, its sums right."""

from __future__ import annotations

import ast
import json
import re
from math import exp, tanh
from pathlib import Path

import pytest
import torch

from asr.model import EncoderConfig, PyramidalEncoder, Speller, SpellerConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes" / "bottleneck"
README = (FOLDER / "README.md").read_text()


# ---- equations beside code -------------------------------------------------------------------------------------------

# | `equation` | `line of code` | `file`, `function` |
ROWS = re.findall(r"^\|.*?\| `([^`]+)` \| `([\w/]+\.py)`, `([\w.]+)` \|$", README, re.MULTILINE)


def source_of(file: str, name: str) -> str:
    """The lines of a function or `Class.method`."""
    text = (ROOT / file).read_text()
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        node = next(n for n in ast.iter_child_nodes(node) if isinstance(n, kinds) and n.name == part)
    return ast.get_source_segment(text, node) or ""


def test_the_page_names_code_for_every_equation():
    assert len(ROWS) >= 9


@pytest.mark.parametrize(("code", "file", "function"), ROWS)
def test_every_quoted_line_stands_in_the_function_named(code, file, function):
    assert code in source_of(file, function)


# ---- what was found --------------------------------------------------------------------------------------------------


def test_tables_and_numbers_are_those_of_results_json(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from figures import facts, tables

    results = json.loads((FOLDER / "figures" / "results.json").read_text())
    for table in tables(results).strip().split("\n\n"):
        assert table in README
    known = facts(results)
    quoted = re.findall(r"([\d.,]+)[^\d<]*<!-- (.+?) -->", README)
    assert len(quoted) >= 8
    for number, name in quoted:
        assert number == known[name], name


# ---- two dimensions, by hand -----------------------------------------------------------------------------------------

INPUTS = [(1.0, -1.0), (0.0, 1.0), (-1.0, 0.0)]
EMBEDDED = [(1.0, -1.0), (0.0, 1.0)]  # of BOS and the first letter


def encoder() -> PyramidalEncoder:
    """Input and output gates open, the forget gate at a half; the forward LSTM sees x[0], the backward one x[1]."""
    made = PyramidalEncoder(EncoderConfig(n_mels=2, d=2, layers=1, join_before=(), dropout=0.0, layer_norm=False))
    lstm = made.layers[0].lstm
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.zero_()
        for column, direction in enumerate(("", "_reverse")):
            getattr(lstm, f"weight_ih_l0{direction}")[2, column] = 2.0  # gates in the order i, f, g, o
            getattr(lstm, f"bias_ih_l0{direction}")[[0, 3]] = 20.0
    return made.eval()


def speller(context: str) -> Speller:
    """The same gates; an output layer that hands on what it is given: the logits are [a ; s], [C ; s] or s."""
    made = Speller(SpellerConfig(vocabulary=4, d=2, embedding=2, context=context, hops=1, dropout=0.0))
    lstm = made.lstms[0]
    with torch.no_grad():
        for parameter in (*lstm.parameters(), *made.output.parameters()):
            parameter.zero_()
        lstm.weight_ih_l0[4:6, :2] = 2 * torch.eye(2)
        lstm.weight_hh_l0[4:6] = torch.eye(2)
        lstm.bias_ih_l0[[0, 1, 6, 7]] = 20.0
        made.embedding.weight[:2] = torch.tensor(EMBEDDED)
        made.output.weight.fill_diagonal_(1.0)
    return made.eval()


def listen() -> list[tuple[float, float]]:
    """h_1 .. h_3 with nothing but numbers."""

    def one(values):
        c, states = 0.0, []
        for x in values:
            c = c / 2 + tanh(2 * x)
            states.append(tanh(c))
        return states

    return list(zip(one([x for x, _ in INPUTS]), one([x for _, x in INPUTS[::-1]])[::-1], strict=True))


def spell(embedded, s, c):
    """One step of the decoder's LSTM."""
    c = [c[k] / 2 + tanh(2 * embedded[k] + s[k]) for k in (0, 1)]
    return [tanh(value) for value in c], c


def attend(s, h):
    scores = [s[0] * hi[0] + s[1] * hi[1] for hi in h]
    total = sum(exp(e) for e in scores)
    weights = [exp(e) / total for e in scores]
    return scores, weights, [sum(w * hi[k] for w, hi in zip(weights, h, strict=True)) for k in (0, 1)]


def written(values) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"


def heard() -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return encoder()(torch.tensor([INPUTS]), torch.tensor([3]))


def test_the_encoder_by_hand():
    h, _ = heard()
    torch.testing.assert_close(h[0], torch.tensor(listen()), rtol=0, atol=1e-6)
    for i, state in enumerate(listen(), start=1):
        assert f"h_{i} = {written(state)}" in README


def assert_close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)


def assert_printed(name: str, values: list[float]) -> None:
    assert re.search(rf"{re.escape(name)} .*{re.escape(written(values))}", README), (name, written(values))


@torch.no_grad()
def test_attention_by_hand():
    h = listen()
    modules = speller("attention")
    memory = modules.memory(*heard())
    logits, weights = modules(torch.tensor([[0, 1]]), memory)
    s, c = [0.0, 0.0], [0.0, 0.0]
    for t, embedded in enumerate(EMBEDDED, start=1):
        s, c = spell(embedded, s, c)
        scores, alpha, a = attend(s, h)
        states = torch.tensor([[s]])
        attention = modules.attentions[0]
        assert_close(attention.scores(states, memory.h, None)[0, 0], scores)
        assert_close(attention(states, memory.h, memory.mask)[0][0, 0], a)
        assert_close(weights[0, t - 1], alpha)
        assert_close(logits[0, t - 1], [*a, *s])
        assert_printed(f"s_{t}", s)
        assert_printed(f"e^{t}", scores)
        assert_printed(f"alpha^{t}", alpha)
        assert_printed(f"a_{t}", a)
        assert_printed(f"[a_{t} ; s_{t}]", [*a, *s])


@torch.no_grad()
def test_fixed_and_cho_by_hand():
    h = listen()
    s, _ = spell(EMBEDDED[0], h[-1], [0.0, 0.0])
    for context, name, expected in (("fixed", "fixed", s), ("cho", "Cho", [*h[-1], *s])):
        modules = speller(context)
        logits, _ = modules(torch.tensor([[0]]), modules.memory(*heard()))
        assert_close(logits[0, 0, : len(expected)], expected)
        assert_printed(name, expected)

"""What English looks like: a character LSTM over the speller's ids, for fusion in the search (Gulcehre et al. 2015).

    s_t, c_t = LSTM(E y_t ; s_{t-1}, c_{t-1})        y_0 = BOS, s_{-1} = c_{-1} = 0
    p(y_{t+1} | y_0 .. y_t) = softmax(W s_t + b)

On disk it is a folder with `language_model.safetensors` (fp16) and `language_model.yaml`; nothing in it is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from asr.config import from_mapping, to_mapping
from asr.errors import AsrError, ConfigError, ModelError
from asr.tokenizer import CharTokenizer
from asr.writers import write_atomically

__all__ = [
    "KIND",
    "SETTINGS",
    "WEIGHTS",
    "CharLanguageModel",
    "LanguageModelConfig",
    "LanguageModelState",
    "check_settings",
    "language_model_summary",
    "load_language_model",
    "read_settings",
    "save_language_model",
    "write_folder",
]

FORMAT = 2  # raised when an older reader could not make sense of a newer folder
KIND = "character LSTM"  # in the settings, to tell it from other language models
WEIGHTS, SETTINGS = "language_model.safetensors", "language_model.yaml"


@dataclass(frozen=True)
class LanguageModelConfig:
    vocabulary: int = 32  # characters and special symbols; see CharTokenizer
    embedding: int = 64
    d: int = 768  # size of s and of c
    layers: int = 1
    dropout: float = 0.0  # before, between and after the LSTM's layers; little text read once needs none

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.embedding, self.d, self.layers) < 1:
            raise ValueError("vocabulary, embedding, d and layers must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout}")


@dataclass(frozen=True)
class LanguageModelState:
    """What the LSTM remembers of R rows of text: hidden states s and cells c, (layers, R, d) each."""

    s: Tensor
    c: Tensor

    def select(self, rows: Tensor) -> LanguageModelState:
        """The rows (K,), in that order and possibly repeated."""
        return LanguageModelState(self.s.index_select(1, rows), self.c.index_select(1, rows))

    def detach(self) -> LanguageModelState:
        """The same numbers, through which no gradient flows back."""
        return LanguageModelState(self.s.detach(), self.c.detach())


class CharLanguageModel(nn.Module):
    """Characters so far -> logits of the next one; also the search's `LanguageModel` (asr.decoding.scorers)."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding, config.d, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.d, config.vocabulary)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.ones_(parameter.data[config.d : 2 * config.d])  # remember at first (Jozefowicz et al. 2015)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, tokens: Tensor, state: LanguageModelState | None = None) -> tuple[Tensor, LanguageModelState]:
        """Ids (B, T) after `state` -> logits (B, T, V) of each one's successor, and the state after the last.

        Without a state the text begins here: `tokens` start with BOS.
        """
        x = self.dropout(self.embedding(tokens))  # (B, T, e)
        y, (s, c) = self.lstm(x, None if state is None else (state.s.to(x.dtype), state.c.to(x.dtype)))
        return self.output(self.dropout(y)), LanguageModelState(s, c)

    def start(self, batch: int) -> LanguageModelState:
        """The state of `batch` rows before BOS."""
        zeros = self.output.weight.new_zeros(self.config.layers, batch, self.config.d)
        return LanguageModelState(zeros, zeros)

    def step(self, tokens: Tensor, state: LanguageModelState) -> tuple[Tensor, LanguageModelState]:
        """Characters (R,) just written -> logits (R, V) of the next ones, and the new state."""
        logits, state = self(tokens[:, None], state)
        return logits[:, 0], state

    def select(self, state: LanguageModelState, rows: Tensor) -> LanguageModelState:
        """The state of these rows, in that order and possibly repeated."""
        return state.select(rows)


def save_language_model(
    folder: str | Path, model: CharLanguageModel, tokenizer: CharTokenizer, training: Mapping[str, Any]
) -> Path:
    """Write the folder, weights as fp16; each file appears complete or not at all.

    Raises:
        AsrError: the folder cannot be written.
    """
    tensors = {name: value.detach().half().cpu().contiguous() for name, value in model.state_dict().items()}
    settings = {
        "kind": KIND,
        "model": to_mapping(model.config),
        "tokenizer": {"characters": tokenizer.characters},
        "training": dict(training),
    }
    return write_folder(Path(folder), settings, save(tensors))


def write_folder(folder: Path, settings: Mapping[str, Any], tensors: bytes) -> Path:
    """Write a language model of whatever kind: its settings, and its tensors as safetensors serialised them.

    Raises:
        AsrError: the folder cannot be written.
    """
    weights = folder / WEIGHTS
    partial = weights.with_name(WEIGHTS + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(tensors)  # safetensors' own save_file would make it readable to nobody else
        partial.replace(weights)
    except OSError as error:
        raise AsrError(f"{weights}: cannot be written ({' '.join(str(error).split())})") from error
    with write_atomically(folder / SETTINGS) as file:
        yaml.safe_dump({"format": FORMAT, **settings}, file, sort_keys=False, allow_unicode=True)
    return folder


def load_language_model(
    folder: str | Path, tokenizer: CharTokenizer | None = None, device: str | torch.device = "cpu"
) -> CharLanguageModel:
    """Read a language model, in evaluation mode.

    Args:
        folder: what `save_language_model` wrote.
        tokenizer: of the recogniser that the model is to work with; None: the default characters.
        device: where the weights go, as fp32.

    Raises:
        ModelError: a file is missing or damaged, does not fit the rest, or is about other characters.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    check_settings(folder, settings, KIND, tokenizer)
    try:
        model = CharLanguageModel(from_mapping(LanguageModelConfig, settings["model"], "model"))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError, ConfigError) as error:
        raise _damaged(folder, error) from error
    try:
        model.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS}: damaged ({error}); copy the language model again") from error
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: weights do not fit {SETTINGS} ({detail})") from error
    return model.eval().to(device)


def check_settings(folder: Path, settings: Mapping[str, Any], kind: str, tokenizer: CharTokenizer | None) -> str:
    """The characters of a language model; ModelError where it is of another kind or about others than wanted."""
    if settings.get("kind") != kind:
        raise ModelError(f"{folder}: a language model of kind {settings.get('kind')!r}, not {kind!r}")
    try:
        characters = settings["tokenizer"]["characters"]
    except (KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    wanted = (tokenizer or CharTokenizer()).characters
    if characters != wanted:
        raise ModelError(f"{folder}: a language model over other characters ({characters!r}, not {wanted!r})")
    return str(characters)


def language_model_summary(folder: str | Path) -> dict[str, Any]:
    """How a language model was trained: text, steps, bits per character.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return read_settings(Path(folder)).get("training") or {}


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings file of a language model of whatever kind; ModelError where it cannot be read."""
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: no language model there: {name} is missing")
    try:
        settings = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        newer = settings["format"] > FORMAT
    except (yaml.YAMLError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise _damaged(folder, error) from error
    if newer:
        raise ModelError(f"{folder}: made by a newer version (format {settings['format']}); upgrade asr")
    return settings


def _damaged(folder: Path, error: Exception) -> ModelError:
    detail = " ".join(str(error).split())
    return ModelError(f"{folder / SETTINGS}: damaged or not a language model's settings ({detail})")

"""A model on disk: a folder with `model.safetensors` and `config.yaml`. Nothing in it is ever unpickled.

A language model may lie beside them: `language_model.safetensors` and `language_model.yaml`. It is read when it is
first asked for. `decoding:` in its YAML file holds the settings of the search that suit the two models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from asr.config import from_mapping, to_mapping
from asr.errors import ConfigError, ModelError
from asr.frontend import FrontendConfig, LogMel, Normalizer
from asr.model.int8 import for_file, from_int8
from asr.model.language_model import SETTINGS, WEIGHTS, CharLanguageModel, load_language_model, read_settings
from asr.model.las import ListenAttendSpell, ModelConfig
from asr.model.word_lm import KIND as WORD_NGRAM
from asr.model.word_lm import WordLanguageModel, load_word_lm
from asr.model.word_lstm import KIND as WORD_LSTM
from asr.model.word_lstm import load_mixed
from asr.tokenizer import CharTokenizer

__all__ = ["Bundle", "load_any_language_model", "load_bundle", "read_weights", "save_bundle"]

FORMAT = 5  # raised when an older reader could not make sense of a newer folder


@dataclass
class Bundle:
    """Everything between samples and characters, ready for use (evaluation mode)."""

    model: ListenAttendSpell
    normalizer: Normalizer
    frontend: LogMel
    tokenizer: CharTokenizer
    training: dict[str, Any] = field(default_factory=dict)  # data, steps, WER: what `asr info` shows
    path: Path | None = None
    language_model_path: Path | None = None  # a folder with a language model; by default the model's own, if it has one
    _language_model: tuple[Path, CharLanguageModel | WordLanguageModel] | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path else "unnamed"

    @property
    def device(self) -> torch.device:
        return self.normalizer.mean.device

    def to(self, device: str | torch.device) -> Bundle:
        for module in (self.model, self.normalizer, self.frontend):
            module.to(device)
        if self._language_model:
            self._language_model[1].to(device)
        return self

    @property
    def language_model(self) -> CharLanguageModel | WordLanguageModel | None:
        """The language model at `language_model_path`, on the bundle's device.

        Raises:
            ModelError: it is damaged, or about other characters.
        """
        path = self.language_model_path
        if path is None:
            return None
        if self._language_model is None or self._language_model[0] != path:
            self._language_model = path, load_any_language_model(path, self.tokenizer, self.device)
        return self._language_model[1]

    @property
    def language_model_settings(self) -> dict[str, Any]:
        """`language_model.yaml`: `kind`, `training`, `decoding` ...; empty where there is no language model.

        Raises:
            ModelError: it is damaged.
        """
        return read_settings(self.language_model_path) if self.language_model_path else {}

    @torch.no_grad()
    def encode(self, samples: Tensor) -> Tensor:
        """Samples (T,) at the model's rate -> normalised frames (T', n_mels)."""
        return self.normalizer(self.frontend(samples.to(self.device)))


def save_bundle(
    folder: str | Path,
    model: ListenAttendSpell,
    normalizer: Normalizer,
    frontend: FrontendConfig,
    tokenizer: CharTokenizer,
    training: Mapping[str, Any],
    int8: bool = False,
) -> Path:
    """Write the folder, weights as fp16; each file appears complete or not at all.

    With `int8` the matrices are in 8 bits a weight, with an fp16 scale a row, which takes half the room.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = for_file(model.state_dict(), "model.", int8)
    tensors |= {f"normalizer.{k}": v.detach().float().cpu() for k, v in normalizer.state_dict().items()}
    config = {
        "format": FORMAT,
        "model": to_mapping(model.config),
        "frontend": to_mapping(frontend),
        "tokenizer": {"characters": tokenizer.characters},
        "training": dict(training),
    }
    weights = folder / "model.safetensors.partial"
    weights.write_bytes(save(tensors))  # save_file would make it readable to nobody else
    weights.rename(folder / "model.safetensors")
    settings = folder / "config.yaml.partial"
    settings.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    settings.rename(folder / "config.yaml")
    return folder


@torch.inference_mode(False)  # what is made in that mode cannot take part in adapting
def load_bundle(folder: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Read a model folder.

    Raises:
        ModelError: the folder or a file in it is missing, damaged, or does not fit the rest.
    """
    folder = Path(folder)
    for name in ("config.yaml", "model.safetensors"):
        try:
            (folder / name).open("rb").close()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(f"{folder}: not a model folder: {name} is missing") from None
        except OSError as error:
            raise ModelError(f"{folder / name}: cannot be read ({error.strerror})") from error
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise ModelError(f"{folder}: made by a newer version (format {config['format']}); upgrade asr")
        model = ListenAttendSpell(from_mapping(ModelConfig, config["model"], "model"))
        frontend = from_mapping(FrontendConfig, config["frontend"], "frontend")
        tokenizer = CharTokenizer(config["tokenizer"]["characters"])
        if " " not in tokenizer.characters or len(tokenizer) != model.config.speller.vocabulary:
            raise ValueError(f"tokenizer.characters: a space and {model.config.speller.vocabulary - 5} others wanted")
        training = dict(config["training"])
        normalizer = Normalizer(frontend.n_mels, frontend.mean_prior / frontend.hop)
        log_mel = LogMel(frontend)
    except (  # what cannot work often shows only in what is made of it, each in its own way
        OSError, yaml.YAMLError, ConfigError,
        KeyError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError,
    ) as error:  # fmt: skip
        detail = " ".join(str(error).split())
        raise ModelError(f"{folder / 'config.yaml'}: damaged or not a model's settings ({detail})") from error
    tensors = read_weights(folder)
    try:
        for prefix, module in (("model.", model), ("normalizer.", normalizer)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: weights do not fit config.yaml ({detail})") from error
    model.eval().requires_grad_(False)  # adapting goes back through the model, but not to its weights
    model.speller.pack()
    bundle = Bundle(model, normalizer.eval(), log_mel.eval(), tokenizer, training, folder)
    if (folder / WEIGHTS).is_file() or (folder / SETTINGS).is_file():
        bundle.language_model_path = folder
    return bundle.to(device)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model folder, float32, named `model.*` and `normalizer.*` as in a training checkpoint.

    Matrices in 8 bits are what these stand for; all other weights are fp16.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.dtype == torch.int8:
                tensors[name] = from_int8(tensor, tensors["scale." + name.removeprefix("model.")])
        return {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("scale.")}
    except KeyError as error:
        raise ModelError(f"{path}: damaged (no {error.args[0]}); copy the model again") from error
    except (SafetensorError, OSError, RuntimeError) as error:  # the last: a scale of another shape
        raise ModelError(f"{path}: damaged ({error}); copy the model again") from error


def load_any_language_model(
    folder: str | Path, tokenizer: CharTokenizer | None = None, device: str | torch.device = "cpu"
) -> CharLanguageModel | WordLanguageModel:
    """Read a language model, whichever kind it is, in evaluation mode.

    Raises:
        ModelError: a file is missing or damaged, does not fit the rest, or is about other characters.
    """
    kind = read_settings(Path(folder)).get("kind")
    if kind == WORD_NGRAM:
        return load_word_lm(folder, tokenizer).to(device)
    if kind == WORD_LSTM:
        return load_mixed(folder, tokenizer).to(device)
    return load_language_model(folder, tokenizer, device)

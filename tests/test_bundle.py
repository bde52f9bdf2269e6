from unittest.mock import Mock

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asr.bundle import load_any_language_model, load_bundle, save_bundle
from asr.errors import ModelError
from asr.frontend import FrontendConfig
from asr.model.int8 import are_int8
from asr.model.language_model import CharLanguageModel, LanguageModelConfig, save_language_model
from asr.model.word_lm import WordLanguageModel, estimate, save_word_lm
from asr.tokenizer import CharTokenizer


def test_weights_come_back_as_fp16_and_the_statistics_exactly(toy_bundle):
    bundle = load_bundle(toy_bundle)
    assert bundle.name == "model"
    assert bundle.training["dev_wer"] == 0.5
    assert not bundle.model.training
    weight = bundle.model.ctc.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, weight.half().float())
    assert torch.equal(bundle.normalizer.std, torch.ones(40))
    assert sorted(p.name for p in toy_bundle.iterdir()) == ["config.yaml", "model.safetensors"]


def test_in_8_bits_the_matrices_take_half_the_room_and_come_back_nearly_alike(toy_bundle, tmp_path):
    whole = load_bundle(toy_bundle)
    folder = save_bundle(
        tmp_path / "int8", whole.model, whole.normalizer, FrontendConfig(n_mels=40), whole.tokenizer, {}, int8=True
    )
    weights = folder / "model.safetensors"
    for name, value in load_file(weights).items():
        kind = torch.float32 if name.startswith("normalizer.") else torch.float16
        assert value.dtype == (torch.int8 if value.dim() == 2 and name.startswith("model.") else kind), name
    assert weights.stat().st_size < 0.65 * (toy_bundle / "model.safetensors").stat().st_size
    small = load_bundle(folder)
    for (name, before), after in zip(whole.model.named_parameters(), small.model.parameters(), strict=True):
        if before.dim() == 2:
            assert are_int8([after]), name  # so that steps can take them as they are
            step = before.abs().amax(1, keepdim=True) / 127
            assert ((before - after).abs() <= 0.6 * step + 1e-7).all(), name
            assert not torch.equal(before, after), name
        else:
            assert torch.equal(before, after), name
    tensors = load_file(weights)
    save_file({name: value for name, value in tensors.items() if name != "scale.ctc.weight"}, weights)
    with pytest.raises(ModelError, match=r"model.safetensors: damaged \(no scale.ctc.weight\); copy the model again"):
        load_bundle(folder)
    save_file(tensors | {"scale.ctc.weight": torch.ones(2, 3)}, weights)
    with pytest.raises(ModelError, match=r"model.safetensors: damaged .*copy the model again"):
        load_bundle(folder)


def test_what_is_missing_or_damaged_is_named(toy_bundle, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"nowhere: not a model folder: config.yaml is missing"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"a/config.yaml: cannot be read \(File name too long\)"):
        load_bundle(tmp_path / ("a" * 300))
    config = yaml.safe_load((toy_bundle / "config.yaml").read_text())

    def with_config(**changes):
        (toy_bundle / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
        return toy_bundle

    with pytest.raises(ModelError, match=r"newer version \(format 99\); upgrade asr"):
        load_bundle(with_config(format=99))
    (toy_bundle / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if k != "training"}))
    with pytest.raises(ModelError, match=r"config.yaml: damaged .*'training'"):
        load_bundle(toy_bundle)
    with pytest.raises(ModelError, match=r"config.yaml: damaged .*unknown setting model.colour"):
        load_bundle(with_config(model={"colour": "red"}))
    encoder = config["model"]["encoder"] | {"layers": 3}
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_text", Mock(side_effect=OSError(5, "Input/output error")))
        with pytest.raises(ModelError, match=r"config.yaml: damaged .*Input/output error"):
            load_bundle(toy_bundle)
    with pytest.raises(ModelError, match=r"weights do not fit config.yaml .*layers.2"):
        load_bundle(with_config(model=config["model"] | {"encoder": encoder}))
    for part, wrong in (
        ("frontend", {"hop": 0}),
        ("frontend", {"hop": 0.00001}),
        ("frontend", {"hop": -0.01}),
        ("frontend", {"window": 0}),
        ("frontend", {"sample_rate": 8}),
        ("tokenizer", {"characters": "ABC"}),
        ("tokenizer", {"characters": "ABCDEFGHIJKLMNOPQRSTUVWXYZ'-"}),
        ("tokenizer", {"characters": "AA"}),
        ("tokenizer", {"characters": None}),
        ("model", {"encoder": config["model"]["encoder"] | {"layers": 0}}),
        ("model", {"encoder": config["model"]["encoder"] | {"d": -2}}),
    ):
        with pytest.raises(ModelError, match=r"config.yaml: damaged"):
            load_bundle(with_config(**{part: config[part] | wrong}))
    whole = yaml.safe_dump(config, sort_keys=False)
    for part in config:  # cut off after the name of each
        (toy_bundle / "config.yaml").write_text(whole[: whole.index(f"{part}:") + len(part) + 1])
        with pytest.raises(ModelError, match=r"config.yaml: damaged"):
            load_bundle(toy_bundle)
    (toy_bundle / "config.yaml").write_text("a: [1, 2")
    with pytest.raises(ModelError, match=r"config.yaml: damaged"):
        load_bundle(toy_bundle)
    with_config()
    weights = toy_bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model.safetensors: damaged .*copy the model again"):
        load_bundle(toy_bundle)
    weights.unlink()
    with pytest.raises(ModelError, match=r"model.safetensors is missing"):
        load_bundle(toy_bundle)


def test_a_pickle_in_place_of_the_weights_is_not_loaded(toy_bundle):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    torch.save(Trap(), toy_bundle / "model.safetensors")
    with pytest.raises(ModelError, match="damaged"):
        load_bundle(toy_bundle)


def test_a_language_model_beside_the_weights(toy_bundle):
    assert load_bundle(toy_bundle).language_model is None
    assert load_bundle(toy_bundle).language_model_settings == {}
    model = CharLanguageModel(LanguageModelConfig(embedding=4, d=8))
    save_language_model(toy_bundle, model, CharTokenizer(), {"words": 5})
    bundle = load_bundle(toy_bundle)
    found = bundle.language_model
    assert isinstance(found, CharLanguageModel)
    assert bundle.language_model is found  # read once
    assert torch.equal(found.output.weight, model.output.weight.half().float())
    assert bundle.language_model_settings["training"] == {"words": 5}


def test_a_word_model_beside_the_weights_or_elsewhere(toy_bundle, tmp_path):
    save_word_lm(tmp_path / "lm", estimate(["ABLE BIRD", "ABLE BIRD CAVE"]), {"words": 5})
    assert isinstance(load_any_language_model(tmp_path / "lm"), WordLanguageModel)
    bundle = load_bundle(toy_bundle)
    bundle.language_model_path = tmp_path / "lm"
    assert isinstance(bundle.language_model, WordLanguageModel)
    assert bundle.language_model.words == ["ABLE", "BIRD"]


def test_a_damaged_language_model_harms_only_those_who_want_it(toy_bundle):
    save_word_lm(toy_bundle, estimate(["ABLE BIRD", "ABLE BIRD CAVE"]), {})
    weights = toy_bundle / "language_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    bundle = load_bundle(toy_bundle)
    with pytest.raises(ModelError, match=r"language_model.safetensors: damaged"):
        _ = bundle.language_model
    weights.unlink()
    with pytest.raises(ModelError, match=r"language_model.safetensors is missing"):
        _ = load_bundle(toy_bundle).language_model


def test_a_folder_is_readable_to_whom_other_files_are(toy_bundle, tmp_path):
    (tmp_path / "other").write_text("")
    expected = (tmp_path / "other").stat().st_mode
    assert {path.name: path.stat().st_mode for path in toy_bundle.iterdir()} == {
        path.name: expected for path in toy_bundle.iterdir()
    }

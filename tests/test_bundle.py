import pytest
import torch
import yaml

from asr.bundle import load_bundle
from asr.errors import ModelError


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


def test_what_is_missing_or_damaged_is_named(toy_bundle, tmp_path):
    with pytest.raises(ModelError, match=r"nowhere: not a model folder: config.yaml is missing"):
        load_bundle(tmp_path / "nowhere")
    config = yaml.safe_load((toy_bundle / "config.yaml").read_text())

    def with_config(**changes):
        (toy_bundle / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
        return toy_bundle

    with pytest.raises(ModelError, match=r"newer version \(format 99\); upgrade asr"):
        load_bundle(with_config(format=99))
    with pytest.raises(ModelError, match=r"config.yaml: damaged .*unknown setting model.colour"):
        load_bundle(with_config(model={"colour": "red"}))
    encoder = config["model"]["encoder"] | {"layers": 3}
    with pytest.raises(ModelError, match=r"weights do not fit config.yaml .*layers.2"):
        load_bundle(with_config(model=config["model"] | {"encoder": encoder}))
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

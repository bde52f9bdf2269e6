import pytest

from asr.config import from_mapping, to_mapping
from asr.errors import ConfigError
from asr.model import EncoderConfig, ModelConfig, SpellerConfig


def test_round_trip():
    config = ModelConfig(EncoderConfig(d=64, join_before=(1,)), SpellerConfig(d=64, context="cho"))
    plain = to_mapping(config)
    assert plain["encoder"]["join_before"] == [1]
    assert from_mapping(ModelConfig, plain) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder": {"deep": 1}}, r"unknown setting model.encoder.deep; there are: d, dropout"),
        ({"encoder": {"d": "big"}}, r"model.encoder.d should be int, not 'big'"),
        ({"encoder": {"d": True}}, r"model.encoder.d should be int, not True"),
        ({"encoder": {"dropout": True}}, r"model.encoder.dropout should be float, not True"),
        ({"encoder": {"d": 64}}, r"model: one d for h and s"),
        ({"speller": {"context": "none"}}, r"model.speller: context must be one of"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(ModelConfig, values, "model")


def test_whole_numbers_serve_as_floats():
    assert from_mapping(EncoderConfig, {"dropout": 0}).dropout == 0.0

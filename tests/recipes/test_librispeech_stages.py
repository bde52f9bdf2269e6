"""The stages of recipes/librispeech/run.sh: each can start from the model of the one before."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from asr.config import from_mapping
from asr.model import ModelConfig
from asr.training.module import LasModule, TrainingConfig

ROOT = Path(__file__).parents[2]


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        found = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    assert isinstance(found, dict)
    return found


def test_the_second_stage_has_the_model_of_the_first_and_more_residual_layers():
    first, further = (
        from_mapping(ModelConfig, settings(f"experiment={name}")["model"], "model")
        for name in ("compact", "compact_further")
    )
    added = further.encoder.residual
    assert added > 0
    assert further == replace(
        first, encoder=replace(first.encoder, layers=first.encoder.layers + added, residual=added)
    )


def test_the_third_stage_has_the_model_of_the_second_and_positions_and_a_reader():
    further, spoken = (
        from_mapping(ModelConfig, settings(f"experiment={name}")["model"], "model")
        for name in ("compact_further", "compact_spoken")
    )
    positions, reader = spoken.speller.positions, spoken.speller.reader
    assert positions > 0
    assert spoken == replace(further, speller=replace(further.speller, positions=positions, reader=reader))
    assert f"model.d={reader} " in (ROOT / "recipes/librispeech/run.sh").read_text()


def test_the_stage_on_recorded_speech_has_the_model_of_the_third():
    spoken, recorded = (settings(f"experiment={name}") for name in ("compact_spoken", "compact_recorded"))
    assert recorded["model"] == spoken["model"]
    assert recorded["training"]["learning_rate"] < spoken["training"]["learning_rate"]


def stages_of_run_sh() -> list[tuple[str, list[str]]]:
    """Experiment and settings of training of each stage of run.sh."""
    script = (ROOT / "recipes/librispeech/run.sh").read_text().replace("\\\n", " ")
    lines = re.findall(r"^ +stage (\w+) \d+ (.+)$", script, re.MULTILINE)
    return [(name, re.findall(r"(?:training|trainer|model)\.[\w.]+=[\w.-]+", rest)) for name, rest in lines]


def test_the_stages_of_run_sh_begin_with_ctc_alone_and_end_with_the_speller():
    stages = stages_of_run_sh()
    assert [name for name, _ in stages] == ["compact", "compact_further", "compact_spoken"]
    for number, (name, overrides) in enumerate(stages):
        found = settings(f"experiment={name}", *overrides)
        training = from_mapping(TrainingConfig, found["training"], "training")
        epochs = found["trainer"]["max_epochs"]
        assert epochs % found["trainer"]["validate_every"] == 0
        if number == 0:
            assert training.ctc_only_epochs == epochs
        else:  # the first of these with a speller leads it along the diagonal while it still spells nothing
            assert training.ctc_only_epochs < epochs
            assert (training.guided_attention > 0) == (number == 1)


def test_the_stages_of_run_sh_tell_phones_at_a_layer_that_there_is():
    shares = []
    for name, overrides in stages_of_run_sh():
        found = settings(f"experiment={name}", *overrides)
        module = LasModule.from_settings(found)
        shares.append(module.settings.phones)
        assert (module.phones is not None) == (shares[-1] > 0)
    assert shares[0] > 0
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("name", ["compact", "compact_further", "compact_spoken", "compact_recorded"])
def test_a_stage_trains_the_speller_and_validates_its_last_epoch(name):
    found = settings(f"experiment={name}")
    from_mapping(TrainingConfig, found["training"], "training")
    assert found["trainer"]["max_epochs"] % found["trainer"]["validate_every"] == 0
    assert found["training"]["ctc_only_epochs"] < found["trainer"]["max_epochs"]

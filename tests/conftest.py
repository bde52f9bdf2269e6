"""Fixtures: nothing here needs a network, a GPU or recorded speech."""

import numpy as np
import pytest
import torch
from toy_speech import speak


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Small tensors everywhere: more threads only wait for each other.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _toy_voices_are_speech(request, monkeypatch):
    """The toy speech is tones, which the voice activity detector rightly rejects; `real_vad` keeps the detector."""
    from asr.segmenter import Loudness

    class AnySound(Loudness):
        sample_rate = 16_000

        def __init__(self):
            super().__init__(self.sample_rate)

    if "real_vad" not in request.fixturenames:
        monkeypatch.setattr("asr.transcriber.SileroVad", AnySound)


@pytest.fixture
def real_vad():
    """For tests with the voice activity detector that ships."""


WORDS = ["ABLE", "BIRD", "CAVE", "DUNE", "ECHO", "FISH", "GOLD", "HAND"]


@pytest.fixture(scope="session")
def toy_corpus(tmp_path_factory):
    """Manifests of toy speech: `train-toy` (24 utterances, 2 speakers) and `dev-toy` (6, another speaker)."""
    import soundfile

    from asr.corpus import librispeech

    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(1)
    for subset, speaker, count in (("train-toy", 1, 12), ("train-toy", 2, 12), ("dev-toy", 3, 6)):
        folder = root / subset / str(speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            text = " ".join(rng.choice(WORDS, size=rng.integers(1, 4)))
            name = f"{speaker}-1-{i:04d}"
            soundfile.write(folder / f"{name}.flac", speak(text, seed=i), 16000)
            lines.append(f"{name} {text}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    librispeech.prepare(root, ["train-toy", "dev-toy"], root / "manifests")
    return root


@pytest.fixture
def toy_settings(toy_corpus, tmp_path):
    """What Hydra would hand to `asr.training.run.train` for a run of seconds."""
    return {
        "output": str(tmp_path / "run"),
        "resume": "auto",
        "frontend": {"sample_rate": 16000, "n_mels": 40, "window": 0.025, "hop": 0.01},
        "model": {
            "encoder": {"n_mels": 40, "d": 32, "layers": 2, "join_before": [0, 1], "dropout": 0.1, "layer_norm": True},
            "speller": {"d": 32, "embedding": 16, "hops": 2, "dropout": 0.1},
        },
        "training": {"learning_rate": 3e-3, "warmup_steps": 10, "ctc_weight": 0.4},
        "corpus": {
            "manifests": str(toy_corpus / "manifests"),
            "train": ["train-toy"],
            "dev": ["dev-toy"],
            "cache": True,
            "cache_dir": str(tmp_path / "cache"),
            "speeds": [0.9, 1.0, 1.1],
            "batch_seconds": 4.0,
            "max_duration": 20.0,
            "ascending_epochs": 1,
        },
        "trainer": {
            "max_epochs": 2,
            "max_steps": -1,
            "validate_every": 1,
            "checkpoint_minutes": 5.0,
            "early_stop_epochs": 0,
            "average_decay": 0.9,
            "accumulate": 1,
            "precision": "32-true",
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "threads": 1,
            "deterministic": True,
            "progress": False,
            "plots": 1,
            "log_every": 1,
        },
    }


@pytest.fixture
def toy_bundle(tmp_path):
    """A model folder with random weights."""
    from asr.bundle import save_bundle
    from asr.frontend import FrontendConfig, Normalizer
    from asr.model import EncoderConfig, ListenAttendSpell, ModelConfig, SpellerConfig
    from asr.tokenizer import CharTokenizer

    model = ListenAttendSpell(
        ModelConfig(EncoderConfig(n_mels=40, d=32, layers=2), SpellerConfig(d=32, embedding=16))
    ).eval()
    summary = {"corpora": ["train-toy"], "hours": 0.01, "dev": ["dev-toy"], "dev_wer": 0.5}
    return save_bundle(tmp_path / "model", model, Normalizer(40), FrontendConfig(n_mels=40), CharTokenizer(), summary)

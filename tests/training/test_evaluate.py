"""What is decoded, and how it is heard."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.bundle import load_bundle
from asr.corpus.augment import AugmentConfig, augment_utterance
from asr.corpus.dataset import load_cuts
from asr.decoding.beam_search import PRESETS
from asr.errors import ConfigError, CorpusError
from asr.training.evaluate import batches, check_audio, decode, pick_evenly
from asr.transcriber import Transcriber


def test_utterances_are_picked_at_equal_steps():
    assert pick_evenly(range(10), 2) == [2, 7]
    assert pick_evenly(range(10), 4) == [1, 3, 6, 8]
    for all_of_them in (0, 10, 11):
        assert pick_evenly(range(10), all_of_them) == range(10)


def test_what_is_heard_can_be_changed(toy_corpus, toy_bundle, tmp_path):
    soundfile.write(tmp_path / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    cuts = sorted(load_cuts(toy_corpus / "manifests", ["dev-toy"]), key=lambda c: c.duration)
    bundle = load_bundle(toy_bundle)
    config = AugmentConfig(rooms=0, noise=1, telephone=0, mp3=0, gain=(0, 0), snr=(10, 10))
    change = partial(augment_utterance, noises=[tmp_path / "hiss.wav"], config=config)
    heard = [frames for _, group in batches(cuts, bundle, 4.0, change) for frames in group]
    plain = [frames for _, group in batches(cuts, bundle, 4.0) for frames in group]
    assert len(heard) == len(plain) == len(cuts)
    for cut, noisy, recorded in zip(cuts, heard, plain, strict=True):
        samples = cut.load_audio()[0]
        changed = change(cut.id, samples)  # the same once more: it depends on the id and the seed alone
        added = np.linalg.norm(samples) / np.linalg.norm(changed - samples)
        assert 20 * np.log10(added) == pytest.approx(10, abs=0.5)
        torch.testing.assert_close(noisy, bundle.encode(torch.from_numpy(changed)))
        assert not torch.allclose(noisy, recorded)


def test_audio_that_is_not_there_or_damaged_is_named(toy_corpus, toy_bundle, tmp_path):
    cuts = sorted(load_cuts(toy_corpus / "manifests", ["dev-toy"]), key=lambda c: c.duration)
    bundle, source = load_bundle(toy_bundle), cuts[-1].recording.sources[0]
    whole, source.source = source.source, str(tmp_path / "x.flac")
    with pytest.raises(CorpusError, match=r"x.flac: not there; put it back, or run prepare.py again"):
        check_audio(cuts)
    (tmp_path / "x.flac").write_bytes(Path(whole).read_bytes()[:100])
    with pytest.raises(CorpusError, match=r"x.flac: cannot be read \(.*\); run prepare.py again"):
        check_audio(cuts)
    with pytest.raises(CorpusError, match=r"x.flac: cannot be read"):
        list(batches(cuts, bundle, 4.0))


def test_each_speaker_is_a_voice(toy_corpus, toy_bundle, tmp_path, monkeypatch):
    heard = []

    def adapting(self, groups, on_progress):
        heard.append(sum(map(len, groups)))
        on_progress(1.0)
        return adapt(self, groups, on_progress)

    adapt = Transcriber.adapt
    monkeypatch.setattr(Transcriber, "adapt", adapting)
    settings = {
        "model_dir": str(toy_bundle),
        "device": "cpu",
        "threads": None,
        "batch_seconds": 4.0,
        "corpus": {"manifests": str(toy_corpus / "manifests"), "decode": ["train-toy", "dev-toy"]},
        "decoding": asdict(PRESETS["greedy_ctc"]),
    }
    texts = {}
    for name, wanted in (("once", {}), ("off", {"adapt": False}), ("twice", {"adapt": True})):
        decode({**settings, **wanted, "output": str(tmp_path / name)})
        lines = map(json.loads, (tmp_path / name / "nbest.jsonl").read_text().splitlines())
        texts[name] = {line["id"]: line["hypotheses"][0]["score"] for line in lines}
    assert sorted(heard) == [6, 12, 12]
    assert texts["once"] == texts["off"]
    assert texts["once"].keys() == texts["twice"].keys()
    assert texts["once"] != texts["twice"]
    with pytest.raises(ConfigError, match=r"x: cannot write there \(Not a directory\); choose another output="):
        decode({**settings, "output": f"{__file__}/x"})

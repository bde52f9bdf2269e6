"""What is decoded, and how it is heard."""

from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from asr.bundle import load_bundle
from asr.corpus.augment import AugmentConfig, augment_utterance
from asr.corpus.dataset import load_cuts
from asr.training.evaluate import batches, pick_evenly


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

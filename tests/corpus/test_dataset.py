import copy
import gzip
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch

from asr.corpus.dataset import (
    BatchLoader,
    FeatureCache,
    FrameSource,
    JoinedCaches,
    Portion,
    SpeechDataset,
    load_cuts,
    plan_epoch,
    split_trainable,
)
from asr.errors import CorpusError
from asr.frontend import FrontendConfig, LogMel, Normalizer
from asr.tokenizer import CharTokenizer

SPEEDS = (0.9, 1.0, 1.1)


@pytest.fixture(scope="session")
def cuts(toy_corpus):
    return load_cuts(toy_corpus / "manifests", ["train-toy"])


@pytest.fixture(scope="session")
def cache(cuts, tmp_path_factory):
    return FeatureCache.open(tmp_path_factory.mktemp("cache"), cuts, SPEEDS, FrontendConfig(n_mels=40), workers=0)


def test_manifests_that_are_missing_or_damaged_are_named(toy_corpus, tmp_path):
    with pytest.raises(CorpusError, match=r"cuts_other.jsonl.gz: no such manifest; run prepare.py first"):
        load_cuts(toy_corpus / "manifests", ["other"])
    (tmp_path / "cuts_bad.jsonl.gz").write_bytes(b"not gzip")
    whole = (toy_corpus / "manifests" / "cuts_train-toy.jsonl.gz").read_bytes()
    bad = tmp_path / "cuts_bad.jsonl.gz"
    for content in (
        b"not gzip",
        whole[: len(whole) // 2],
        gzip.compress(gzip.decompress(whole)[:-40]),
        gzip.compress(b'{"id": "1", "text": "no cut"}\n'),
        gzip.compress(b"[1, 2]\n"),
    ):
        bad.write_bytes(content)
        with pytest.raises(CorpusError, match=r"cuts_bad.jsonl.gz: not a readable cut manifest .* run prepare.py") as e:
            load_cuts(tmp_path, ["bad"])
        assert "\n" not in str(e.value)


def test_audio_that_is_gone_is_named_by_a_worker_too(cuts, tmp_path):
    gone = tmp_path / "gone.flac"
    moved = copy.deepcopy(cuts[0])
    moved.recording.sources[0].source = str(gone)
    for workers in (0, 1):
        with pytest.raises(CorpusError, match=rf"^{gone}: cannot be read \(.*; run prepare.py again$"):
            FeatureCache.open(tmp_path, [moved], (1.0,), FrontendConfig(n_mels=40), workers=workers)


def test_what_cannot_be_trained_on_is_dropped_with_its_reason(cuts):
    tokenizer = CharTokenizer()
    kept, dropped = split_trainable(cuts, tokenizer, reduction=4, max_duration=20.0)
    assert len(kept) == 24
    assert dropped == []
    # 80 ms a character: at N = T / 16 there are fewer encoder states than characters.
    kept, dropped = split_trainable(cuts, tokenizer, reduction=16, max_duration=20.0)
    assert len(kept) + len(dropped) == 24
    assert dropped
    assert "characters for CTC, but only" in dropped[0][1]
    assert split_trainable(cuts, tokenizer, 4, 20.0, hop=0.04) == (kept, dropped)  # as many states a second
    longest = max(cuts, key=lambda cut: cut.duration)
    kept, dropped = split_trainable(cuts, tokenizer, 4, longest.duration - 0.01)
    assert (longest.id, f"longer than {longest.duration - 0.01:g} s: {longest.duration:.1f} s") in dropped


def test_a_plan_holds_every_cut_once_and_depends_on_seed_and_epoch_alone(cuts):
    def plan(epoch=0, seed=1, **options):
        return plan_epoch([Portion(cuts, SPEEDS)], epoch=epoch, seed=seed, batch_seconds=5.0, **options)

    assert plan() == plan()
    assert plan() != plan(epoch=1)
    assert plan() != plan(seed=2)
    durations = {cut.id: cut.duration for cut in cuts}
    for epoch in range(3):
        batches = plan(epoch)
        ids = [cut_id for batch in batches for cut_id, _ in batch]
        assert sorted(ids) == sorted(durations)
        assert all(sum(durations[i] / speed for i, speed in batch) <= 5.0 for batch in batches)
    speeds = {speed for epoch in range(3) for batch in plan(epoch) for _, speed in batch}
    assert speeds == set(SPEEDS)


def test_ascending_and_longest_first(cuts):
    durations = {cut.id: cut.duration for cut in cuts}

    def longest(batch):
        return max(durations[i] / speed for i, speed in batch)

    ascending = plan_epoch([Portion(cuts)], epoch=0, seed=1, batch_seconds=5.0, ascending=True)
    assert [longest(b) for b in ascending] == sorted(longest(b) for b in ascending)
    first = plan_epoch([Portion(cuts)], epoch=0, seed=1, batch_seconds=5.0, longest_first=True)
    assert longest(first[0]) * len(first[0]) == max(longest(b) * len(b) for b in first)
    both = plan_epoch([Portion(cuts)], epoch=0, seed=1, batch_seconds=5.0, ascending=True, longest_first=True)
    assert longest(both[0]) * len(both[0]) == max(longest(b) * len(b) for b in both)
    assert [longest(b) for b in both[1:]] == sorted(longest(b) for b in both[1:])


def test_batches_of_like_length_stand_together_in_random_order(cuts):
    durations = {cut.id: cut.duration for cut in cuts}
    plan = plan_epoch([Portion(cuts)], epoch=0, seed=1, batch_seconds=1.0)
    longest = [max(durations[i] / speed for i, speed in batch) for batch in plan]
    assert len(plan) == 24
    fours = [longest[i : i + 4] for i in range(0, 24, 4)]
    # No other batch's longest lies between those of a four.
    assert [duration for four in sorted(fours) for duration in four] == sorted(longest)
    assert fours != sorted(fours)


def test_a_portion_gives_its_share_anew_each_epoch_and_is_mixed_with_the_others(cuts):
    def copies(name, count):
        return [cut.with_id(f"{name}-{cut.id}-{i}") for i in range(count) for cut in cuts]

    real, synthetic = copies("real", 10), copies("synthetic", 50)
    portions = [Portion(real, SPEEDS), Portion(synthetic, share=0.2)]

    def plan(epoch):
        return plan_epoch(portions, epoch=epoch, seed=1, batch_seconds=20.0)

    assert plan(3) == plan(3)
    parts = []
    for epoch in range(2):
        keys = [key for batch in plan(epoch) for key in batch]
        assert sorted(i for i, _ in keys if i.startswith("real")) == sorted(cut.id for cut in real)
        drawn = {i for i, _ in keys if i.startswith("synthetic")}
        assert len(drawn) == len(keys) - len(real) == round(0.2 * len(synthetic))
        assert {speed for i, speed in keys if i in drawn} == {1.0}
        parts.append(drawn)
    assert 0.1 < len(parts[0] & parts[1]) / len(parts[0]) < 0.35  # a fifth again by chance
    alike = plan_epoch([Portion(real), portions[1]], epoch=0, seed=1, batch_seconds=20.0)  # in their durations
    assert all(len({i.split("-")[0] for i, _ in batch}) == 2 for batch in alike if len(batch) > 6)


def test_joined_caches_give_what_each_of_them_holds(cuts, cache, tmp_path):
    renamed = [cut.with_id(f"x-{cut.id}") for cut in cuts[:3]]
    other = FeatureCache.open(tmp_path, renamed, (1.0,), FrontendConfig(n_mels=40), workers=0)
    joined = JoinedCaches([cache, other])
    for key in ((cuts[5].id, 1.1), (cuts[0].id, 1.0)):
        np.testing.assert_array_equal(joined.frames(key), cache.frames(key))
    np.testing.assert_array_equal(joined.frames((f"x-{cuts[0].id}", 1.0)), cache.frames((cuts[0].id, 1.0)))
    alone, together = Normalizer(40), Normalizer(40)
    cache.fit_normalizer(alone, [cut.id for cut in cuts[:3]])
    joined.fit_normalizer(together, [f"x-{cut.id}" for cut in cuts[:3]])
    assert torch.equal(alone.mean, together.mean)
    assert torch.equal(alone.std, together.std)


def test_buckets_waste_little_on_padding(cuts):
    many = [cut.with_id(f"{cut.id}-{i}") for i in range(20) for cut in cuts]
    durations = {cut.id: cut.duration for cut in many}
    batches = plan_epoch([Portion(many, SPEEDS)], epoch=0, seed=1, batch_seconds=20.0)
    real = sum(durations[i] / speed for batch in batches for i, speed in batch)
    padded = sum(len(batch) * max(durations[i] / speed for i, speed in batch) for batch in batches)
    assert 1 - real / padded < 0.08


def test_cached_frames_are_those_of_the_audio_at_every_speed(cuts, cache):
    log_mel = LogMel(FrontendConfig(n_mels=40))
    for cut in cuts[:3]:
        expected = log_mel(torch.from_numpy(cut.load_audio()[0])).numpy()
        np.testing.assert_allclose(cache.frames((cut.id, 1.0)), expected, atol=0.01)
        slow, fast = (len(cache.frames((cut.id, speed))) for speed in (0.9, 1.1))
        assert slow == pytest.approx(len(expected) / 0.9, abs=2)
        assert fast == pytest.approx(len(expected) / 1.1, abs=2)


def test_a_cache_is_filled_once_and_never_mistaken_for_another(cuts, cache):
    folder = cache.folder.parent
    stamp = (cache.folder / "features.f16").stat().st_mtime_ns
    again = FeatureCache.open(folder, cuts, SPEEDS, FrontendConfig(n_mels=40), workers=0)
    assert again.folder == cache.folder
    assert (again.folder / "features.f16").stat().st_mtime_ns == stamp
    other = FeatureCache.open(folder, cuts[:2], (1.0,), FrontendConfig(n_mels=20), workers=0)
    assert other.folder != cache.folder
    assert other.frames((cuts[0].id, 1.0)).shape[1] == 20
    later = [cuts[0].truncate(offset=0.1, duration=0.5, preserve_id=True)]
    sooner = [cuts[0].truncate(duration=0.5, preserve_id=True)]
    a, b = (FeatureCache.open(folder, part, (1.0,), FrontendConfig(n_mels=20), workers=0) for part in (sooner, later))
    assert not np.array_equal(a.frames((cuts[0].id, 1.0)), b.frames((cuts[0].id, 1.0)))


@pytest.fixture
def copied(cuts, tmp_path):
    """Three cuts with audio of their own, and a function that opens a cache of them."""
    own = copy.deepcopy(cuts[:3])
    for cut in own:
        source = cut.recording.sources[0]
        source.source = shutil.copy(source.source, tmp_path)
    return own, partial(FeatureCache.open, tmp_path / "cache", own, SPEEDS, FrontendConfig(n_mels=20), workers=0)


def test_other_audio_under_the_same_name_is_not_taken_for_what_was_there(copied):
    cuts, fill = copied
    before = fill().frames((cuts[1].id, 1.0)).copy()
    path = cuts[1].recording.sources[0].source
    soundfile.write(path, soundfile.read(path)[0][::-1], 16000)  # as long as before
    cache = fill()
    after = cache.frames((cuts[1].id, 1.0))
    assert after.shape == before.shape
    assert not np.array_equal(after, before)
    assert [p.name for p in cache.folder.parent.iterdir()] == [cache.folder.name]  # in place of the old
    os.unlink(path)  # features may be kept without audio
    np.testing.assert_array_equal(fill().frames((cuts[1].id, 1.0)), after)


@pytest.mark.parametrize("damage", ["features cut off", "features gone", "index empty", "index of other things"])
def test_a_damaged_cache_is_filled_again(copied, damage):
    _, fill = copied
    cache = fill()
    expected = {key: cache.frames(key).copy() for key in cache.index}
    features, index = cache.folder / "features.f16", cache.folder / "index.json"
    if damage == "features cut off":
        os.truncate(features, features.stat().st_size // 2)
    elif damage == "features gone":
        features.unlink()
    else:
        index.write_text("" if damage == "index empty" else "[1, 2]")
    again = fill()
    assert again.index.keys() == expected.keys()
    for key, frames in expected.items():
        np.testing.assert_array_equal(again.frames(key), frames)


def test_a_cache_that_was_not_finished_goes_on_where_it_was(copied, monkeypatch):
    cuts, fill = copied
    compute, computed = FrameSource.frames, []

    def interrupted(self, key):
        computed.append(key)
        if len(computed) == 6:
            raise KeyboardInterrupt
        return compute(self, key)

    monkeypatch.setattr(FrameSource, "frames", interrupted)
    everything = FeatureCache.missing_bytes("/nowhere", cuts, SPEEDS, FrontendConfig(n_mels=20))
    with pytest.raises(KeyboardInterrupt):
        fill()
    (folder,) = Path(cuts[0].recording.sources[0].source).parent.glob("cache/*")
    with open(folder / "features.f16.partial", "ab") as file:
        file.write(b"half an utterance")
    left = FeatureCache.missing_bytes(folder.parent, cuts, SPEEDS, FrontendConfig(n_mels=20))
    assert 0 < left < 0.6 * everything
    cache = fill()
    assert len(computed) == 6 + 9 - 5
    assert sorted(p.name for p in cache.folder.iterdir()) == ["features.f16", "index.json", "lock"]
    monkeypatch.undo()
    fresh = FeatureCache.open(folder.parent / "other", cuts, SPEEDS, FrontendConfig(n_mels=20), workers=0)
    for key in fresh.index:
        np.testing.assert_array_equal(cache.frames(key), fresh.frames(key))


def test_a_cache_that_is_there_needs_no_permission_to_write(copied, monkeypatch):
    _, fill = copied
    fill()
    monkeypatch.setattr("asr.corpus.dataset.FileLock", Mock(side_effect=PermissionError))
    assert len(fill().index) == 9


def test_without_a_cache_too_a_worker_names_in_one_line_what_it_cannot_read(copied):
    cuts, _ = copied
    os.truncate(cuts[0].recording.sources[0].source, 100)
    dataset = SpeechDataset(cuts, CharTokenizer(), frontend=FrontendConfig(n_mels=40))
    with pytest.raises(CorpusError, match=r"^.*: cannot be read \(.*\); run prepare.py again$") as error:
        list(BatchLoader(dataset, [[(cuts[0].id, 1.0)]], num_workers=1))
    assert "\n" not in str(error.value)


def test_normalizer_is_global_over_all_training_frames(cuts, cache):
    normalizer = Normalizer(40)
    ids = [cut.id for cut in cuts]
    cache.fit_normalizer(normalizer, ids)
    everything = np.concatenate([cache.frames((i, 1.0)) for i in ids]).astype(np.float64)
    np.testing.assert_allclose(normalizer.mean.numpy(), everything.mean(0), rtol=1e-4)
    np.testing.assert_allclose(normalizer.std.numpy(), everything.std(0), rtol=1e-4)


def test_a_batch_is_padded_with_zeros_and_framed_by_bos_and_eos(cuts, cache):
    tokenizer = CharTokenizer()
    keys = [(cut.id, 1.0) for cut in sorted(cuts, key=lambda c: -c.duration)[:5:2]]
    batch = SpeechDataset(cuts, tokenizer, cache)[keys]
    assert batch.ids == [i for i, _ in keys]
    assert batch.frames.shape == (3, int(batch.lengths.max()), 40)
    for row in range(3):
        length, count = int(batch.lengths[row]), int(batch.character_lengths[row])
        np.testing.assert_array_equal(batch.frames[row, :length].numpy(), cache.frames(keys[row]).astype(np.float32))
        assert (batch.frames[row, length:] == 0).all()
        expected = [tokenizer.bos_id, *tokenizer.encode(batch.texts[row]), tokenizer.eos_id]
        assert batch.characters[row, : count + 2].tolist() == expected
        assert (batch.characters[row, count + 2 :] == 0).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_cache_the_batches_are_the_same(cuts, cache, workers):
    plan = plan_epoch([Portion(cuts, SPEEDS)], epoch=0, seed=1, batch_seconds=5.0)
    frontend, tokenizer = FrontendConfig(n_mels=40), CharTokenizer()
    cached = BatchLoader(SpeechDataset(cuts, tokenizer, cache), plan)
    fresh = BatchLoader(SpeechDataset(cuts, tokenizer, frontend=frontend), plan, num_workers=workers)
    for a, b in zip(cached, fresh, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.lengths, b.lengths)
        assert torch.equal(a.characters, b.characters)
        torch.testing.assert_close(a.frames, b.frames, atol=0.01, rtol=0)
    with_cache, without = Normalizer(40), Normalizer(40)
    cache.fit_normalizer(with_cache, [cut.id for cut in cuts])
    FrameSource(cuts, [(cut.id, 1.0) for cut in cuts], frontend).fit_normalizer(without, workers)
    torch.testing.assert_close(with_cache.mean, without.mean)
    torch.testing.assert_close(with_cache.std, without.std)


def test_the_size_of_a_cache_is_known_before(cuts, cache):
    frontend = FrontendConfig(n_mels=40)
    assert FeatureCache.missing_bytes(cache.folder.parent, cuts, SPEEDS, frontend) == 0
    expected = FeatureCache.missing_bytes("/nowhere", cuts, SPEEDS, frontend)
    assert (cache.folder / "features.f16").stat().st_size == pytest.approx(expected, rel=0.02)


def test_a_loader_goes_on_where_its_state_says(cuts, cache):
    plan = plan_epoch([Portion(cuts)], epoch=0, seed=1, batch_seconds=5.0)
    dataset = SpeechDataset(cuts, CharTokenizer(), cache)
    whole = [batch.ids for batch in BatchLoader(dataset, plan)]
    assert whole == [[i for i, _ in batch] for batch in plan]
    loader = BatchLoader(dataset, plan)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    resumed = BatchLoader(dataset, plan)
    resumed.load_state_dict(state)
    assert len(resumed) == len(plan)
    assert [batch.ids for batch in resumed] == whole[2:]
    assert [batch.ids for batch in resumed] == whole  # the next epoch starts at its beginning


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_a_plan_without_overlap_and_take_equally_many_batches(cuts, cache, world_size):
    plan = plan_epoch([Portion(cuts)], epoch=0, seed=1, batch_seconds=5.0)
    dataset = SpeechDataset(cuts, CharTokenizer(), cache)
    shares = [BatchLoader(dataset, plan, rank, world_size).plan for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    seen = Counter(tuple(batch) for share in shares for batch in share)
    assert set(seen) == {tuple(batch) for batch in plan}
    assert sum(seen.values()) - len(plan) < world_size  # what is repeated only fills up the last round


def test_of_a_few_batches_every_process_has_one(cuts, cache):
    dataset = SpeechDataset(cuts, CharTokenizer(), cache)
    plans = [BatchLoader(dataset, [[(0, 1.0)], [(1, 1.0)]], rank, 5).plan for rank in range(5)]
    assert [[key for ((key, _),) in plan] for plan in plans] == [[0], [1], [0], [1], [0]]

import librosa
import numpy as np
import pytest
import torch

from asr.frontend import LOG_FLOOR, FrontendConfig, LogMel, Normalizer, SpecAugment, SpecAugmentConfig, warp_bands


def test_log_mel_is_librosas():
    samples = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    expected = librosa.feature.melspectrogram(
        y=samples, sr=16000, n_fft=512, win_length=400, hop_length=160, n_mels=80, pad_mode="constant"
    )
    ours = LogMel()(torch.from_numpy(samples))
    assert ours.shape == (101, 80)
    np.testing.assert_allclose(ours.numpy(), np.log(expected + LOG_FLOOR).T, atol=2e-3)


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 16000])
def test_number_of_frames(samples):
    log_mel = LogMel()
    assert len(log_mel(torch.zeros(samples))) == log_mel.num_frames(samples) == samples // 160 + 1


def test_digital_silence_is_finite_and_a_batch_equals_its_rows():
    log_mel = LogMel(FrontendConfig(n_mels=40))
    silence = log_mel(torch.zeros(800))
    torch.testing.assert_close(silence, torch.full_like(silence, np.log(LOG_FLOOR)))
    rows = torch.randn(2, 3200)
    torch.testing.assert_close(log_mel(rows)[1], log_mel(rows[1]))


def test_normalizer_gives_zero_mean_and_unit_variance_over_all_frames():
    frames = torch.randn(500, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5.0
    normalizer = Normalizer(4)
    normalizer.set_statistics(500, frames.double().sum(0), (frames.double() ** 2).sum(0))
    out = normalizer(frames)
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(4), atol=1e-5, rtol=0)
    assert set(normalizer.state_dict()) == {"mean", "std"}  # saved with the model


def test_spec_augment_only_in_training_and_never_in_place():
    frames, lengths = torch.randn(2, 50, 80), torch.tensor([50, 30])
    augment = SpecAugment()
    before = frames.clone()
    assert augment.eval()(frames, lengths) is frames
    assert not torch.equal(augment.train()(frames, lengths), frames)
    assert torch.equal(frames, before)


def test_spec_augment_masks_are_whole_bands_and_whole_steps_within_their_limits():
    config = SpecAugmentConfig(
        frequency_masks=1, frequency_width=20, time_mask_ratio=0.04, max_time_masks=4, time_width=0.1, max_time_width=30
    )
    augment = SpecAugment(config).train()
    lengths = torch.tensor([400, 100])
    widest_band = widest_time = 0
    for _ in range(50):
        hidden = augment(torch.ones(2, 400, 80), lengths) == 0
        bands, steps = hidden.all(1), hidden.all(2)
        assert torch.equal(hidden, bands[:, None, :] | steps[:, :, None])
        assert (bands.sum(1) <= 20).all()
        assert steps[0].sum() <= 2 * 30  # 400 * 0.04 / 10 = 1.6 -> 2 masks of at most min(40, 30) frames
        assert steps[1].sum() <= 10  # 1 mask of at most 10 frames
        assert not steps[1, 100:].any()  # never in the padding
        widest_band, widest_time = max(widest_band, int(bands.sum(1).max())), max(widest_time, int(steps.sum(1).max()))
    assert widest_band >= 15
    assert widest_time >= 20


def test_spec_augment_is_drawn_for_each_utterance():
    masked = SpecAugment().train()(torch.ones(8, 300, 80), torch.full((8,), 300))
    assert len({tuple((row == 0).all(0).tolist()) for row in masked}) > 1


def tone(hertz):
    return LogMel()(0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(16000) / 16000))[50]


@pytest.mark.parametrize("hertz", [400.0, 900.0, 1500.0, 3000.0])
@pytest.mark.parametrize("factor", [0.85, 1.0, 1.15])
def test_warped_bands_are_those_of_a_higher_tone(hertz, factor):
    warped = warp_bands(tone(hertz)[None, None], torch.tensor([factor]), 16000)[0, 0]
    assert abs(int(warped.argmax()) - int(tone(hertz * factor).argmax())) <= 1


def test_warping_by_1_changes_nothing_and_rows_have_factors_of_their_own():
    frames = torch.randn(3, 7, 80)
    warped = warp_bands(frames, torch.tensor([1.0, 0.9, 1.1]), 16000)
    torch.testing.assert_close(warped[0], frames[0], atol=1e-4, rtol=1e-4)
    for row, factor in ((1, 0.9), (2, 1.1)):
        alone = warp_bands(frames[row : row + 1], torch.tensor([factor]), 16000)
        assert not torch.allclose(warped[row], frames[row], atol=0.1)
        torch.testing.assert_close(warped[row], alone[0], atol=1e-4, rtol=1e-4)


def test_frames_are_warped_in_full_precision_whatever_the_model_computes_in():
    frames, factors = torch.randn(3, 7, 80) - 10, torch.tensor([1.0, 0.9, 1.1])
    with torch.autocast("cpu", torch.bfloat16):
        warped = warp_bands(frames, factors, 16000)
    assert torch.equal(warped, warp_bands(frames, factors, 16000))


def test_perturb_draws_a_gain_and_a_voice_for_each_utterance_in_training_only():
    frames = torch.randn(4, 9, 80)
    module = SpecAugment(SpecAugmentConfig(gain=6.0))
    change = module.train().perturb(frames, 16000) - frames
    by_row = change.mean((1, 2))
    torch.testing.assert_close(change, by_row[:, None, None].expand_as(change), atol=1e-4, rtol=1e-4)
    assert by_row.unique().numel() == 4
    assert by_row.abs().max() <= 6 * np.log(10) / 10
    assert torch.equal(module.eval().perturb(frames, 16000), frames)
    assert torch.equal(SpecAugment(SpecAugmentConfig()).train().perturb(frames, 16000), frames)
    moved = SpecAugment(SpecAugmentConfig(vocal_tract=0.1)).train().perturb(frames[:1].expand(2, -1, -1), 16000)
    assert not torch.allclose(moved[0], moved[1])
    for wrong in ({"gain": -1.0}, {"vocal_tract": 0.5}, {"vocal_tract": -0.1}):
        with pytest.raises(ValueError, match=r"gain|vocal_tract"):
            SpecAugmentConfig(**wrong)


def test_an_utterances_own_mean_counts_as_much_as_it_has_frames():
    torch.manual_seed(0)
    frames, lengths = torch.randn(2, 60, 4) + 5, torch.tensor([60, 20])
    normalizer = Normalizer(4, prior=30)
    normalizer.mean.fill_(1.0)
    normalizer.std.fill_(2.0)
    padded = frames.clone()
    padded[1, 20:] = 1e3  # has no influence on the rest
    both = normalizer(padded, lengths)
    for row, n in enumerate(lengths.tolist()):
        x = frames[row, :n]
        expected = (x - (x.sum(0) + 30 * 1.0) / (n + 30)) / 2
        torch.testing.assert_close(both[row, :n], expected)
        torch.testing.assert_close(normalizer(x), expected)
    torch.testing.assert_close(Normalizer(4, prior=0.0)(frames[0]).mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert Normalizer(4, prior=30)(torch.zeros(0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="mean_prior must not be negative"):
        FrontendConfig(mean_prior=-1.0)


def test_louder_or_through_another_microphone_is_the_same_with_prior_0():
    frames = torch.randn(1, 50, 4)
    normalizer = Normalizer(4, prior=0.0)
    torch.testing.assert_close(normalizer(frames + torch.randn(4)), normalizer(frames), atol=1e-5, rtol=1e-4)

"""What a run needs of its machine, and what it says where that is not there."""

import errno
import gzip
import json
import os
import shutil
import time
from collections import namedtuple
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lhotse import CutSet
from test_resume import losses

from asr.bundle import load_bundle
from asr.corpus.dataset import load_cuts
from asr.corpus.passages import PassageSource
from asr.corpus.text import PreparedText, prepare_text
from asr.errors import ConfigError, CorpusError
from asr.model import ListenAttendSpell, PyramidalEncoder
from asr.model.language_model import CharLanguageModel, LanguageModelConfig, save_language_model
from asr.model.loss import spelling_loss
from asr.tokenizer import CharTokenizer
from asr.training.checkpoint import latest_checkpoint, load_checkpoint
from asr.training.failures import TrainingStoppedError
from asr.training.module import LasModule
from asr.training.run import SpeechData, choose_accelerator, choose_precision, steepest_fall, train
from asr.training.settings import checked_settings, use_threads

SHAPE = r"a batch of \d+ x \d+ frames and \d+ characters \(\d+ s with padding\); lower corpus.batch_seconds \(now 4;"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried .."),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_batch_and_what_to_lower(toy_settings, monkeypatch, error):
    def full(self, frames, lengths):
        raise error

    monkeypatch.setattr(PyramidalEncoder, "forward", full)
    with pytest.raises(TrainingStoppedError, match=f"out of memory at step 0, at {SHAPE}"):
        train(toy_settings)


def test_other_errors_stay_what_they_are(toy_settings, monkeypatch):
    def wrong(self, frames, lengths):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(PyramidalEncoder, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(toy_settings)


def test_a_disk_too_small_is_noticed_before_training(toy_settings, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(9e9, 9e9, 1e6))
    needs = (
        r"1\.0 MB free, but \d\.\d MB needed for about 4 checkpoints of \d\.\d MB and features of 0\.0 h; free space"
    )
    with pytest.raises(ConfigError, match=needs):
        train(toy_settings)
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    toy_settings["corpus"]["cache_dir"] = str(tmp_path / "file" / "cache")
    with pytest.raises(ConfigError, match=r"file/cache: cannot write there .*choose another corpus.cache_dir="):
        train(toy_settings)
    assert not list((Path(toy_settings["output"]) / "checkpoints").iterdir())


def test_a_disk_that_fills_up_outside_of_checkpoints_stops_the_run_with_one_line(toy_settings, monkeypatch):
    def full(self, frames, lengths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PyramidalEncoder, "forward", full)
    with pytest.raises(TrainingStoppedError, match="No space left on device; free space, and the same command goes on"):
        train(toy_settings)


def test_the_speller_learns_words_from_text_beside_speech(toy_settings, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"NEVER HEARD {'QUIZ ' * i}" for i in range(1, 80)))
    prepare_text([tmp_path / "text.txt"], tmp_path / "text", held_out=0.1)
    held_out = PassageSource(PreparedText(tmp_path / "text", "held_out"), CharTokenizer(), 2000)[0]

    def loss(name: str, text: Path | None) -> float:
        settings = toy_settings | {"output": str(tmp_path / name)}
        # Validated once, so that it is the last epoch's model that is exported, not one that spells better by chance.
        once = {"max_epochs": 4, "validate_every": 4, "average_decay": 0.0}
        settings["trainer"] = toy_settings["trainer"] | once
        settings["training"] = toy_settings["training"] | {"text_weight": 2.0}
        settings["corpus"] = toy_settings["corpus"] | {"text": text and str(text), "text_characters": 500}
        bundle = load_bundle(train(settings))
        assert bundle.training.get("text") == (text and {"sentences": 70, "characters": 15_185})
        logits = bundle.model.speller.without_speech(held_out[:, :-1])
        return spelling_loss(logits, held_out).item()

    assert loss("with", tmp_path / "text") < 0.8 * loss("without", None)
    toy_settings["corpus"]["text"] = str(tmp_path)
    with pytest.raises(CorpusError, match=r"no prepared text there .* run recipes/language_model/prepare.py first"):
        train(toy_settings)


def test_an_empty_development_set_is_named(toy_settings, toy_corpus, tmp_path):
    for name in ("train-toy", "dev-toy"):
        shutil.copy(toy_corpus / "manifests" / f"cuts_{name}.jsonl.gz", tmp_path)
    (tmp_path / "cuts_dev-toy.jsonl.gz").write_bytes(gzip.compress(b""))
    toy_settings["corpus"]["manifests"] = str(tmp_path)
    with pytest.raises(CorpusError, match="dev-toy"):
        train(toy_settings)


@pytest.fixture
def mixed(toy_settings, toy_corpus, tmp_path):
    """Settings of a run on `train-toy` and a fifth of `more`, 24 utterances that are always at speed 1."""
    shutil.copytree(toy_corpus / "manifests", tmp_path / "manifests")
    cuts = [cut.with_id(f"more-{cut.id}") for cut in load_cuts(tmp_path / "manifests", ["train-toy"])]
    CutSet.from_cuts(cuts).to_file(tmp_path / "manifests" / "cuts_more.jsonl.gz")
    toy_settings["corpus"] |= {"manifests": str(tmp_path / "manifests"), "train": ["train-toy", "more"]}
    toy_settings["corpus"] |= {"shares": {"more": 0.2}, "unperturbed": ["more"]}
    return toy_settings


def test_a_subset_gives_its_share_to_an_epoch_at_the_speeds_it_is_to_have(mixed):
    module = LasModule.from_settings(mixed)
    data = SpeechData(mixed["corpus"], module)
    expected = data.cache_bytes
    data.load(module.normalizer)
    folder = Path(mixed["corpus"]["cache_dir"])
    assert sum(p.stat().st_size for p in folder.rglob("features.f16")) == pytest.approx(expected, rel=0.02)
    loader = data.train_dataloader()
    keys = [key for batch in loader.plan for key in batch]
    more = [(i, speed) for i, speed in keys if i.startswith("more-")]
    assert len(keys) - len(more) == 24
    assert len(more) == 5
    assert {speed for _, speed in more} == {1.0} != {speed for _, speed in keys}
    heard = np.concatenate([loader.dataset.features.frames((i, 1.0)) for i, _ in keys]).astype(np.float64)
    np.testing.assert_allclose(module.normalizer.mean.numpy(), heard.mean(0), rtol=1e-4)
    assert sum(len(batch.ids) for batch in loader) == 29


def test_shares_and_speeds_of_subsets_that_cannot_be_are_named(mixed):
    def fails(match, **changes):
        with pytest.raises(ConfigError, match=match):
            SpeechData(mixed["corpus"] | changes, LasModule.from_settings(mixed))

    fails(r"corpus.shares: less not in corpus.train=\['train-toy', 'more'\]", shares={"less": 0.2})
    fails("corpus.unperturbed: less not in", unperturbed=["less"])
    fails("corpus.unperturbed: less not in", unperturbed="less")
    for share in (0, 1.5, "half", True):
        fails(f"corpus.shares.more must be above 0 and at most 1; got {share!r}", shares={"more": share})


def test_what_stands_in_two_subsets_is_not_trained_on(mixed):
    manifests = Path(mixed["corpus"]["manifests"])
    shutil.copy(manifests / "cuts_train-toy.jsonl.gz", manifests / "cuts_more.jsonl.gz")
    with pytest.raises(CorpusError, match="utterance 1-1-0000 is in both train-toy and more; prepare them together"):
        SpeechData(mixed["corpus"], LasModule.from_settings(mixed))


def test_development_speech_that_is_trained_on_is_named(mixed, caplog):
    def warning(dev):
        caplog.clear()
        SpeechData(mixed["corpus"] | {"dev": dev}, LasModule.from_settings(mixed))
        return caplog.text

    assert not warning(["dev-toy"])
    assert "24 utterances are trained on too, such as " in warning(["dev-toy", "train-toy"])
    corpus, manifests = mixed["corpus"], Path(mixed["corpus"]["manifests"])
    copies = [cut.with_id(f"A{cut.id}-2") for cut in load_cuts(manifests, ["dev-toy"])]
    for cut in copies:
        cut.supervisions[0].speaker = f"A{cut.supervisions[0].speaker}"
    CutSet.from_cuts(copies).to_file(manifests / "cuts_spliced.jsonl.gz")
    mixed["corpus"] = corpus | {"train": [*corpus["train"], "spliced"]}
    assert "utterances are trained on too, such as" in warning(["dev-toy"])
    mixed["corpus"] = corpus | {"train": ["train-toy"], "shares": None, "unperturbed": []}
    assert "dev WER is of voices that are trained on too: 1, 2" in warning(["more"])


def test_development_utterances_that_say_more_than_fits_leave_the_figures_numbers(mixed, caplog):
    """One of more characters than CTC has room for, and one too short for an encoder state."""
    path = Path(mixed["corpus"]["manifests"]) / "cuts_dev-toy.jsonl.gz"
    cuts = load_cuts(path.parent, ["dev-toy"])
    cuts += [cuts[0].truncate(duration=seconds).with_id(f"cut-{seconds}") for seconds in (0.4, 0.01)]
    for cut in cuts[-2:]:
        cut.supervisions[0].text = "ABLE BIRD CAVE DUNE"
    CutSet.from_cuts(cuts).to_file(path)
    train(mixed)
    assert "dev WER is without 1 that are too short to be heard: cut-0.01" in caplog.text
    lines = (Path(mixed["output"]) / "history.jsonl").read_text().splitlines()
    figures = json.loads(lines[-1], parse_constant=pytest.fail)
    assert figures["dev/ctc"] > 0
    assert figures["dev/attention"] > 0


@pytest.mark.parametrize(
    ("part", "wrong", "message"),
    [
        ("trainer", {"validate_every": 0}, "trainer.validate_every must be a whole number of at least 1, got 0"),
        ("trainer", {"devices": "auto"}, "trainer.devices must be .*, got 'auto'; torchrun or Slurm start more"),
        ("trainer", {"devices": 0}, "trainer.devices must be"),
        ("trainer", {"accelerator": "gpu"}, "trainer.accelerator=gpu: this machine has no CUDA GPU"),
        ("corpus", {"speeds": []}, r"corpus.speeds should be a list of factors such as \[0.9, 1.0, 1.1\], not \[\]"),
        ("corpus", {"speeds": 1.0}, "corpus.speeds should be a list"),
        ("corpus", {"max_duration": None}, "corpus.max_duration must be a number of seconds above 0, got None"),
        ("corpus", {"batch_seconds": 0}, "corpus.batch_seconds must be a number"),
        ("corpus", {"workers": "two"}, "corpus.workers must be a whole number of at least 0 or null, got 'two'"),
        ("corpus", {"shares": 0.5}, "corpus.shares should be shares by the names of subsets, not 0.5"),
        ("corpus", {"dev": []}, r"corpus.dev should be a list of subsets such as \[dev-clean\], not \[\]"),
        ("resume", False, "resume must be auto, never or the path of a checkpoint, got False"),
        ("model", {"encoder": {"join_before": 1}}, "model.encoder.join_before should be a list, not 1"),
        ("model", {"encoder": {"join_before": ["a"]}}, "model.encoder.join_before: each should be int, not 'a'"),
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_is_written(
    toy_settings, part, wrong, message, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    toy_settings[part] = toy_settings[part] | wrong if isinstance(wrong, dict) else wrong
    with pytest.raises(ConfigError, match=message):
        train(toy_settings)
    assert not list(Path(toy_settings["output"]).rglob("*.ckpt"))


@pytest.mark.parametrize("threads", ["two", 0.5, 0, True])
def test_threads_that_cannot_be(threads):
    with pytest.raises(ConfigError, match=r"trainer.threads must be a whole number of at least 1 or null, got"):
        use_threads(threads, "trainer.threads")


def test_one_subset_needs_no_brackets(toy_settings):
    found = checked_settings(toy_settings | {"corpus": toy_settings["corpus"] | {"train": "a", "dev": "b"}})
    assert (found["corpus"]["train"], found["corpus"]["dev"]) == (["a"], ["b"])


def test_a_limit_in_steps_brings_the_learning_rate_down(toy_settings, caplog):
    toy_settings["trainer"] |= {"max_epochs": 10, "max_steps": 6}
    toy_settings["training"] |= {"warmup_steps": 1}
    rates = []

    class Rates(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(toy_settings, [Rates()])
    assert len(rates) == 6
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]
    assert "max_steps=6 may end the run within an epoch, which is then not validated" in caplog.text


def test_training_without_a_cache_is_the_same_and_leaves_none(toy_settings, tmp_path):
    cached = toy_settings | {"output": str(tmp_path / "cached")}
    train(cached)
    shutil.rmtree(toy_settings["corpus"]["cache_dir"])
    toy_settings["corpus"] |= {"cache": False, "workers": 2}
    train(toy_settings)
    assert losses(toy_settings["output"]) == pytest.approx(losses(cached["output"]), rel=0.01)
    assert not Path(toy_settings["corpus"]["cache_dir"]).exists()


def test_the_learning_rate_finder_suggests_draws_and_trains_nothing(toy_settings, caplog):
    rates = np.geomspace(1e-5, 1, 100)
    losses = 3 - 2 / (1 + np.exp(-3 * np.log(rates / 1e-3)))  # falls fastest, by the logarithm, at 1e-3
    assert steepest_fall(rates, losses) == pytest.approx(1e-3, rel=0.1)
    with pytest.raises(TrainingStoppedError, match="too few steps"):
        steepest_fall(rates, np.full(100, np.nan))

    caplog.set_level("INFO")
    toy_settings["training"]["find_learning_rate"] = True
    path = train(toy_settings)
    assert path == Path(toy_settings["output"]) / "learning_rate.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    suggested = float(caplog.text.split("training.learning_rate=")[1].split(";")[0])
    assert 1e-5 < suggested < 0.3
    assert not list(path.parent.rglob("*.ckpt"))
    assert not (path.parent / "model").exists()


def test_a_step_with_weight_noise_and_no_learning_rate_changes_no_weight(toy_settings):
    toy_settings["training"] |= {"weight_noise": 0.5, "learning_rate": 0.0, "final_learning_rate": 0.0, "seed": 3}
    toy_settings["trainer"] |= {"max_epochs": 1, "max_steps": 2, "average_decay": 0.0}
    bundle = load_bundle(train(toy_settings))
    torch.manual_seed(3)
    first = ListenAttendSpell(bundle.model.config).state_dict()
    trained = bundle.model.state_dict()
    assert all(torch.equal(trained[name], first[name].half().float()) for name in first)


def test_a_run_from_a_model_keeps_its_normalisation(toy_settings, tmp_path):
    toy_settings["trainer"] |= {"max_epochs": 1}
    train(toy_settings)
    first = tmp_path / "run" / "model"
    again = toy_settings | {"output": str(tmp_path / "again"), "init_from": str(first)}
    again["corpus"] = toy_settings["corpus"] | {"train": ["dev-toy"]}  # other speech, with other statistics
    again["training"] = toy_settings["training"] | {"learning_rate": 0.0, "final_learning_rate": 0.0}
    train(again)
    before, after = load_bundle(first), load_bundle(tmp_path / "again" / "model")
    assert torch.equal(before.normalizer.mean, after.normalizer.mean)
    assert torch.equal(before.normalizer.std, after.normalizer.std)
    for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)  # fp16 in the folder


def test_a_model_to_start_from_must_have_the_same_settings(toy_settings, tmp_path):
    toy_settings["trainer"] |= {"max_epochs": 1}
    train(toy_settings)
    again = toy_settings | {"output": str(tmp_path / "again"), "init_from": str(tmp_path / "run" / "model")}
    again["model"] = {**toy_settings["model"], "encoder": {**toy_settings["model"]["encoder"], "layers": 3}}
    with pytest.raises(ConfigError, match=r"has another model .*layers"):
        train(again)
    again["model"] = {**toy_settings["model"], "encoder": {**toy_settings["model"]["encoder"], "dropout": 0.3}}
    train(again)


def test_a_run_may_start_from_a_model_with_fewer_layers_and_no_positions(toy_settings, tmp_path):
    toy_settings["trainer"] |= {"max_epochs": 1}
    train(toy_settings)
    first = tmp_path / "run" / "model"
    again = toy_settings | {"output": str(tmp_path / "again"), "init_from": str(first)}
    encoder = toy_settings["model"]["encoder"]
    again["model"] = {
        "encoder": {**encoder, "layers": encoder["layers"] + 1, "residual": 1},
        "speller": {**toy_settings["model"]["speller"], "positions": 16},
    }
    again["training"] = toy_settings["training"] | {"learning_rate": 0.0, "final_learning_rate": 0.0}
    train(again)
    before, after = load_bundle(first).model, load_bundle(tmp_path / "again" / "model").model
    assert after.config.encoder.residual == 1
    assert after.speller.position is not None
    assert not after.speller.position.weight.any()
    frames, lengths = torch.randn(2, 60, before.config.encoder.n_mels), torch.tensor([60, 41])
    h = before.encoder(frames, lengths)[0][:, :10]  # neither row's padding
    torch.testing.assert_close(after.encoder(frames, lengths)[0][:, :10], h, atol=1e-2, rtol=1e-2)  # fp16 in the folder


def test_layers_above_residual_ones_begin_as_faint_copies_of_them(toy_settings, tmp_path):
    encoder = toy_settings["model"]["encoder"]
    toy_settings["trainer"] |= {"max_epochs": 1}
    toy_settings["model"] = {**toy_settings["model"], "encoder": {**encoder, "layers": 5, "residual": 2}}
    train(toy_settings)
    again = toy_settings | {"output": str(tmp_path / "again"), "init_from": str(tmp_path / "run" / "model")}
    again["model"] = {**toy_settings["model"], "encoder": {**encoder, "layers": 8, "residual": 5}}
    again["training"] = toy_settings["training"] | {"learning_rate": 0.0, "final_learning_rate": 0.0}
    train(again)
    before = load_bundle(tmp_path / "run" / "model").model.encoder
    after = load_bundle(tmp_path / "again" / "model").model.encoder
    assert before.norms[3].weight.abs().mean() > 1e-4  # it began at 0
    for above, below in zip(range(8), [0, 1, 2, 3, 4, 3, 4, 3], strict=True):
        strength = 0.25 if above > 4 else 1.0
        for a, b in zip(after.layers[above].parameters(), before.layers[below].parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)  # fp16 in the folder
        for a, b in zip(after.norms[above].parameters(), before.norms[below].parameters(), strict=True):
            torch.testing.assert_close(a, strength * b, atol=1e-6, rtol=1e-2)


def test_a_reader_begins_as_a_language_model_and_stays_as_it_is(toy_settings, tmp_path):
    toy_settings["trainer"] |= {"max_epochs": 1}
    train(toy_settings)
    again = toy_settings | {"output": str(tmp_path / "again"), "init_from": str(tmp_path / "run" / "model")}
    again["model"] = {**toy_settings["model"], "speller": {**toy_settings["model"]["speller"], "reader": 8}}
    with pytest.raises(ConfigError, match=r"reader=8 has read nothing yet; reader_from=FOLDER"):
        train(again)
    for d in (9, 8):
        model = CharLanguageModel(LanguageModelConfig(d=d))
        save_language_model(tmp_path / f"read{d}", model, CharTokenizer(), {})
    with pytest.raises(ConfigError, match=r"reader_from=.*read9 does not fit .*d=8.*, this is .*d=9"):
        train(again | {"reader_from": str(tmp_path / "read9")})
    train(again | {"reader_from": str(tmp_path / "read8")})
    once = load_bundle(tmp_path / "again" / "model").model.speller
    for a, b in zip(once.reader.lstm.parameters(), model.lstm.parameters(), strict=True):
        assert torch.equal(a, b.half().float())
    assert once.read.weight.any()  # it began at 0
    train(again | {"output": str(tmp_path / "third"), "init_from": str(tmp_path / "again" / "model")})
    twice = load_bundle(tmp_path / "third" / "model").model.speller
    assert torch.equal(twice.reader.embedding.weight, once.reader.embedding.weight)


def test_a_run_goes_on_though_settings_were_added_since(toy_settings, tmp_path):
    toy_settings["trainer"] |= {"max_epochs": 1}
    train(toy_settings)
    path = latest_checkpoint(tmp_path / "run" / "checkpoints")
    checkpoint = load_checkpoint(path)
    for part in ("speller", "encoder"):
        for key in ("reader", "positions", "residual"):
            checkpoint["hyper_parameters"]["model"][part].pop(key, None)
    torch.save(checkpoint, tmp_path / "older.ckpt")  # the loaded one is mapped into memory
    (tmp_path / "older.ckpt").replace(path)
    train(toy_settings | {"trainer": toy_settings["trainer"] | {"max_epochs": 2}})
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("slow", [torch.bfloat16, torch.float32])
def test_bf16_is_chosen_where_this_processor_is_quicker_with_it(monkeypatch, slow):
    """Having the instructions is not enough: some processors have them at half the rate of fp32's."""
    real = torch.mm

    def mm(a, b):
        if a.dtype == slow:
            time.sleep(0.02)
        return real(a[:8], b[:, :8])

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision("auto") == ("32-true" if slow == torch.bfloat16 else "bf16-mixed")
    assert choose_precision("bf16-mixed") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision("auto") == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert choose_precision("auto") == "bf16-mixed"


@pytest.mark.parametrize("native", [False, True])
def test_a_gpu_that_only_emulates_bf16_trains_in_fp32(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert choose_precision("auto") == ("bf16-mixed" if native else "32-true")
    assert choose_accelerator("auto") == "cuda"
    with pytest.raises(ConfigError, match=r"trainer.precision=16-mixed cannot be trained with; use bf16-mixed"):
        choose_precision("16-mixed")


def test_the_accelerator_is_the_cpu_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_accelerator("auto") == "cpu"
    assert choose_accelerator("cpu") == "cpu"
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        choose_accelerator("gpu")

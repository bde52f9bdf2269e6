import importlib.util
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from asr.decoding.alignment import FEATURES, SpottedWord, WordTiming
from asr.errors import CorpusError
from asr.model.word_lm import estimate, save_word_lm

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("word_times", ROOT / "recipes" / "librispeech" / "word_times.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["word_times"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["word_times"]


def textgrid(words, end=2.0):
    intervals = "".join(
        f'intervals [{i}]:\n xmin = {a}\n xmax = {b}\n text = "{label}"\n' for i, (label, a, b) in enumerate(words, 1)
    )
    return (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0.0\nxmax = {end}\ntiers? <exists>\nsize = 2\n'
        f'item []:\n item [1]:\n class = "IntervalTier"\n name = "words"\n xmin = 0.0\n xmax = {end}\n'
        f"intervals: size = {len(words)}\n{intervals}"
        f' item [2]:\n class = "IntervalTier"\n name = "phones"\n xmin = 0.0\n xmax = {end}\n intervals: size = 1\n'
        f'intervals [1]:\n xmin = 0.0\n xmax = {end}\n text = "AA1"\n'
    )


HELLO = [("", 0.0, 0.25), ("hello", 0.25, 0.8), ("<unk>", 0.8, 1), ('say ""ah""', 1.0, 1.5), ("sp", 1.5, 2.0)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_textgrid(recipe, encoding):
    content = textgrid(HELLO).encode(encoding)
    assert recipe.read_textgrid(content) == [("hello", 0.25, 0.8), ("<unk>", 0.8, 1.0), ('say "ah"', 1.0, 1.5)]
    assert recipe.read_textgrid(content, "phones") == [("AA1", 0.0, 2.0)]


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"not one", textgrid(HELLO).replace("words", "w").encode()])
def test_what_is_no_textgrid_with_words(recipe, content):
    with pytest.raises(CorpusError, match="TextGrid"):
        recipe.read_textgrid(content)


def test_alignments_from_a_folder_and_from_an_archive(recipe, tmp_path):
    folder = tmp_path / "a" / "1"
    folder.mkdir(parents=True)
    (folder / "1-1-0000.TextGrid").write_text(textgrid(HELLO))
    (folder / "1-1-0001.TextGrid").write_text(textgrid([("a", 0, 1)]))
    for name in ("x.tar.xz", "x.tar"):
        with tarfile.open(tmp_path / name, "w:xz" if name.endswith("xz") else "w") as archive:
            archive.add(tmp_path / "a", "a")
        assert recipe.read_alignments(tmp_path / name) == recipe.read_alignments(tmp_path / "a")
    assert recipe.read_alignments(tmp_path / "a")["1-1-0001"] == [("a", 0.0, 1.0)]
    (tmp_path / "none").mkdir()
    with pytest.raises(CorpusError, match=r"no \.TextGrid files"):
        recipe.read_alignments(tmp_path / "none")
    (folder / "1-1-0002.TextGrid").write_text("?")
    with pytest.raises(CorpusError, match="1-1-0002"):
        recipe.read_alignments(tmp_path / "a")
    with pytest.raises(CorpusError, match="neither a folder nor a readable tar archive"):
        recipe.read_alignments(folder / "1-1-0000.TextGrid")


@pytest.mark.parametrize(("kind", "options"), [("xz", {}), ("gz", {"compresslevel": 0})])
def test_a_damaged_archive(recipe, tmp_path, kind, options):
    (tmp_path / "a.TextGrid").write_bytes(np.random.default_rng(0).bytes(100_000))
    path = tmp_path / f"x.tar.{kind}"
    with tarfile.open(path, f"w:{kind}", **options) as archive:
        archive.add(tmp_path / "a.TextGrid", "a.TextGrid")
    path.write_bytes(path.read_bytes()[:50_000] + b"\xff" * 50_000)
    with pytest.raises(CorpusError, match="neither a folder nor a readable tar archive"):
        recipe.read_alignments(path)


def utterance(recipe, speaker, words, times, correct=None):
    spotted = [SpottedWord(w, (a, a + 0.04), (b - 0.04, b), (0.0,) * len(FEATURES)) for w, a, b in words]
    return recipe.Utterance(speaker, 5.0, spotted, correct or [time is not None for time in times], times)


def test_errors_are_measured_on_the_words_that_have_a_reference(recipe):
    words = [("A", 1.0, 1.2), ("B", 2.0, 2.2), ("C", 3.0, 3.2)]
    errors = recipe.time_errors(
        [utterance(recipe, "x", words, [(1.0, 1.1), None, (2.7, 3.2)])], WordTiming(0.1, 0.5, 0.0, lead=0.0, tail=0.0)
    )
    assert errors == pytest.approx(np.array([[0.0, 0.1], [0.3, 0.0]]))
    figures = recipe.time_figures(errors)
    assert (figures["words"], figures["start_mae_ms"], figures["end_mae_ms"]) == (2, 150, 50)
    assert (figures["start_bias_ms"], figures["start_within_200ms"], figures["end_within_200ms"]) == (150, 0.5, 1.0)
    assert figures["both_within_200ms"] == 0.5


def test_folds_share_no_speaker(recipe):
    several = [utterance(recipe, s, [], []) for s in "abcab"]
    (fit, test), (other_fit, other_test) = recipe.folds(several)
    assert {u.speaker for u in fit} == {"a", "c"}
    assert {u.speaker for u in test} == {"b"}
    assert (other_fit, other_test) == (test, fit)
    alone = [utterance(recipe, "a", [], []) for _ in range(4)]
    assert [len(side) for side in recipe.folds(alone)[0]] == [2, 2]


@pytest.fixture
def settings(toy_corpus, toy_bundle, tmp_path):
    """What Hydra would hand over for the toy corpus; its words are where `conftest.speak` puts them."""
    from asr.corpus.dataset import cut_text, load_cuts

    (tmp_path / "grids").mkdir()
    for cut in load_cuts(toy_corpus / "manifests", ["dev-toy"]):
        at, words = 0.1, []
        for word in cut_text(cut).split():
            words.append((word.lower(), round(at, 3), round(at + 0.08 * len(word), 3)))
            at += 0.08 * (len(word) + 1)
        (tmp_path / "grids" / f"{cut.id}.TextGrid").write_text(textgrid(words))
    return {
        "model_dir": str(toy_bundle),
        "output": str(tmp_path / "out"),
        "alignments": str(tmp_path / "grids"),
        "forced": True,
        "save": False,
        "device": "cpu",
        "threads": None,
        "batch_seconds": 5.0,
        "corpus": {"manifests": str(toy_corpus / "manifests"), "decode": ["dev-toy"]},
        "decoding": {"beam": 1},
    }


def test_forced(recipe, settings):
    result = recipe.measure(settings)
    times = result["times"]["as set"]
    words = [
        word for path in Path(settings["alignments"]).iterdir() for word in recipe.read_textgrid(path.read_bytes())
    ]
    assert times["words"] == len(words)
    assert times["start_mae_ms"] < 1000  # a model of random weights, but the words are in order and inside
    assert "confidence" not in result
    assert json.loads((Path(settings["output"]) / "word_times.json").read_text()) == result


def test_recognised_and_saved(recipe, settings, monkeypatch):
    """A search that gets two utterances of three right, and knows it."""
    from asr.bundle import load_bundle
    from asr.corpus.dataset import cut_text, load_cuts
    from asr.decoding.beam_search import DecodingConfig, Hypothesis
    from asr.transcriber import Transcriber, word_settings

    cuts = sorted(load_cuts(settings["corpus"]["manifests"], ["dev-toy"]), key=lambda c: c.duration)
    queue = iter(enumerate(cut_text(cut) for cut in cuts))

    def search(self, h, lengths):
        found = []
        for _ in lengths:
            i, text = next(queue)
            text = text if i % 3 else "X" * len(text)
            tokens = tuple(self.bundle.tokenizer.encode(text))
            scores = ((-0.1 if i % 3 else -1.0),) * (len(tokens) + 1)
            found.append([Hypothesis(tokens, text, sum(scores), scores, None)])
        return found

    monkeypatch.setattr(Transcriber, "search", search)
    result = recipe.measure(settings | {"forced": False, "save": True})
    right = sum(len(cut_text(cut).split()) for i, cut in enumerate(cuts) if i % 3)
    total = right + 2
    assert result["times"]["as set"]["words"] == right
    figures = result["confidence"]
    assert figures["geometric mean"]["words"] == total
    assert figures["calibrated on the other half"]["correct"] == pytest.approx(right / total, abs=1e-4)
    for name in ("reliability.svg", "reliability.png"):
        assert (Path(settings["output"]) / name).stat().st_size > 1000
    saved = yaml.safe_load((Path(settings["model_dir"]) / "config.yaml").read_text())["training"]
    assert saved["dev_wer"] == 0.5
    assert {key: saved[key] for key in ("word_times", "confidence")} == result["fitted"]
    timing, confidence = word_settings(load_bundle(settings["model_dir"]), DecodingConfig())
    assert vars(timing) == result["fitted"]["word_times"]
    assert confidence((-0.1, -0.1, -1, -1, 1.0)) > 0.5 > confidence((-1.0, -1.0, -1, -1, 1.0))

    # A search without the model's language model has confidences of its own, and leaves the times alone.
    save_word_lm(Path(settings["model_dir"]), estimate(["ABLE BIRD"] * 2), {"words": 2})
    recipe.save_settings(Path(settings["model_dir"]), {"word_times": {"pause": 0.5}})
    queue = iter(enumerate(cut_text(cut) for cut in cuts))
    result = recipe.measure(settings | {"forced": False, "save": True})
    assert "confidence" not in result["fitted"]
    now = yaml.safe_load((Path(settings["model_dir"]) / "config.yaml").read_text())["training"]
    assert now["confidence"] == saved["confidence"]
    assert now["word_times"] == {"pause": 0.5}
    assert now["confidence_without_lm"] == result["fitted"]["confidence_without_lm"]
    times = recipe.measure(settings | {"forced": True, "save": True})["fitted"]["word_times"]  # are not of a search
    assert yaml.safe_load((Path(settings["model_dir"]) / "config.yaml").read_text())["training"]["word_times"] == times


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignments": None}, "alignments= must name"),
        ({"forced": False}, "not one word was recognised correctly"),
        ({"alignments": "other"}, "none has the name of an utterance"),
        ({"output": f"{__file__}/x"}, "x: cannot write there (Not a directory); choose another output="),
    ],
)
def test_errors(recipe, settings, tmp_path, changes, message, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "else.TextGrid").write_text(textgrid(HELLO))
    if changes.get("alignments") == "other":
        changes = {"alignments": str(tmp_path / "other")}
    with pytest.raises(SystemExit) as stop:
        recipe.measure(settings | changes)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err

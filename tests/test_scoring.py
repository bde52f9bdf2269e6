import json
import subprocess
import sys
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest

from asr import scoring
from asr.errors import AsrError, ScoringError
from asr.scoring import (
    bootstrap_interval,
    by_length,
    by_speaker,
    confusions,
    format_alignment,
    format_report,
    html_report,
    paired_bootstrap,
    read_transcripts,
    score,
    write_scores,
)

# By hand: one substitution; one deletion; two insertions; nothing; all five words gone.
REFERENCES = {
    "7-1": "THE CAT SAT",
    "7-2": "ON THE MAT",
    "7-3": "HELLO",
    "8-1": "GOOD MORNING",
    "8-2": "ONE TWO THREE FOUR FIVE",
}
HYPOTHESES = {
    "7-1": "THE HAT SAT",
    "7-2": "ON MAT",
    "7-3": "OH HELLO DEAR",
    "8-1": "GOOD MORNING",
    "8-2": "",
}


@pytest.fixture
def result():
    return score(REFERENCES, HYPOTHESES)


def scored(*pairs):
    """A score of utterances 0, 1, ... with these (errors, words): each error a deletion."""
    references = {str(i): " ".join(["A"] * words) for i, (_, words) in enumerate(pairs)}
    hypotheses = {str(i): " ".join(["A"] * (words - errors)) for i, (errors, words) in enumerate(pairs)}
    return score(references, hypotheses)


# --- counting ---


def test_counts(result):
    assert (result.hits, result.substitutions, result.deletions, result.insertions) == (7, 1, 6, 2)
    assert (result.reference_words, result.utterances) == (14, 5)
    assert result.wer == 9 / 14
    # THE CAT SAT 11, ON THE MAT 10, HELLO 5, GOOD MORNING 12, ONE ... FIVE 23
    assert result.reference_characters == 61
    # C -> H; "THE " out; "OH " and " DEAR" in; everything out
    assert result.character_errors == 1 + 4 + 8 + 23
    assert result.cer == 36 / 61


def test_counts_of_an_utterance(result):
    first, second, third, fourth, last = result.per_utterance
    assert (first.id, first.reference, first.hypothesis) == ("7-1", "THE CAT SAT", "THE HAT SAT")
    assert (first.hits, first.substitutions, first.deletions, first.insertions) == (2, 1, 0, 0)
    assert (second.deletions, second.wer) == (1, 1 / 3)
    assert (third.insertions, third.wer) == (2, 2.0)
    assert (fourth.errors, fourth.wer) == (0, 0.0)
    assert (last.deletions, last.reference_words, last.wer) == (5, 5, 1.0)


def test_counts_are_the_least_possible():
    """Against the textbook recursion, on random word sequences."""

    def distance(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, start=1):
            left = [i]
            for j, y in enumerate(b, start=1):
                left.append(min(row[j] + 1, left[-1] + 1, row[j - 1] + (x != y)))
            row = left
        return row[-1]

    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(list("ABC"), size=generator.integers(1, 9))) for _ in range(100)]
    references, hypotheses = dict(enumerate(texts)), dict(enumerate(reversed(texts)))
    for utterance in score(references, hypotheses).per_utterance:
        a, b = references[utterance.id], hypotheses[utterance.id]
        assert utterance.errors == distance(a.split(), b.split())
        assert utterance.character_errors == distance(a, b)


def test_empty_reference_is_all_insertions():
    result = score({"a": "", "b": "YES"}, {"a": "OH NO", "b": "YES"})
    assert (result.insertions, result.reference_words, result.wer) == (2, 1, 2.0)
    assert (result.character_errors, result.reference_characters) == (5, 3)
    assert result.per_utterance[0].wer == 2.0
    assert score({"a": "", "b": "YES"}, {"a": "", "b": "YES"}).wer == 0.0


def test_no_reference_words_at_all():
    with pytest.raises(ScoringError, match=r"^the references hold no words, so there is no error rate$"):
        score({"a": "", "b": " "}, {"a": "X", "b": ""})
    with pytest.raises(ScoringError, match="no words"):
        score({}, {})


def test_order_of_ids_does_not_matter(result):
    assert score(REFERENCES, dict(reversed(HYPOTHESES.items()))) == result


def test_missing_ids():
    with pytest.raises(ScoringError) as error:
        score({str(i): "A" for i in range(9)}, {"0": "A", "1": "A"})
    assert str(error.value) == "7 of 9 utterances have no hypothesis: 2, 3, 4, 5, 6, ..."
    with pytest.raises(ScoringError) as error:
        score({"0": "A"}, {"0": "A", "x": "A"})
    assert str(error.value) == "1 of 2 utterances have no reference: x"


def test_messages_name_the_files():
    names = ("r.txt", "h.txt")
    with pytest.raises(ScoringError, match=r"^h.txt: 1 of 2 utterances of r.txt have no hypothesis: 1; .* of r.txt$"):
        score({"0": "A", "1": "B"}, {"0": "A"}, names)
    with pytest.raises(ScoringError, match=r"^r.txt: 1 of 2 utterances of h.txt have no reference: x; .* of h.txt$"):
        score({"0": "A"}, {"0": "A", "x": "A"}, names)
    with pytest.raises(ScoringError, match=r"^r.txt: the references hold no words, .*; write down what was said$"):
        score({"0": ""}, {"0": "A"}, names)


# --- reading ---


def write(tmp_path, content, name="t.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_read_id_first(tmp_path):
    path = write(tmp_path, "\ufeffa-1 Hello  there\r\n\na-2\n;; a comment\na-3\tit's (not) me\n")
    assert read_transcripts(path) == {"a-1": "HELLO THERE", "a-2": "", "a-3": "IT'S (NOT) ME"}


def test_read_trn(tmp_path):
    path = write(tmp_path, "Hello  there (a-1)\n(a-2)\n\nI (he said) (a-3) \n")
    assert read_transcripts(path) == {"a-1": "HELLO THERE", "a-2": "", "a-3": "I (HE SAID)"}


def test_read_normalized(tmp_path):
    path = write(tmp_path, "a Well, 2 cafés!\n")
    assert read_transcripts(path) == {"a": "WELL, 2 CAFÉS!"}
    assert read_transcripts(path, normalize=True) == {"a": "WELL TWO CAFES"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": has no utterances"),
        (" \n;; nothing\n", ": has no utterances"),
        ("a X\nb Y\n\na Z\n", ":4: utterance a was already on line 1"),
        ("X (a)\nY (a)\n", ":2: utterance a was already on line 1"),
        ("X (a)\nY (b)\nZ\n", ":3: has no utterance id in parentheses at its end, as most lines have"),
        (b"a X\nb \xff\n", ":2: not UTF-8 text"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ScoringError) as error:
        read_transcripts(path)
    assert str(error.value) == f"{path}{message}"


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ScoringError, match=r"^none.txt: no such file$"):
        read_transcripts("none.txt")
    with pytest.raises(ScoringError, match=r": cannot be read \(Is a directory\)$"):
        read_transcripts(tmp_path)


# --- chance ---


def test_interval_of_equal_utterances_is_a_point():
    assert bootstrap_interval(scored(*[(1, 4)] * 20)) == (0.25, 0.25)


def test_interval_equals_all_draws():
    """Three utterances have 27 draws; quantiles between the steps of their distribution are exact."""
    pairs = [(0, 1), (1, 3), (4, 4)]
    rates = sorted(sum(e for e, _ in draw) / sum(w for _, w in draw) for draw in product(pairs, repeat=3))
    low, high = bootstrap_interval(scored(*pairs), samples=20_000, level=0.8)
    assert low == pytest.approx(np.quantile(rates, 0.1, method="inverted_cdf"))
    assert high == pytest.approx(np.quantile(rates, 0.9, method="inverted_cdf"))


def test_interval_has_the_width_of_the_normal_one():
    generator = np.random.default_rng(3)
    errors = generator.binomial(10, 0.2, size=1000)
    low, high = bootstrap_interval(scored(*[(int(e), 10) for e in errors]), samples=4000)
    half = 1.96 * errors.std() / 10 / np.sqrt(1000)
    assert low == pytest.approx(errors.mean() / 10 - half, abs=half / 10)
    assert high == pytest.approx(errors.mean() / 10 + half, abs=half / 10)


def test_interval_is_reproducible_and_has_a_seed(result):
    assert bootstrap_interval(result) == bootstrap_interval(result)
    pairs = scored(*[(i % 5, 7) for i in range(50)])
    assert bootstrap_interval(pairs, seed=1) != bootstrap_interval(pairs, seed=2)


def test_interval_in_slices(monkeypatch):
    pairs = scored(*[(i % 5, 7) for i in range(50)])
    whole = bootstrap_interval(pairs, samples=2000)
    monkeypatch.setattr(scoring, "BOOTSTRAP_CELLS", 333)
    assert bootstrap_interval(pairs, samples=2000) == pytest.approx(whole, abs=0.02)


def test_same_system_twice(result):
    comparison = paired_bootstrap(result, result)
    assert (comparison.difference, comparison.low, comparison.high, comparison.p) == (0, 0, 0, 1)


def test_always_better():
    comparison = paired_bootstrap(scored(*[(1, 10)] * 30), scored(*[(3, 10)] * 30), samples=999)
    assert comparison.difference == pytest.approx(-0.2)
    assert (comparison.low, comparison.high) == pytest.approx((-0.2, -0.2))
    assert comparison.p == 2 / 1000


def test_pairing_removes_what_is_common():
    """Hard and easy utterances make each WER uncertain, but not the difference."""
    a = scored(*[(i % 9, 10) for i in range(90)])
    b = scored(*[(i % 9 + i % 2, 10) for i in range(90)])
    comparison = paired_bootstrap(a, b)
    assert comparison.high < 0
    assert comparison.p < 0.01
    assert bootstrap_interval(a)[1] > bootstrap_interval(b)[0]


def test_difference_by_chance():
    """+1 and -1 in turn: each side of 0 has half of the draws."""
    a = scored(*[(i % 2, 10) for i in range(100)])
    b = scored(*[((i + 1) % 2, 10) for i in range(100)])
    comparison = paired_bootstrap(a, b, samples=4000)
    assert comparison.difference == 0
    assert comparison.low == pytest.approx(-1.96 * 0.1 / 10, abs=0.003)  # the sd of one difference is 0.1
    assert comparison.high == pytest.approx(1.96 * 0.1 / 10, abs=0.003)
    assert comparison.p > 0.9


def test_pairs_must_match(result):
    other = score(REFERENCES | {"7-3": "HULLO"}, HYPOTHESES)
    with pytest.raises(ScoringError, match=r"^the two systems .* different references: utterance 7-3$"):
        paired_bootstrap(result, other)
    with pytest.raises(ScoringError, match=r"^4 of 5 utterances have no score of the second system: 7-2"):
        paired_bootstrap(result, score({"7-1": "A"}, {"7-1": "A"}))


# --- looking closer ---


def test_by_length():
    lengths = [1, 5, 6, 10, 11, 20, 21, 40, 41, 100]
    groups = by_length(scored(*[(1, n) for n in lengths]))
    assert [(g.name, g.utterances, g.reference_words) for g in groups] == [
        ("1-5", 2, 6),
        ("6-10", 2, 16),
        ("11-20", 2, 31),
        ("21-40", 2, 61),
        ("41+", 2, 141),
    ]
    assert groups[0].wer == 2 / 6


def test_by_length_with_empty_reference():
    groups = by_length(score({"a": "", "b": "X"}, {"a": "P Q", "b": "X"}))
    assert [(g.name, g.insertions, g.wer) for g in groups] == [("0", 2, 2.0), ("1-5", 0, 0.0)]


def test_by_speaker(result):
    groups = by_speaker(result)
    assert [(g.name, g.utterances, g.reference_words) for g in groups] == [("8", 2, 7), ("7", 3, 7)]
    assert [(g.substitutions, g.deletions, g.insertions) for g in groups] == [(0, 5, 0), (1, 1, 2)]
    assert groups[0].wer == 5 / 7


def test_confusions():
    references = {"1": "A B C", "2": "A B", "3": "A X"}
    hypotheses = {"1": "A P C", "2": "Q P", "3": "A X X"}
    found = confusions(score(references, hypotheses))
    assert found.substitutions == ((("B", "P"), 2), (("A", "Q"), 1))
    assert found.deletions == ()
    assert found.insertions == (("X", 1),)
    assert confusions(score(references, hypotheses), 1).substitutions == ((("B", "P"), 2),)
    assert confusions(score({"1": "A B"}, {"1": "A"})).deletions == (("B", 1),)


# --- reports ---


def test_alignment(result):
    rows = [format_alignment(u) for u in result.per_utterance]
    assert rows[0] == "REF:  THE CAT SAT\nHYP:  THE HAT SAT\nEVAL:     S"
    assert rows[1] == "REF:  ON THE MAT\nHYP:  ON *** MAT\nEVAL:    D"
    assert rows[2] == "REF:  ** HELLO ****\nHYP:  OH HELLO DEAR\nEVAL: I        I"


def test_alignment_is_broken_at_the_width():
    text = " ".join(["WORD"] * 50)
    rows = format_alignment(score({"a": text}, {"a": text}).per_utterance[0], width=40).split("\n")
    assert len(rows) == 3 * 8  # seven words in 34 columns
    assert max(map(len, rows)) <= 40
    assert " ".join(row.removeprefix("REF:").strip() for row in rows[::3]) == text


def test_report(result):
    report = format_report(result)
    assert "WER 64.29%  [9 errors in 14 words: 1 substitutions, 6 deletions, 2 insertions]" in report
    assert "CER 59.02%  [36 errors in 61 characters]" in report
    low, high = bootstrap_interval(result)
    assert f"95% interval of the WER {low:.2%} - {high:.2%}" in report
    assert "5 utterances, 1 of them without error" in report
    assert report.index("8-2  WER 100.00%") < report.index("7-3  WER 200.00%") < report.index("7-1  WER 33.33%")
    assert "CAT -> HAT" in report
    assert "8-1" not in report  # without error
    assert "7-3" not in format_report(result, worst=1)


def test_report_in_parts(result):
    report = format_report(result)
    assert report.startswith(scoring.format_summary(result) + "\n\n")
    assert scoring.format_summary(result).count("\n") == 3
    assert scoring.format_groups(by_speaker(result)) == (
        "  8    71.43%  2 utterances, 7 words\n  7    57.14%  3 utterances, 7 words"
    )
    assert scoring.format_groups([]) == ""
    assert scoring.format_confusions(confusions(score({"1": "A B"}, {"1": "Q B X"}))) == (
        "Substitutions, most frequent first\n      1  A -> Q\n\nInsertions, most frequent first\n      1  X"
    )
    assert scoring.format_confusions(confusions(score({"1": "A"}, {"1": "A"}))) == ""
    assert scoring.format_comparison(scoring.PairedComparison(-0.012, -0.02, 0.001, 0.0549)) == (
        "WER of the first minus WER of the second: -1.20 points (95% interval -2.00 to +0.10, p = 0.055)"
    )


class Page(HTMLParser):
    """Checks that tags nest, and keeps the text."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.stack, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        assert tag != "script"
        assert not {"src", "href"} & dict(attributes).keys()  # self-contained
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_report(result):
    text = html_report(result, "Clean & other")
    page = Page(text)
    assert not page.stack
    assert "Clean & other" in page.text
    assert "64.29% WER" in page.text
    assert '<span class="s"><s>CAT</s> HAT</span>' in text
    assert '<del class="d">THE</del>' in text
    assert '<ins class="i">DEAR</ins>' in text
    assert "color-scheme: light dark" in text


def test_html_report_escapes():
    evil = "<script>alert(1)</script>"
    text = html_report(score({"<i>": f"A {evil}", "b": "<b>"}, {"<i>": f"{evil} &amp;", "b": ""}), evil)
    Page(text)
    assert "<script" not in text
    assert "<i>" not in text
    assert "<b>" not in text
    assert "&amp;amp;" in text


def test_as_dict(result):
    figures = scoring.as_dict(result)
    assert figures == {
        "wer": 9 / 14,
        "cer": 36 / 61,
        "substitutions": 1,
        "deletions": 6,
        "insertions": 2,
        "reference_words": 14,
        "utterances": 5,
        "wer_interval": list(bootstrap_interval(result)),
    }


def test_write_scores(tmp_path, result):
    folder = tmp_path / "new" / "scores"
    assert write_scores(folder, REFERENCES, HYPOTHESES) == result
    assert sorted(path.name for path in folder.iterdir()) == ["hyp.trn", "ref.trn", "wer.json", "wer.txt"]
    assert (folder / "hyp.trn").read_text().splitlines() == [
        "THE HAT SAT (7-1)",
        "ON MAT (7-2)",
        "OH HELLO DEAR (7-3)",
        "GOOD MORNING (8-1)",
        "(8-2)",
    ]
    assert read_transcripts(folder / "ref.trn") == REFERENCES
    assert read_transcripts(folder / "hyp.trn") == HYPOTHESES
    assert json.loads((folder / "wer.json").read_text()) == scoring.as_dict(result)
    assert (folder / "wer.txt").read_text() == format_report(result)


def test_what_is_scored_is_not_overwritten(tmp_path):
    for name in ("ref.trn", "hyp.trn"):
        (tmp_path / name).write_text("Hello, the Cat! (u1)\n")
    names = (tmp_path / "ref.trn", tmp_path / "../" / tmp_path.name / "hyp.trn")
    for given in (names, (tmp_path / "other.txt", names[1])):
        with pytest.raises(
            ScoringError, match=r"\.trn: is what is scored, and would be overwritten; choose another place"
        ):
            write_scores(tmp_path, {"u1": "HELLO"}, {"u1": "HELLO"}, given)
    assert (tmp_path / "ref.trn").read_text() == "Hello, the Cat! (u1)\n"


def test_write_scores_to_bad_places(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScoringError, match=r"file: cannot be made a folder \(File exists\)$"):
        write_scores(tmp_path / "file", {"a": "X"}, {"a": "X"})
    (tmp_path / "wer.txt").mkdir()
    with pytest.raises(AsrError, match=r"wer.txt: cannot be written \(Is a directory\)$"):
        write_scores(tmp_path, {"a": "X"}, {"a": "X"})
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("utterance", ["a b", "a(1)", ""])
def test_write_scores_refuses_ids_that_trn_cannot_hold(tmp_path, utterance):
    with pytest.raises(ScoringError, match="has white space or parentheses, or is empty"):
        write_scores(tmp_path / "out", {utterance: "X"}, {utterance: "X"})
    assert not (tmp_path / "out").exists()


def test_import_is_light():
    code = "import sys, asr.scoring; print(*{'torch', 'librosa', 'num2words'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

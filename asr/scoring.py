"""Word and character error rates, and how much of a difference is chance.

    result = score(read_transcripts("ref.trn"), read_transcripts("hyp.trn"))
    print(f"{result.wer:.2%}", bootstrap_interval(result))

All rates are fractions: 0.1234 is 12.34 %. A rate can exceed 1, since insertions count as errors.
"""

import html
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.errors import ScoringError
from asr.tokenizer import normalize_text
from asr.writers import write_atomically

__all__ = [
    "Confusions",
    "Edit",
    "Group",
    "Interval",
    "PairedComparison",
    "Score",
    "UtteranceScore",
    "as_dict",
    "bootstrap_interval",
    "by_length",
    "by_speaker",
    "confusions",
    "format_alignment",
    "format_comparison",
    "format_confusions",
    "format_groups",
    "format_report",
    "format_summary",
    "html_report",
    "paired_bootstrap",
    "read_transcripts",
    "score",
    "write_scores",
]

OUTPUTS = ("ref.trn", "hyp.trn", "wer.txt", "wer.json")  # of `write_scores`

LENGTH_BINS = {"0": 0, "1-5": 5, "6-10": 10, "11-20": 20, "21-40": 40, "41+": float("inf")}  # most reference words
BOOTSTRAP_CELLS = 4_000_000  # utterances drawn at a time: 32 MB of indices
NAMED_IDS = 5  # how many ids an error message names

Interval = tuple[float, float]


@dataclass(frozen=True)
class Edit:
    """One column of a word alignment. Equal words make a hit; None stands for no word on that side."""

    reference: str | None
    hypothesis: str | None

    @property
    def kind(self) -> str:
        """C correct, S substitution, D deletion, I insertion."""
        if self.reference is None:
            return "I"
        if self.hypothesis is None:
            return "D"
        return "C" if self.reference == self.hypothesis else "S"


@dataclass(frozen=True)
class UtteranceScore:
    id: str
    reference: str
    hypothesis: str
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    character_errors: int
    alignment: tuple[Edit, ...]

    @property
    def reference_words(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Errors by reference words; of an empty reference, the number of words inserted."""
        return self.errors / max(self.reference_words, 1)


@dataclass(frozen=True)
class Score:
    """Counts over all utterances; `wer` and `cer` are pooled, not averaged over utterances."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    reference_characters: int  # spaces between words included
    character_errors: int
    per_utterance: tuple[UtteranceScore, ...]  # in the order of the references

    @property
    def utterances(self) -> int:
        return len(self.per_utterance)

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        return self.errors / self.reference_words

    @property
    def cer(self) -> float:
        return self.character_errors / self.reference_characters


@dataclass(frozen=True)
class PairedComparison:
    """System A against system B on the same utterances."""

    difference: float  # WER of A minus WER of B: below 0, A is better
    low: float  # interval of the difference
    high: float
    p: float  # two-sided: how likely a difference at least so sure is if there is none


@dataclass(frozen=True)
class Group:
    """The utterances that have something in common."""

    name: str
    utterances: int
    reference_words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def wer(self) -> float:
        """Of a group without reference words: the number of words inserted."""
        return (self.substitutions + self.deletions + self.insertions) / max(self.reference_words, 1)


@dataclass(frozen=True)
class Confusions:
    """The most frequent errors, most frequent first."""

    substitutions: tuple[tuple[tuple[str, str], int], ...]  # ((reference, hypothesis), count)
    deletions: tuple[tuple[str, int], ...]
    insertions: tuple[tuple[str, int], ...]


# --- reading ---


def read_transcripts(path: str | os.PathLike[str], normalize: bool = False) -> dict[str, str]:
    """Utterance id -> text, from lines `ID TEXT`, or `TEXT (ID)` if every line ends that way (trn).

    Text is put in upper case with single spaces; `normalize` also spells out digits and drops punctuation, as
    `normalize_text`. Blank lines and lines that start with ;; are passed over. A text may be empty.

    Raises:
        ScoringError: no such file, not UTF-8, no utterances, or an id twice; names the file and the line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ScoringError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ScoringError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ScoringError(f"{path}:{line}: not UTF-8 text") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith(";;")]
    if not lines:
        raise ScoringError(f"{path}: has no utterances")
    trn = [re.fullmatch(r"(.*?)\s*\(([^\s()]+)\)", line) for _, line in lines]
    pairs: Iterable[tuple[str, str]]
    if sum(map(bool, trn)) * 2 > len(lines) and not all(trn):
        number = lines[trn.index(None)][0]
        raise ScoringError(f"{path}:{number}: has no utterance id in parentheses at its end, as most lines have")
    if all(trn):
        pairs = ((match[2], match[1]) for match in trn if match)
    else:
        pairs = ((parts[0], " ".join(parts[1:])) for parts in (line.split(maxsplit=1) for _, line in lines))
    texts: dict[str, str] = {}
    seen: dict[str, int] = {}
    for (number, _), (utterance, words) in zip(lines, pairs, strict=True):
        if utterance in texts:
            raise ScoringError(f"{path}:{number}: utterance {utterance} was already on line {seen[utterance]}")
        seen[utterance] = number
        texts[utterance] = normalize_text(words) if normalize else " ".join(words.upper().split())
    return texts


# --- counting ---


def score(
    references: Mapping[str, str], hypotheses: Mapping[str, str], names: tuple[object, object] | None = None
) -> Score:
    """Align every hypothesis with the reference of the same id and count the errors. Texts are compared as they are,
    split at white space. `names`: the files of references and hypotheses, for messages.

    Raises:
        ScoringError: the ids differ, or there is not one reference word.
    """
    import jiwer

    _check_ids(references, hypotheses, "hypothesis", "reference", names)
    ids = list(references)
    pairs = [(" ".join(references[i].split()), " ".join(hypotheses[i].split())) for i in ids]
    if not any(reference for reference, _ in pairs):
        where, advice = (f"{names[0]}: ", "; write down what was said") if names else ("", "")
        raise ScoringError(f"{where}the references hold no words, so there is no error rate{advice}")
    # An empty reference is all insertions; jiwer is not asked, as its versions differ in whether they take one.
    filled = [pair for pair in pairs if pair[0]]
    words = jiwer.process_words([pair[0] for pair in filled], [pair[1] for pair in filled])
    characters = jiwer.process_characters([pair[0] for pair in filled], [pair[1] for pair in filled])
    aligned = zip(words.alignments, characters.alignments, strict=True)
    utterances = []
    for utterance, (reference, hypothesis) in zip(ids, pairs, strict=True):
        if reference:
            word_chunks, character_chunks = next(aligned)
            edits = tuple(_edits(word_chunks, reference.split(), hypothesis.split()))
            character_errors = sum(_chunk_errors(chunk) for chunk in character_chunks)
        else:
            edits = tuple(Edit(None, word) for word in hypothesis.split())
            character_errors = len(hypothesis)
        counts = Counter(edit.kind for edit in edits)
        utterances.append(
            UtteranceScore(
                id=utterance,
                reference=reference,
                hypothesis=hypothesis,
                hits=counts["C"],
                substitutions=counts["S"],
                deletions=counts["D"],
                insertions=counts["I"],
                character_errors=character_errors,
                alignment=edits,
            )
        )
    return Score(
        hits=sum(u.hits for u in utterances),
        substitutions=sum(u.substitutions for u in utterances),
        deletions=sum(u.deletions for u in utterances),
        insertions=sum(u.insertions for u in utterances),
        reference_words=sum(u.reference_words for u in utterances),
        reference_characters=sum(len(u.reference) for u in utterances),
        character_errors=sum(u.character_errors for u in utterances),
        per_utterance=tuple(utterances),
    )


def _check_ids(
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    what: str,
    of: str,
    names: tuple[object, object] | None = None,
) -> None:
    for ids, others, lacking, files in ((wanted, found, what, names), (found, wanted, of, names and names[::-1])):
        missing = [i for i in ids if i not in others]
        if not missing:
            continue
        count = f"{len(missing)} of {len(ids)} utterances"
        some = ", ".join(missing[:NAMED_IDS]) + (", ..." if len(missing) > NAMED_IDS else "")
        if not files:
            raise ScoringError(f"{count} have no {lacking}: {some}")
        source, lacks = files
        advice = f"add them, or take them out of {source}"
        raise ScoringError(f"{lacks}: {count} of {source} have no {lacking}: {some}; {advice}")


def _edits(chunks: Iterable[Any], reference: list[str], hypothesis: list[str]) -> Iterator[Edit]:
    for chunk in chunks:
        spoken = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        heard = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            yield from (Edit(word, None) for word in spoken)
        elif chunk.type == "insert":
            yield from (Edit(None, word) for word in heard)
        else:
            yield from (Edit(*pair) for pair in zip(spoken, heard, strict=True))


def _chunk_errors(chunk: Any) -> int:
    if chunk.type == "equal":
        return 0
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)


# --- chance ---


def bootstrap_interval(score: Score, samples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of the WER: (low, high) between which it lies in `level` of test sets drawn, utterance by
    utterance and with replacement, from this one."""
    errors = np.array([u.errors for u in score.per_utterance], dtype=float)
    words = np.array([u.reference_words for u in score.per_utterance], dtype=float)
    rates = _resampled_ratio(errors, words, samples, seed)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap(
    score_a: Score, score_b: Score, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> PairedComparison:
    """Compare two systems on one test set; each draw takes the same utterances of both.

    Raises:
        ScoringError: the scores are not of the same utterances with the same references.
    """
    of_a = {u.id: u for u in score_a.per_utterance}
    of_b = {u.id: u for u in score_b.per_utterance}
    _check_ids(of_a, of_b, "score of the second system", "score of the first system")
    for utterance in of_a.values():
        if utterance.reference != of_b[utterance.id].reference:
            raise ScoringError(f"the two systems were scored against different references: utterance {utterance.id}")
    differences = np.array([u.errors - of_b[i].errors for i, u in of_a.items()], dtype=float)
    words = np.array([u.reference_words for u in of_a.values()], dtype=float)
    rates = _resampled_ratio(differences, words, samples, seed)
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    # The test set itself counts as one more draw, so that p is never 0.
    tail = min(np.count_nonzero(rates <= 0), np.count_nonzero(rates >= 0))
    p = min(1.0, 2 * (tail + 1) / (samples + 1))
    return PairedComparison(float(score_a.wer - score_b.wer), float(low), float(high), p)


def _resampled_ratio(
    errors: NDArray[np.float64], words: NDArray[np.float64], samples: int, seed: int
) -> NDArray[np.float64]:
    """sum(errors) / sum(words) of `samples` draws of all utterances with replacement: (samples,)."""
    count = len(words)
    generator = np.random.default_rng(seed)
    rows = max(1, BOOTSTRAP_CELLS // count)
    rates = np.empty(samples)
    for start in range(0, samples, rows):
        drawn = generator.integers(count, size=(min(rows, samples - start), count))
        # A draw of nothing but empty references has no rate; taking it for one word keeps it finite.
        rates[start : start + rows] = errors[drawn].sum(axis=1) / np.maximum(words[drawn].sum(axis=1), 1)
    return rates


# --- looking closer ---


def by_length(score: Score) -> list[Group]:
    """Groups by number of reference words, shortest first: 0, 1-5, 6-10, 11-20, 21-40, 41+; empty ones left out."""

    def name(utterance: UtteranceScore) -> str:
        return next(name for name, longest in LENGTH_BINS.items() if utterance.reference_words <= longest)

    groups = {group.name: group for group in _grouped(score, name)}
    return [groups[name] for name in LENGTH_BINS if name in groups]


def by_speaker(score: Score) -> list[Group]:
    """Groups by speaker, which is the id up to its first `-`; the highest WER first."""
    groups = _grouped(score, lambda utterance: utterance.id.split("-", 1)[0])
    return sorted(groups, key=lambda group: (-group.wer, group.name))


def _grouped(score: Score, name: Callable[[UtteranceScore], str]) -> list[Group]:
    members: dict[str, list[UtteranceScore]] = {}
    for utterance in score.per_utterance:
        members.setdefault(name(utterance), []).append(utterance)
    return [
        Group(
            name=group,
            utterances=len(utterances),
            reference_words=sum(u.reference_words for u in utterances),
            substitutions=sum(u.substitutions for u in utterances),
            deletions=sum(u.deletions for u in utterances),
            insertions=sum(u.insertions for u in utterances),
        )
        for group, utterances in members.items()
    ]


def confusions(score: Score, top: int | None = None) -> Confusions:
    """What is most often mistaken, left out and put in; the first `top` of each, or all."""
    substitutions: Counter[tuple[str, str]] = Counter()
    deletions: Counter[str] = Counter()
    insertions: Counter[str] = Counter()
    for edit in (edit for utterance in score.per_utterance for edit in utterance.alignment):
        if edit.reference is None:
            insertions[edit.hypothesis or ""] += 1
        elif edit.hypothesis is None:
            deletions[edit.reference] += 1
        elif edit.reference != edit.hypothesis:
            substitutions[edit.reference, edit.hypothesis] += 1

    def first(counter: Counter[Any]) -> tuple[tuple[Any, int], ...]:
        return tuple(sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top])

    return Confusions(first(substitutions), first(deletions), first(insertions))


# --- reports ---


def format_alignment(utterance: UtteranceScore, width: int = 100) -> str:
    """The alignment as rows REF, HYP and EVAL (S, D, I), one word under the other, broken at `width` characters.

    >>> print(format_alignment(score({"u": "THE CAT SAT"}, {"u": "A CAT"}).per_utterance[0]))
    REF:  THE CAT SAT
    HYP:  A   CAT ***
    EVAL: S       D
    """
    blocks: list[list[tuple[str, str, str]]] = [[]]
    used = 0
    for edit in utterance.alignment:
        size = max(len(edit.reference or ""), len(edit.hypothesis or ""))
        if used and used + size > width - 6:
            blocks.append([])
            used = 0
        gap = "*" * size
        kind = "" if edit.kind == "C" else edit.kind
        column = (
            gap if edit.reference is None else edit.reference,
            gap if edit.hypothesis is None else edit.hypothesis,
        )
        blocks[-1].append((column[0].ljust(size), column[1].ljust(size), kind.ljust(size)))
        used += size + 1
    rows = []
    for block in blocks:
        for row, label in enumerate(("REF: ", "HYP: ", "EVAL:")):
            rows.append(" ".join([label, *(column[row] for column in block)]).rstrip())
    return "\n".join(rows)


def format_summary(score: Score) -> str:
    """The rates, the counts and the interval: four lines."""
    low, high = bootstrap_interval(score)
    return "\n".join(
        [
            f"WER {score.wer:.2%}  [{score.errors} errors in {score.reference_words} words: {score.substitutions} "
            f"substitutions, {score.deletions} deletions, {score.insertions} insertions]",
            f"95% interval of the WER {low:.2%} - {high:.2%} (bootstrap by utterance)",
            f"CER {score.cer:.2%}  [{score.character_errors} errors in {score.reference_characters} characters]",
            f"{score.utterances} utterances, {sum(not u.errors for u in score.per_utterance)} of them without error",
        ]
    )


def format_comparison(comparison: PairedComparison) -> str:
    """One line: the difference in percentage points, its interval, and p."""
    points = f"{100 * comparison.difference:+.2f} points"
    interval = f"95% interval {100 * comparison.low:+.2f} to {100 * comparison.high:+.2f}"
    return f"WER of the first minus WER of the second: {points} ({interval}, p = {comparison.p:.3f})"


def format_groups(groups: Iterable[Group]) -> str:
    """One line a group."""
    groups = list(groups)
    width = max((len(group.name) for group in groups), default=0)
    return "\n".join(
        f"  {group.name:>{width}}  {group.wer:8.2%}  {group.utterances} utterances, {group.reference_words} words"
        for group in groups
    )


def format_confusions(found: Confusions) -> str:
    """Substitutions, deletions and insertions under a heading each; a kind of error that does not occur is left out."""
    sections: list[tuple[str, list[tuple[str, int]]]] = [
        ("Substitutions", [(f"{said} -> {heard}", count) for (said, heard), count in found.substitutions]),
        ("Deletions", list(found.deletions)),
        ("Insertions", list(found.insertions)),
    ]
    return "\n\n".join(
        "\n".join([f"{title}, most frequent first", *(f"  {count:5}  {text}" for text, count in entries)])
        for title, entries in sections
        if entries
    )


def format_report(score: Score, worst: int = 20) -> str:
    """What wer.txt holds: summary, WER by length, most frequent confusions and the `worst` utterances aligned."""
    parts = [
        format_summary(score),
        "WER by reference words\n" + format_groups(by_length(score)),
        format_confusions(confusions(score, 10)),
    ]
    for rank, utterance in enumerate(_worst(score)[:worst]):
        counts = f"{utterance.errors} errors in {utterance.reference_words} words"
        head = f"{utterance.id}  WER {utterance.wer:.2%}  [{counts}]\n{format_alignment(utterance)}"
        parts.append(head if rank else "Worst utterances\n\n" + head)
    return "\n\n".join(part for part in parts if part) + "\n"


def _worst(score: Score) -> list[UtteranceScore]:
    """Utterances with errors, most errors first; of as many, the shorter first."""
    wrong = [u for u in score.per_utterance if u.errors]
    return sorted(wrong, key=lambda u: (-u.errors, u.reference_words))


def as_dict(score: Score) -> dict[str, Any]:
    """The figures as they stand in wer.json; `wer`, `cer` and `wer_interval` (95 %) are fractions."""
    return {
        "wer": score.wer,
        "cer": score.cer,
        "substitutions": score.substitutions,
        "deletions": score.deletions,
        "insertions": score.insertions,
        "reference_words": score.reference_words,
        "utterances": score.utterances,
        "wer_interval": list(bootstrap_interval(score)),
    }


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; --sub: #f5c54280; --del: #f0625a80; --ins: #4aa8f080; }}
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .8rem; text-align: right; }}
th, tr > :first-child {{ text-align: left; }} tr {{ border-bottom: 1px solid var(--line); }}
.big {{ font-size: 2rem; font-weight: 600; }}
article {{ border-top: 1px solid var(--line); padding: .6rem 0; }} article small {{ opacity: .7; }}
.s, .d, .i {{ border-radius: .25rem; padding: 0 .2rem; text-decoration: none; }}
.s {{ background: var(--sub); }} .d {{ background: var(--del); text-decoration: line-through; }}
.i {{ background: var(--ins); }} .s s {{ opacity: .6; }}
</style>
<h1>{title}</h1>
<p><span class="big">{wer} WER</span> ({low} to {high} in 95 % of test sets like this one), {cer} CER</p>
<p>{words} words in {utterances} utterances: {s} substitutions, {d} deletions, {i} insertions.</p>
<h2>By number of words</h2>
<table><tr><th>Words</th><th>WER</th><th>Utterances</th></tr>
{lengths}
</table>
<h2>Utterances, worst first</h2>
<p>Marks: <span class="s"><s>said</s> heard</span> <del class="d">left out</del> <ins class="i">put in</ins></p>
{articles}
</html>
"""


def html_report(score: Score, title: str) -> str:
    """One self-contained page: the figures, then every utterance with its errors marked, worst first."""
    low, high = bootstrap_interval(score)
    right = [u for u in score.per_utterance if not u.errors]
    return _PAGE.format(
        title=html.escape(title),
        wer=f"{score.wer:.2%}",
        cer=f"{score.cer:.2%}",
        low=f"{low:.2%}",
        high=f"{high:.2%}",
        words=score.reference_words,
        utterances=score.utterances,
        s=score.substitutions,
        d=score.deletions,
        i=score.insertions,
        lengths="\n".join(
            f"<tr><td>{group.name}</td><td>{group.wer:.2%}</td><td>{group.utterances}</td></tr>"
            for group in by_length(score)
        ),
        articles="\n".join(_article(u) for u in [*_worst(score), *right]),
    )


def _article(utterance: UtteranceScore) -> str:
    marked = []
    for edit in utterance.alignment:
        said, heard = html.escape(edit.reference or ""), html.escape(edit.hypothesis or "")
        marked.append(
            {
                "C": said,
                "S": f'<span class="s"><s>{said}</s> {heard}</span>',
                "D": f'<del class="d">{said}</del>',
                "I": f'<ins class="i">{heard}</ins>',
            }[edit.kind]
        )
    head = f"{html.escape(utterance.id)} · {utterance.wer:.1%}"
    return f"<article><small>{head}</small><br>{' '.join(marked)}</article>"


def check_overwriting(written: Iterable[Path], read: Iterable[Path]) -> None:
    """ScoringError where a file that is to be written is one that is scored."""
    there = [path for path in read if os.path.exists(path)]
    for path in written:
        if os.path.exists(path) and any(os.path.samefile(path, other) for other in there):
            raise ScoringError(f"{path}: is what is scored, and would be overwritten; choose another place to write to")


def write_scores(
    output_dir: str | os.PathLike[str],
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    names: tuple[object, object] | None = None,
) -> Score:
    """Score, and write ref.trn, hyp.trn, wer.txt and wer.json into `output_dir`, which is made if need be.

    `names` as in `score`.

    Raises:
        ScoringError: as `score`; or an id that the trn format cannot hold.
        AsrError: a file cannot be written.
    """
    result = score(references, hypotheses, names)
    for utterance in result.per_utterance:
        if not re.fullmatch(r"[^\s()]+", utterance.id):
            raise ScoringError(f"utterance id {utterance.id!r} has white space or parentheses, or is empty")
    output_dir = Path(output_dir)
    read = [Path(name) for name in names or () if isinstance(name, str | os.PathLike)]
    check_overwriting([output_dir / name for name in OUTPUTS], read)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ScoringError(f"{output_dir}: cannot be made a folder ({error.strerror})") from error
    contents = (
        "".join(f"{u.reference} ({u.id})".lstrip() + "\n" for u in result.per_utterance),
        "".join(f"{u.hypothesis} ({u.id})".lstrip() + "\n" for u in result.per_utterance),
        format_report(result),
        json.dumps(as_dict(result), indent=2) + "\n",
    )
    for name, content in zip(OUTPUTS, contents, strict=True):
        with write_atomically(output_dir / name) as file:
            file.write(content)
    return result

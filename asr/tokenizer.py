"""Text <-> character ids, and ordinary English -> the characters the model writes."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["CharTokenizer", "normalize_text"]

CLOSING = "\0"  # after a word that a quotation ends with, while text is normalised
CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# 3.5kg has a point in it, 3.30pm has not.
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+(?!\d|\s?[ap]\.?m\b)|(?:st|nd|rd|th|'?s)\b)?", re.I)
_MONEY = re.compile(
    r"([$£€])\s?(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?(?:\s(hundred|thousand|million|billion|trillion)\b)?"
    r"(?:-(?=\d))?",  # of a range, and no minus
    re.I | re.A,
)
_CURRENCIES = {
    "$": (("dollar", "dollars"), ("cent", "cents")),
    "£": (("pound", "pounds"), ("penny", "pence")),
    "€": (("euro", "euros"), ("cent", "cents")),
}
_SYMBOLS = {"&": " and ", "%": " percent ", "+": " plus ", "@": " at ", "=": " equals "}
_LONGEST_NUMBER = 18  # digits; longer ones, like those that start with 0, are codes and read digit by digit
# Words that begin with an apostrophe without opening a quotation.
_CLIPPED = frozenset(
    ("TIS", "TWAS", "TWERE", "TWILL", "TWOULD", "EM", "N", "CAUSE", "BOUT", "TIL", "TILL", "ROUND", "GAINST", "NEATH")
)


_DROPPED_H = frozenset(
    ("ER", "IM", "IS", "ERE", "OME", "ERSELF", "IMSELF", "ISSELF")
)  # may end one: 'I saw 'er,' he said


def normalize_text(text: str) -> str:
    """Turn ordinary English into the characters A-Z, apostrophe and single spaces.

    Case is raised, curly quotes become straight, accents are dropped, hyphens and
    dashes become spaces, digits and sums of money are spelled out (num2words), other
    punctuation goes. An apostrophe stays only where it touches a letter: DON'T, 'TIS,
    DOGS'; a pair of them that quotes a phrase goes.

    >>> normalize_text("“Don’t – it’s the 2nd café!”")
    "DON'T IT'S THE SECOND CAFE"
    """
    text = text.replace("’", "'").replace("‘", "'").replace("`", "'").replace("´", "'")
    if any(symbol in text for symbol in _CURRENCIES):
        text = re.sub("[$£€]", " ", _MONEY.sub(_spell_money, text))
    if not text.isascii():
        from anyascii import anyascii  # accents, ligatures, typographic dashes and quotes

        text = anyascii(text)
    for symbol, words in _SYMBOLS.items():
        text = text.replace(symbol, words)
    if any(c.isdigit() for c in text):
        text = re.sub(r"(?<!\S)-(?=\d)", "minus ", text)
        text = _NUMBER.sub(lambda m: f" {_spell_number(m.group())} ", text)
    text = text.upper()
    text = re.sub(r"(?<![A-Z])(?:[A-Z]\.)+[A-Z](?![A-Z])", lambda m: m.group().replace(".", ""), text)  # U.S.A., E.G.
    # A quotation also ends where the apostrophe follows its last full stop or comma: 'Yes,' he said.
    text = re.sub(r"(?<=[A-Z]) *[.,;:!?\"-]+'(?![A-Z])", CLOSING + " ", text.replace(CLOSING, " "))
    text = re.sub(f"[^A-Z'{CLOSING} ]+", " ", text)
    text = re.sub(r"(?<=[A-Z])'{2,}(?=[A-Z])", "'", text)
    text = re.sub(r"'{2,}|(?<![A-Z])'(?![A-Z])", " ", text)
    parts = text.split()
    if "'" in text:
        _drop_quotes(parts)
    return " ".join(parts).replace(CLOSING, "")


def _drop_quotes(words: list[str]) -> None:
    """Take away, in place, the apostrophes that open and close a quotation; DOGS', RUNNIN' and 'TIS keep theirs.

    An apostrophe at the end of a word that may be clipped or possessive closes a quotation only if no other does.
    """

    def opens(word: str) -> bool:
        return word[0] == "'" and word.strip("'" + CLOSING) not in _CLIPPED

    after = 0  # the quotation before
    for i, word in enumerate(words):
        if i < after or not opens(word):
            continue
        closing = None
        for j in range(i, len(words)):
            if j > i and opens(words[j]) and words[j].strip("'" + CLOSING) not in _DROPPED_H:
                break
            if words[j][-1] == CLOSING:
                closing = j
                break
            if words[j][-1] == "'" and words[j].strip("'") not in _CLIPPED:
                certain = not words[j].endswith(("S'", "IN'", "O'", "TH'"))
                if certain or closing is None:
                    closing = j
                if certain:
                    break
        if closing is not None:
            words[i] = words[i][1:]
            words[closing] = words[closing][:-1]
            after = closing + 1


def _spell_money(match: re.Match[str]) -> str:
    symbol, whole, decimals, magnitude = match.groups()
    (one, many), (one_small, many_small) = _CURRENCIES[symbol]
    if magnitude or (decimals and len(decimals) != 3):
        return f" {_spell_number(whole + (decimals or ''))} {magnitude or ''} {many} "
    parts = []
    small = int(decimals[1:]) if decimals else 0
    if not small or whole.strip("0,"):
        parts.append(f"{_spell_number(whole)} {one if whole == '1' else many}")
    if small:
        parts.append(f"{_spell_number(str(small))} {one_small if small == 1 else many_small}")
    return f" {' and '.join(parts)} "


@lru_cache(maxsize=4096)
def _spell_number(number: str) -> str:
    from num2words import num2words

    whole, _, decimals = number.replace(",", "").lower().partition(".")
    suffix = whole.lstrip("0123456789")
    whole = whole[: len(whole) - len(suffix)]
    if len(whole) > _LONGEST_NUMBER or (len(whole) > 1 and whole[0] == "0" and not decimals):
        return " ".join(num2words(int(digit)) for digit in whole + decimals)
    value = int(whole)
    if decimals:  # digit by digit, as it is said, and with its last zeros
        return " ".join([num2words(value), "point", *(num2words(int(digit)) for digit in decimals)])
    if suffix in ("st", "nd", "rd", "th"):
        return num2words(value, to="ordinal")
    # A bare four-digit number in these ranges is nearly always a year.
    year = "," not in number and (1100 <= value <= 1999 or 2010 <= value <= 2099)
    words = num2words(value, to="year" if year else "cardinal")
    if suffix == "'s" and value % 10:
        return words + suffix
    if suffix:  # the 1990s, the 1990's
        return words[:-1] + "ies" if words.endswith("y") else words + ("es" if words.endswith("x") else "s")
    return words


class CharTokenizer:
    """Characters <-> ids. One id space serves the speller, the CTC head and the language model.

    Ids: 0 blank (CTC; padding elsewhere), 1 BOS, 2 EOS, 3 unknown, then the characters.
    """

    blank_id, bos_id, eos_id, unk_id = range(4)
    pad_id = 0

    def __init__(self, characters: str = CHARACTERS) -> None:
        if len(set(characters)) != len(characters):
            raise ValueError("characters must be distinct")
        self.characters = characters
        self._ids = {character: i for i, character in enumerate(characters, start=4)}

    def __len__(self) -> int:
        return 4 + len(self.characters)

    @property
    def space_id(self) -> int:
        return self._ids[" "]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS or EOS; a character outside the set becomes `unk_id`."""
        return [self._ids.get(character, self.unk_id) for character in text]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; the four special ids write nothing."""
        return "".join(self.characters[i - 4] for i in ids if i >= 4)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One printable label an id, for plots: the character, `_` for a space, `</s>` for EOS."""
        names = ["<b>", "<s>", "</s>", "<unk>", *self.characters.replace(" ", "_")]
        return [names[i] for i in ids]

"""Text <-> character ids, and ordinary English -> the characters the model writes."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

__all__ = ["CharTokenizer", "normalize_text"]

CHARACTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th)?\b|\d+", re.IGNORECASE)
_SYMBOLS = {"&": " and ", "%": " percent ", "+": " plus ", "@": " at ", "=": " equals "}


def normalize_text(text: str) -> str:
    """Turn ordinary English into the characters A-Z, apostrophe and single spaces.

    Case is raised, curly quotes become straight, accents are dropped, hyphens and
    dashes become spaces, digits are spelled out (num2words), other punctuation goes.
    An apostrophe stays only where it touches a letter: DON'T, 'TIS, DOGS'; a pair of
    them that quotes a phrase goes.

    >>> normalize_text("“Don’t – it’s the 2nd café!”")
    "DON'T IT'S THE SECOND CAFE"
    """
    text = text.replace("’", "'").replace("‘", "'").replace("`", "'").replace("´", "'")
    if not text.isascii():
        from anyascii import anyascii  # accents, ligatures, typographic dashes and quotes

        text = anyascii(text)
    for symbol, words in _SYMBOLS.items():
        text = text.replace(symbol, words)
    if any(c.isdigit() for c in text):
        text = _NUMBER.sub(lambda m: f" {_spell_number(m.group())} ", text)
    text = re.sub(r"[^A-Z' ]+", lambda m: "" if m.group() == "." else " ", text.upper())
    # Quotes around a phrase: an apostrophe opening a word that another closes, DOGS' and 'TIS survive.
    text = re.sub(r"(?<![A-Z'])'([A-Z][A-Z' ]*[A-Z])'(?![A-Z'])", r"\1", text)
    text = re.sub(r"(?<![A-Z])'+(?![A-Z])", " ", text)
    text = re.sub(r"'{2,}", "", text)
    return " ".join(text.split())


@lru_cache(maxsize=4096)
def _spell_number(number: str) -> str:
    from num2words import num2words

    digits = number.replace(",", "")
    ordinal = digits[-2:].lower() in ("st", "nd", "rd", "th")
    if ordinal:
        return num2words(int(float(digits[:-2])), to="ordinal")
    if len(digits) > 18 or (len(digits) > 1 and digits[0] == "0" and "." not in digits):
        return " ".join(num2words(int(digit)) for digit in digits if digit.isdigit())  # telephone numbers, codes
    if "." in digits:
        return num2words(digits)
    value = int(digits)
    # A bare four-digit number between 1100 and 1999 is nearly always a year.
    return num2words(value, to="year" if "," not in number and 1100 <= value <= 1999 else "cardinal")


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

import random
import re
import subprocess
import sys
import time

import pytest

from asr.tokenizer import CHARACTERS, CharTokenizer, normalize_text

# --- CharTokenizer ---


def test_ids():
    tokenizer = CharTokenizer()
    assert (tokenizer.blank_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.pad_id == 0
    assert len(tokenizer) == 4 + 28
    assert tokenizer.space_id == 4
    assert tokenizer.encode(" 'AZ") == [4, 5, 6, 31]


def test_round_trip():
    tokenizer = CharTokenizer()
    text = "IT'S A QUICK BROWN FOX"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(iter(tokenizer.encode(CHARACTERS))) == CHARACTERS


def test_unknown_characters():
    tokenizer = CharTokenizer()
    assert tokenizer.encode("A-a") == [6, 3, 3]
    assert tokenizer.encode("") == []


def test_special_ids_write_nothing():
    tokenizer = CharTokenizer()
    assert tokenizer.decode([1, 6, 0, 7, 3, 2]) == "AB"
    assert tokenizer.decode([]) == ""


def test_pieces():
    assert CharTokenizer().pieces([0, 1, 2, 3, 4, 5, 6]) == ["<b>", "<s>", "</s>", "<unk>", "_", "'", "A"]


def test_own_characters():
    tokenizer = CharTokenizer(" BA")
    assert len(tokenizer) == 7
    assert tokenizer.encode("AB ") == [6, 5, 4]
    with pytest.raises(ValueError, match=r"^characters must be distinct$"):
        CharTokenizer("ABA")


# --- normalize_text ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n", ""),
        ("Hello,  World!", "HELLO WORLD"),
        ("one\ttwo\nthree", "ONE TWO THREE"),
        ("“Don’t – it’s the 2nd café!”", "DON'T IT'S THE SECOND CAFE"),
        ("Straße, œuvre, naïve", "STRASSE OEUVRE NAIVE"),
        ("well-known—or not", "WELL KNOWN OR NOT"),
        ("a_b/c", "A B C"),
        ("salt & pepper, 50% + @home", "SALT AND PEPPER FIFTY PERCENT PLUS AT HOME"),
        ("<unk>", "UNK"),
    ],
)
def test_words(text, expected):
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("At 5 a.m. in the U.S.A., e.g. here.", "AT FIVE AM IN THE USA EG HERE"),
        ("J.R.R. Tolkien", "JRR TOLKIEN"),
        ("The end.Next one...and so on", "THE END NEXT ONE AND SO ON"),
    ],
)
def test_periods(text, expected):
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("don't o'clock", "DON'T O'CLOCK"),
        ("'tis the dogs' bone", "'TIS THE DOGS' BONE"),
        ("rock 'n' roll", "ROCK 'N' ROLL"),
        ("goin' home to 'em", "GOIN' HOME TO 'EM"),
        ("'ello 'ello", "'ELLO 'ELLO"),
        ("'hello world'", "HELLO WORLD"),
        ("he said 'don't go', then 'stay'", "HE SAID DON'T GO THEN STAY"),
        ("the 'a' and the 'b'", "THE A AND THE B"),
        ("'hello' she said 'bye'", "HELLO SHE SAID BYE"),
        ("'the dogs' bones are old' he said", "THE DOGS' BONES ARE OLD HE SAID"),
        ("'look at all the dogs' he said", "LOOK AT ALL THE DOGS HE SAID"),
        ("``quoted'' and ''quoted''", "QUOTED AND QUOTED"),
        ("' '' 5'10", "FIVE TEN"),
        ("it''s", "IT'S"),
        ("'Hello,' he said", "HELLO HE SAID"),
        ("'Yes.' 'No!' 'Why--' 'Oh?!'", "YES NO WHY OH"),
        ("‘Hello,’ he said, ‘come in.’", "HELLO HE SAID COME IN"),
        ("'The dogs' bones, all of them,' he said.", "THE DOGS' BONES ALL OF THEM HE SAID"),
        ("'Tis true,' said Tom; 'and 'twas long ago.'", "'TIS TRUE SAID TOM AND 'TWAS LONG AGO"),
        ("He said 'She cried \"Stop!\"'", "HE SAID SHE CRIED STOP"),
        ("the dogs', and,'tis", "THE DOGS' AND 'TIS"),
        ("rock-'n'-roll, runnin', goin'!", "ROCK 'N' ROLL RUNNIN' GOIN'"),
        ("'I saw 'er,' he said. 'Come 'ere!' he cried.", "I SAW 'ER HE SAID COME 'ERE HE CRIED"),
        ("The 'phone rang. 'Yes,' he said.", "THE 'PHONE RANG YES HE SAID"),
        ("He took the 'cello, and said, 'Listen,' to her.", "HE TOOK THE 'CELLO AND SAID LISTEN TO HER"),
        ("'It is 5,' he said, 'or 5 %.'", "IT IS FIVE HE SAID OR FIVE PERCENT"),
    ],
)
def test_apostrophes(text, expected):
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 and 21", "ZERO AND TWENTY ONE"),
        ("1,000 or 1000000", "ONE THOUSAND OR ONE MILLION"),
        ("120", "ONE HUNDRED AND TWENTY"),
        ("1,2,3", "ONE TWO THREE"),
        ("3.14 and 0.50", "THREE POINT ONE FOUR AND ZERO POINT FIVE ZERO"),
        ("It was 5.", "IT WAS FIVE"),
        ("-5 or −5, pages 3-5", "MINUS FIVE OR MINUS FIVE PAGES THREE FIVE"),
        ("1st 2ND 3rd 11th 1,000th", "FIRST SECOND THIRD ELEVENTH ONE THOUSANDTH"),
        ("in 1999, 1066 or 2015", "IN NINETEEN NINETY NINE ONE THOUSAND AND SIXTY SIX OR TWENTY FIFTEEN"),
        ("2007 but 1,999", "TWO THOUSAND AND SEVEN BUT ONE THOUSAND NINE HUNDRED AND NINETY NINE"),
        ("the 1990s, the '90s, 1990's", "THE NINETEEN NINETIES THE NINETIES NINETEEN NINETIES"),
        ("1999's last day", "NINETEEN NINETY NINE'S LAST DAY"),
        ("007 00.5", "ZERO ZERO SEVEN ZERO POINT FIVE"),
        ("10:30", "TEN THIRTY"),
        ("12a 4x4", "TWELVE A FOUR X FOUR"),
        ("3.5kg, a 10,000m race", "THREE POINT FIVE KG A TEN THOUSAND M RACE"),
        ("at 3.30pm", "AT THREE THIRTY PM"),
        ("$100-200", "ONE HUNDRED DOLLARS TWO HUNDRED"),
        ("５０ ² ٣", "FIFTY TWO THREE"),
        ("9" * 20 + "th", " ".join(["NINE"] * 20)),
        ("9" * 400, " ".join(["NINE"] * 400)),
    ],
)
def test_numbers(text, expected):
    assert normalize_text(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$5", "FIVE DOLLARS"),
        ("$1 or £1", "ONE DOLLAR OR ONE POUND"),
        ("$5.50", "FIVE DOLLARS AND FIFTY CENTS"),
        ("$5.00", "FIVE DOLLARS"),
        ("$0.99", "NINETY NINE CENTS"),
        ("£2.01", "TWO POUNDS AND ONE PENNY"),
        ("$1,250", "ONE THOUSAND TWO HUNDRED AND FIFTY DOLLARS"),
        ("$2.5 million", "TWO POINT FIVE MILLION DOLLARS"),
        ("€3 in €", "THREE EUROS IN"),
    ],
)
def test_money(text, expected):
    assert normalize_text(text) == expected


def test_any_text_becomes_what_the_tokenizer_knows():
    generator = random.Random(0)
    alphabet = "aAsSinth'’\"`.,-–$£€0129%&+ é日½²\n\t٣１"
    tokenizer = CharTokenizer()
    for _ in range(5000):
        text = "".join(generator.choices(alphabet, k=generator.randrange(14)))
        result = normalize_text(text)
        assert re.fullmatch(r"([A-Z']+( [A-Z']+)*)?", result), text
        assert tokenizer.unk_id not in tokenizer.encode(result)
        assert not re.search(r"(?<![A-Z])'(?![A-Z])|''", result), text
        assert normalize_text(result) == result, text


@pytest.mark.parametrize("piece", ["'a ", "a' ", "a'", "'", "1,", "a.", "- "])
def test_long_text_takes_linear_time(piece):
    start = time.process_time()
    normalize_text(piece * 100_000)
    assert time.process_time() - start < 2


def test_import_is_light():
    code = """
import sys, asr.tokenizer
asr.tokenizer.normalize_text("plain text")
print(*{"torch", "num2words", "anyascii"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

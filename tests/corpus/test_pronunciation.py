import importlib.util
import sys

import pytest

from asr.corpus.pronunciation import PHONES, Pronouncer
from asr.errors import ConfigError


def test_without_the_lexicon_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'asr\[tts\]'"):
        Pronouncer()


@pytest.mark.skipif(not importlib.util.find_spec("hibari"), reason="hibari-tts is not installed (extra tts)")
def test_words_are_said_as_they_sound_whatever_stands_beside_them():
    say = Pronouncer()

    def heard(text: str) -> str:
        return "".join(PHONES[phone - 1] for phone in say(text))

    assert heard("COLONEL") == heard("KERNEL") == "kɜɹnᵊl"
    assert heard("THEIR") == heard("THERE") != heard("THEN")
    assert heard("THE CHILD'S COLONEL") == heard("THE") + heard("CHILD'S") + heard("COLONEL")
    assert heard("BLORPTIGRAM").startswith("bl")  # in no lexicon
    assert heard("THOU HADST'") == heard("THOU HADST")  # an apostrophe alone is not said
    assert say("") == []
    assert all(1 <= phone <= len(PHONES) for phone in say("EVERY PHONE HAS ITS PLACE"))

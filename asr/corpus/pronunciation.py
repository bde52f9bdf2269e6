"""How words are said: a lexicon of American English, and a network's guess where a word is not in it."""

from __future__ import annotations

from asr.errors import ConfigError

__all__ = ["PHONES", "Pronouncer"]

# misaki's symbols: those of the International Phonetic Alphabet, but A I O W Y T as in day my so now boy water
PHONES = "AIOTWYbdfhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"


class Pronouncer:
    """Text -> phones, by hibari-tts (https://github.com/MMWilliams/hibari, Apache-2.0): lexicon and network in one.

    A word is said the same whatever stands beside it, and where it can be said in two ways (READ), in one. Stress does
    not count.

    Raises:
        ConfigError: hibari-tts is not installed.
    """

    def __init__(self) -> None:
        try:
            from hibari.g2p import G2P
        except ImportError as error:
            raise ConfigError(
                "hibari-tts, which knows how words are said, is not installed; pip install 'asr[tts]'"
            ) from error
        self._say = G2P()
        self._number = {phone: i for i, phone in enumerate(PHONES, 1)}
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """Words of A-Z and apostrophes -> places in PHONES, from 1 on; 0 is left for CTC's blank."""
        return [phone for word in text.split() for phone in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            said = self._say(word.lower())
            self._known[word] = [self._number[symbol] for symbol in said if symbol in self._number]
        return self._known[word]

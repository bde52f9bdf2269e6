"""Sentences of a prepared text with words that the recordings lack -> a text for synthetic voices to read.

python recipes/synthetic/choose.py text=data/text recordings=[data/LibriSpeech/train-clean-5] output=data/rare.txt
python recipes/language_model/prepare.py "text=[data/rare.txt]" held_out=0.02 output=data/rare
python recipes/synthetic/prepare.py text=data/rare hours=35 output=data/synthetic

Every setting, with what it means: conf/choose.yaml.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.config import as_list, from_mapping
from asr.corpus.choose import ChooseConfig, choose_sentences, wanted_words, word_counts
from asr.corpus.text import PreparedText, normalized, read_sentences
from asr.errors import ConfigError
from asr.writers import write_atomically

BANDS = ((1, 30), (31, 100), (101, 300), (301, 1000), (1001, None))


@hydra.main(version_base="1.3", config_path="../../conf", config_name="choose")
@friendly_errors
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    text, recordings, output = (settings.pop(name) for name in ("text", "recordings", "output"))
    recordings = as_list(recordings)
    if not recordings:
        raise ConfigError("recordings: nothing to compare with; give recordings=[FOLDER,...]")
    recorded = word_counts(normalized(line) for path in recordings for line in read_sentences(path))
    sentences = PreparedText(text, "train").lines()
    in_text = word_counts(sentences)
    choice = from_mapping(ChooseConfig, settings)
    chosen = choose_sentences(sentences, wanted_words(in_text, recorded, choice), choice)
    said = word_counts(chosen)
    for low, high in BANDS:
        words = [w for w, n in in_text.items() if n >= low and (high is None or n <= high) and w not in recorded]
        if words:
            times = f"{low:,} to {high:,} times" if high else f"{low:,} times or more"
            mean = sum(said[w] for w in words) / len(words)
            print(f"not recorded, in the text {times}: {len(words):,} words, now said {mean:.1f} times each")
    with write_atomically(Path(output)) as out:
        out.writelines(f"{sentence}\n" for sentence in chosen)
    print(f"wrote {output}: {len(chosen):,} of {len(sentences):,} sentences, {said.total():,} words")


if __name__ == "__main__":
    main()

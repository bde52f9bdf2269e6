"""Text files -> what train.py reads: normalised, shuffled character ids, without what overlaps with evaluation data.

python recipes/language_model/prepare.py "text=[sentences.txt.xz]" "overlap_with=[data/LibriSpeech/dev-clean]"
python recipes/language_model/prepare.py "text=[books/,data/LibriSpeech/train-clean-5]" on_overlap=stop output=data/text

One sentence a line. Every setting, with what it means: conf/prepare_text.yaml.
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.corpus.text import prepare_text


@hydra.main(version_base="1.3", config_path="../../conf", config_name="prepare_text")
@friendly_errors
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    output = settings.pop("output")
    summary = prepare_text(settings.pop("text"), output, **settings)
    print(summary)
    if config.overlap_with:
        print(f"checked against {summary.ngrams:,} different {config.ngram} words in a row")
    else:
        print("not checked against any evaluation transcripts: overlap_with=[] names none")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()

"""New utterances of a training subset's own words -> another subset for prepare.py.

python recipes/synthetic/splice.py root=CORPORA subset=an4-train model_dir=runs/an4/model output=data/spliced_an4
python recipes/an4/prepare.py corpus.root=CORPORA corpus.spliced=data/spliced_an4 output=data/an4

Which words change places, and how many: conf/splice.yaml.
"""

import hydra
from omegaconf import DictConfig, OmegaConf

from asr._exit import friendly_errors
from asr.config import from_mapping
from asr.training.splice import SpliceConfig, splice_subset


@hydra.main(version_base="1.3", config_path="../../conf", config_name="splice")
@friendly_errors
def main(config: DictConfig) -> None:
    settings = OmegaConf.to_container(config, resolve=True)
    where = {name: settings.pop(name) for name in ("root", "subset", "output", "model_dir")}
    folder = splice_subset(**where, config=from_mapping(SpliceConfig, settings))
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()

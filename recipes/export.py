"""A training run -> a model folder, as training itself writes one when it ends.

python recipes/export.py runs/mini                       # its best checkpoint -> runs/mini/model
python recipes/export.py runs/mini --checkpoint last --output models/today
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from asr._exit import friendly_errors
from asr.errors import ConfigError, ModelError

EXAMPLES = """Write the model folder of a run, finished or not, that decode.py and `asr transcribe --model` take.

Examples:

\b
python recipes/export.py runs/mini                        the best checkpoint, into runs/mini/model
python recipes/export.py runs/mini --checkpoint last      the newest one, before training is over, say
python recipes/export.py runs/mini --average 5            the mean of the 5 best; training.average=5 keeps so many
python recipes/export.py runs/mini/checkpoints/epoch-0011.ckpt --output models/epoch-11
python recipes/export.py runs/mini runs/more --output models/mean     the mean of a run and of one that went on from it
python recipes/export.py runs/more asr/assets/mini --output models/mean     and of a run and a model that is there
python recipes/export.py runs/mini --int8 --output models/small     in half the room, 8 bits a weight instead of 16
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def choose(run: Path, checkpoint: str, average: int) -> list[Path]:
    """The checkpoints of a run folder that are meant, the best first.

    Raises:
        AsrError: there are none, or not so many.
    """
    from asr.training.checkpoint import latest_checkpoint, load_checkpoint
    from asr.training.run import dev_records

    folder = run / "checkpoints"
    if not folder.is_dir():
        raise ModelError(f"{run}: not a run folder: it has no checkpoints/; give the output= of a training run")
    if average > 1 and checkpoint != "best":
        raise ConfigError(f"--average takes the best checkpoints; leave out --checkpoint {checkpoint}")
    if checkpoint == "last":
        last = latest_checkpoint(folder)
        if last is None:
            raise ModelError(f"{folder}: no readable checkpoint")
        return [last]
    if checkpoint != "best":
        path = Path(checkpoint)
        return [path if path.is_file() or not (folder / path).is_file() else folder / path]
    records = dev_records(run)
    kept = sorted(
        folder.glob("best*.ckpt"),
        key=lambda path: records.get(load_checkpoint(path)["global_step"], {}).get("dev/wer", float("inf")),
    )
    if not kept:
        raise ModelError(f"{folder}: no validated checkpoint yet; --checkpoint last takes the newest")
    if len(kept) < average:
        raise ConfigError(f"{folder}: only {len(kept)} of the best are kept; train with training.average={average}")
    return kept[:average]


@app.command(help=EXAMPLES)
@friendly_errors
def main(
    runs: Annotated[
        list[Path],
        typer.Argument(help="the output= of a training run, or a checkpoint; of several, and of models, the mean"),
    ],
    checkpoint: Annotated[str, typer.Option(metavar="best|last|PATH", help="by dev WER, by time, or a file")] = "best",
    average: Annotated[int, typer.Option(metavar="N", min=1, help="the mean of the N best checkpoints' weights")] = 1,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="model folder; by default model/ in the run")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8 bits a weight of a matrix, with a scale a row")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from asr.training.run import export

    if len(runs) > 1 and output is None:
        raise ConfigError("the mean of several runs belongs to none of them; say where to write it with --output DIR")
    models = [run for run in runs if (run / "model.safetensors").is_file()]
    runs = [run for run in runs if run not in models]
    if not runs:
        raise ConfigError(f"{models[0]}: is a model already; name a training run too, for their mean")
    chosen: list[Path] = []
    for run in runs:
        if run.suffix == ".ckpt":
            if (checkpoint, average) != ("best", 1):
                raise ConfigError(f"{run}: is one checkpoint; give the run's folder with --checkpoint or --average")
            chosen.append(run)
        elif not run.exists():
            raise ModelError(f"{run}: no such run folder")
        else:
            chosen += choose(run, checkpoint, average)
    last = runs[-1].absolute()
    export(chosen + models, last.parent.parent if last.suffix == ".ckpt" else runs[-1], output, int8=int8)


if __name__ == "__main__":
    app()

"""What `recipes/quickstart.sh` shows once everything is installed: text, WER, and an attention plot.

python recipes/quickstart/run.py
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import asr
from asr import audio as audio_files
from asr import scoring
from asr._exit import friendly_errors
from asr.plots import plot_attention, save_figure

HERE = Path(__file__).parent


def main(
    audio: Annotated[Path, typer.Option(help="Folder of audio with a reference.txt.")] = HERE / "audio",
    model: Annotated[str | None, typer.Option(help="Model folder, or the name of one that ships.")] = None,
    output: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("runs/quickstart"),
    beam: Annotated[int, typer.Option(min=1)] = 8,
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    references = scoring.read_transcripts(audio / "reference.txt", normalize=True)
    recogniser = asr.load_model(model, beam=beam)
    lm = "with a language model" if recogniser.language_model else "no language model"
    files = [audio / f"{name}.flac" for name in references]
    hypotheses, seconds, work = {}, 0.0, 0.0
    for path, result in recogniser.transcribe_all(files):
        if isinstance(result, Exception):
            raise result
        hypotheses[path.stem] = result.text
        seconds += result.duration
        work += result.duration * (result.real_time_factor or 0.0)
    score = scoring.score(references, hypotheses)
    table = Table("file", "WER", "recognised", box=None)
    for utterance in score.per_utterance:
        table.add_row(utterance.id, f"{utterance.wer:.1%}", utterance.hypothesis)
    console.print(table)
    console.print(
        f"\nTotal: WER {score.wer:.1%}, CER {score.cer:.1%} over {score.reference_words} words; {seconds:.1f} s of "
        f"audio in {work:.1f} s (model {recogniser.bundle.name}, beam {beam}, {lm})"
    )
    plot = attention_plot(recogniser, files[0], output / "attention.png")
    console.print(f"""Attention plot: {plot}

What next:
  source .venv/bin/activate
  asr transcribe YOUR.wav                  your own audio: WAV, FLAC, MP3, OGG ...
  asr info                                 what the model is, and how well it does on people
  recipes/an4/run.sh                       train one yourself in less than two hours (downloads AN4, 64 MB)
  recipes/librispeech/run.sh               train on mini LibriSpeech (downloads 0.5 GB)""")


def attention_plot(recogniser: "asr.transcriber.Transcriber", path: Path, target: Path) -> Path:
    bundle = recogniser.bundle
    samples = torch.from_numpy(audio_files.load(path))
    log_mel = bundle.frontend(samples)
    best = recogniser.recognise([bundle.encode(samples)])[0][0]
    figure = plot_attention(best.attention.numpy(), bundle.tokenizer.pieces(best.tokens), log_mel.numpy(),
                            title=f"{path.name}: {best.text}")  # fmt: skip
    return save_figure(figure, target)


if __name__ == "__main__":
    friendly_errors(lambda: typer.run(main))()

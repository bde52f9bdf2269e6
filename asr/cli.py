"""The `asr` command: transcribe, score, info."""

from __future__ import annotations

import json
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from asr import __version__
from asr.errors import AsrError, AudioError, ConfigError

__all__ = ["app", "main"]

app = typer.Typer(
    help="A small English speech recogniser of the Listen-Attend-and-Spell kind.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Format(StrEnum):
    txt = "txt"
    json = "json"


Model = Annotated[str | None, typer.Option(help="Model folder, or the name of one that ships.", show_default="shipped")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"asr {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command(
    epilog="""Examples:

    asr transcribe talk.wav

    asr transcribe --beam 8 --format json *.flac > talks.jsonl

    asr transcribe --format txt --output-dir texts recordings/*.mp3
"""
)
def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Audio files: WAV, FLAC, MP3, OGG/Opus ...", show_default=False)],
    model: Model = None,
    beam: Annotated[
        int | None,
        typer.Option(min=1, help="Hypotheses kept in the search; 1 is greedy.", show_default="the model's, else 1"),
    ] = None,
    lm_weight: Annotated[
        float | None,
        typer.Option(min=0, help="How much the language model counts; 0: not at all.", show_default="the model's"),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    format: Annotated[Format, typer.Option(help="txt: one line a file; json: one object a line.")] = Format.txt,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write one file each, AUDIO's name with .txt or .json, here.")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="With --format json: when each word was said.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")] = None,
) -> None:
    """Write down what is said in AUDIO.

    Only results go to standard output, in the order of the files. A file that cannot be read is reported on standard
    error, the others are transcribed all the same, and the exit code is 2.
    """
    targets = _targets(audio, output_dir, format.value)
    import torch

    from asr.transcriber import load_model
    from asr.writers import get_writer, write_file

    if threads:
        torch.set_num_threads(threads)
    recogniser = load_model(model, device.value, words=words, beam=beam, lm_weight=lm_weight)
    writer = get_writer("jsonl" if format is Format.json else "txt")
    failed = False
    with _progress(len(audio)) as advance:
        for i, (path, result) in enumerate(recogniser.transcribe_all(audio)):
            if isinstance(result, AudioError):
                failed = True
                _complain(result)
            elif output_dir:
                write_file(result, targets[i], format.value)
            else:
                writer.write(result, sys.stdout)
                sys.stdout.flush()
            advance(path.name)
    if failed:
        raise typer.Exit(2)


def _targets(audio: list[Path], output_dir: Path | None, suffix: str) -> list[Path]:
    """One output file a source; found out before any work is done whether they can be written."""
    if output_dir is None:
        return []
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{output_dir}: cannot write there ({error.strerror}); choose another --output-dir"
        ) from error
    stems = Counter(path.stem for path in audio)
    # a.wav and a.mp3, or x/a.wav and y/a.wav, must not overwrite each other.
    names = [p.stem if stems[p.stem] == 1 else "_".join(p.parts).replace("/", "") for p in audio]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(f"{repeated[0]}: named more than once; name each file once")
    return [output_dir / f"{name}.{suffix}" for name in names]


class _progress:
    """A bar on standard error, where that is a terminal and there is more than one file."""

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        disabled = total < 2 or not console.is_terminal
        self.bar = Progress(*columns, console=console, transient=True, disable=disabled, redirect_stdout=False)
        self.task = self.bar.add_task("transcribing", total=total)

    def __enter__(self) -> Any:
        self.bar.start()
        return lambda name: self.bar.update(self.task, advance=1, description=name)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


@app.command(epilog="Example:\n\n    asr info --model runs/mini/model")
def info(
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what a model is, what it was trained on, and its known word error rates."""
    from asr.bundle import load_bundle
    from asr.transcriber import find_model

    folder = find_model(model)
    bundle = load_bundle(folder)
    encoder, speller = bundle.model.config.encoder, bundle.model.config.speller
    facts = {
        "model": bundle.name,
        "path": str(folder),
        "parameters": bundle.model.num_parameters,
        "size_mb": round((folder / "model.safetensors").stat().st_size / 1e6, 1),
        "encoder": f"{encoder.layers} BiLSTM layers, d = {encoder.d}, N = T / {encoder.reduction}",
        "speller": f"{speller.hops} LSTM x d = {speller.d}, context: {speller.context}"
        + (f" ({speller.attention})" if speller.context == "attention" else "")
        + (", input feeding" if speller.input_feeding else ""),
        "frontend": f"{bundle.frontend.config.n_mels} log-mel bands at {bundle.frontend.config.sample_rate} Hz",
        "characters": bundle.tokenizer.characters,
        "training": bundle.training,
    }
    if bundle.language_model_path:
        settings = bundle.language_model_settings
        facts["language_model"] = {
            "kind": settings.get("kind"),
            "size_mb": round((folder / "language_model.safetensors").stat().st_size / 1e6, 1),
            **{name: settings[name] for name in ("training", "decoding") if settings.get(name)},
        }
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{name}: {key}", item)
        elif isinstance(value, list):
            table.add_row(name, ", ".join(map(str, value)))
        else:
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))

    for key, value in facts.items():
        add(key, value)
    Console().print(table, markup=False)


class By(StrEnum):
    speaker = "speaker"
    length = "length"


@app.command(
    "score",
    epilog="""Examples:

    asr score ref.trn hyp.trn

    asr score ref.txt greedy.txt beam.txt --by length

    asr score ref.trn hyp.trn --json
""",
)
def score_command(
    reference: Annotated[Path, typer.Argument(metavar="REF", help="`ID TEXT` lines, or trn: `TEXT (ID)`.")],
    hypothesis: Annotated[Path, typer.Argument(metavar="HYP", help="What was recognised, in either form.")],
    second: Annotated[
        Path | None, typer.Argument(metavar="[HYP_B]", help="Another system to compare HYP with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON; rates are fractions.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with every error marked.")] = None,
    by: Annotated[By | None, typer.Option(help="Break the WER down.")] = None,
    top: Annotated[int, typer.Option("--confusions", min=0, help="Print the N most frequent errors.")] = 0,
    normalize: Annotated[bool, typer.Option("--normalize", help="Spell out digits, drop punctuation.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write ref.trn, hyp.trn, wer.txt and wer.json here.")] = None,
) -> None:
    """Word and character error rates of HYP against REF."""
    from dataclasses import asdict

    from asr import scoring
    from asr.writers import write_atomically

    references = scoring.read_transcripts(reference, normalize)
    hypotheses = scoring.read_transcripts(hypothesis, normalize)
    result = scoring.write_scores(output, references, hypotheses) if output else scoring.score(references, hypotheses)
    other = second and scoring.score(references, scoring.read_transcripts(second, normalize))
    comparison = other and scoring.paired_bootstrap(result, other)
    groups = {By.speaker: scoring.by_speaker, By.length: scoring.by_length}[by](result) if by else []
    frequent = scoring.confusions(result, top)
    if html:
        with write_atomically(html) as file:
            file.write(scoring.html_report(result, f"{hypothesis.name} against {reference.name}"))
    if as_json:
        figures = scoring.as_dict(result)
        if other and comparison:
            figures |= {"second": scoring.as_dict(other), "comparison": asdict(comparison)}
        if by:
            figures[f"by_{by}"] = [asdict(group) | {"wer": group.wer} for group in groups]
        if top:
            figures["confusions"] = asdict(frequent)
        typer.echo(json.dumps(figures, indent=2))
        return
    typer.echo(scoring.format_summary(result))
    if other and comparison:
        typer.echo(f"\n{second}\n{scoring.format_summary(other)}\n\n{scoring.format_comparison(comparison)}")
    if by:
        typer.echo(f"\nWER by {by}\n{scoring.format_groups(groups)}")
    if top:
        typer.echo(f"\n{scoring.format_confusions(frequent)}")


def _complain(error: AsrError) -> None:
    print("error:", " ".join(str(error).split()), file=sys.stderr)


def main() -> None:
    """Entry point: every AsrError becomes one line on standard error and exit code 2."""
    try:
        app()
    except AsrError as error:
        _complain(error)
        sys.exit(2)
    except BrokenPipeError:  # asr transcribe ... | head
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()

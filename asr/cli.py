"""The `asr` command: transcribe, listen, score, info."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from asr import __version__
from asr.errors import AsrError, AudioError, ConfigError, is_out_of_memory

if TYPE_CHECKING:
    import torch

    from asr.decoding.beam_search import Hypothesis
    from asr.transcriber import Transcriber
    from asr.writers import Segment, Transcript

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


class Voice(StrEnum):
    file = "file"
    all = "all"


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


Beam = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Hypotheses kept in the search; 1 is greedy, and without the language model unless --lm-weight is given.",
        show_default="as `asr info` says",
    ),
]
LmWeight = Annotated[
    float | None,
    typer.Option(min=0, help="How much the language model counts; 0: not at all.", show_default="as `asr info` says"),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.", show_default="all cores")]


@app.command(
    epilog="""Examples:

    asr transcribe talk.wav

    asr transcribe --format srt,json --words --output-dir subtitles lectures/*.mp3

    asr transcribe --recursive --skip-existing --output-dir texts recordings

    asr transcribe --adapt file lecture.mp3

    ffmpeg -i film.mkv -f wav - | asr transcribe --format vtt - > film.vtt
"""
)
def transcribe(
    audio: Annotated[
        list[Path],
        # Here and below, what cannot be read is reported by what reads it, and not by Typer.
        typer.Argument(
            readable=False, help="Audio files (WAV, FLAC, MP3, OGG/Opus ...), folders, or - for standard input."
        ),
    ],
    model: Model = None,
    format: Annotated[
        str, typer.Option(help="txt, json, jsonl, srt, vtt, ctm or trn; with --output-dir several: txt,srt.")
    ] = "txt",
    output_dir: Annotated[
        Path | None,
        typer.Option(readable=False, help="Write one file each here, AUDIO's name with the format as suffix."),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out audio that has results of its name in --output-dir.")
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into folders of folders, too.")] = False,
    words: Annotated[bool, typer.Option("--words", help="In json and jsonl: when each word was said.")] = False,
    nbest: Annotated[int, typer.Option(min=1, help="In json and jsonl: the N best readings of each segment.")] = 1,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot",
            help="Draw spectrogram and attention of each segment: NAME.START.png in --output-dir, else in the current "
            "folder.",
        ),
    ] = False,
    beam: Beam = None,
    lm_weight: LmWeight = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Segments decoded together; more is faster.", show_default="32; 16 with a language model"
        ),
    ] = None,
    vad: Annotated[
        bool, typer.Option("--vad/--no-vad", help="Leave out what is no speech, or only what is silence.")
    ] = True,
    max_segment: Annotated[float, typer.Option(min=1, help="Longest segment, s.")] = 20.0,
    adapt: Annotated[
        Voice | None,
        typer.Option(
            help="Search twice and get used to the voice in between, one for each FILE or one for ALL files: fewer "
            "errors in minutes of speech, three times the time."
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Write down what is said in AUDIO.

    Audio of any length is cut into segments at pauses. Only results go to standard output, in the order of the files;
    there, json is one object a line; --output-dir has each file's as soon as it is done. What cannot be read or written
    is reported on standard error, the others are transcribed all the same, and the exit code is 2.
    """
    from asr.files import find_audio, open_audio, output_paths, parse_formats

    failed = False

    def complain(error: AsrError) -> None:
        nonlocal failed
        failed = True
        _complain(error)

    formats = parse_formats(format)
    files, errors = find_audio(audio, recursive)
    _check_output_options(formats, len(files), output_dir, skip_existing, nbest)
    folder = output_dir or (Path() if plot else None)
    outputs = output_paths(files, folder) if folder else [Path()] * len(files)
    for wrong in errors:
        complain(wrong)
    wanted = []
    for file, output in zip(files, outputs, strict=True):
        if skip_existing and all(os.path.isfile(f"{output}.{suffix}") for suffix in formats):
            continue
        try:
            wanted.append((open_audio(file), file, output))
        except AudioError as error:
            complain(error)
    if not wanted:
        raise typer.Exit(2 if failed else 0)
    import torch

    from asr.progress import AudioProgress
    from asr.segmenter import SegmenterConfig
    from asr.writers import file_ids, get_writer, write_file

    if threads:
        torch.set_num_threads(threads)
    try:
        segmentation = SegmenterConfig(max_duration=max_segment)
    except ValueError as error:
        raise ConfigError(f"--max-segment {max_segment:g}: {error}") from None
    recogniser = _load(
        model,
        device,
        batch_size=batch_size,
        words=not {"txt", "trn"}.issuperset(formats),
        vad=vad,
        segmentation=segmentation,
        adapt=adapt and adapt.value,
        beam=beam,
        lm_weight=lm_weight,
        nbest=nbest if nbest > 1 else None,
    )
    if plot:
        recogniser.on_segment = _plotter(recogniser, {file.name: output for _, file, output in wanted}, complain)
    to_stdout = get_writer("jsonl" if formats == ["json"] else formats[0])
    sources, names = [source for source, _, _ in wanted], [file.name for _, file, _ in wanted]
    output_of = {id(source): output for source, _, output in wanted}
    ids = dict(zip(map(id, files), file_ids([file.name for file in files]), strict=True))
    id_of = {id(source): ids[id(file)] for source, file, _ in wanted}
    with AudioProgress(sources) as progress:
        for source, result in recogniser.transcribe_all(sources, names, progress.advance, in_order=not output_dir):
            with progress.hidden():
                if isinstance(result, AudioError):
                    complain(result)
                    continue
                result = replace(result, id=id_of[id(source)])
                if output_dir:
                    for suffix in formats:
                        try:
                            write_file(_shown(result, suffix, words), f"{output_of[id(source)]}.{suffix}", suffix)
                        except AsrError as error:
                            complain(error)
                else:
                    to_stdout.write(_shown(result, formats[0], words), sys.stdout)
                    sys.stdout.flush()
    if failed:
        raise typer.Exit(2)


def _load(model: str | None, device: Device, **settings: Any) -> Transcriber:
    from asr.transcriber import load_model

    recogniser = load_model(model, device.value, **settings)
    gc.freeze()  # `run` has turned it off until everything that stays is there
    gc.enable()
    return recogniser


def _check_output_options(
    formats: list[str], files: int, output_dir: Path | None, skip_existing: bool, nbest: int
) -> None:
    from asr.writers import get_writer

    if not output_dir and skip_existing:
        raise ConfigError("--skip-existing looks for results in --output-dir; name one")
    if not output_dir and len(formats) > 1:
        raise ConfigError(f"--format {','.join(formats)}: several formats need --output-dir")
    if not output_dir and files > 1 and formats[0] != "json" and not get_writer(formats[0]).appendable:
        raise ConfigError(f"--format {formats[0]}: a file holds one transcript; several files need --output-dir")
    if nbest > 1 and not {"json", "jsonl"} & set(formats):
        raise ConfigError("--nbest: only json and jsonl have room for several readings; add --format json")


def _shown(transcript: Transcript, format: str, words: bool) -> Transcript:
    """The transcript without word times where json was asked for, but they were not."""
    if words or not format.startswith("json"):
        return transcript
    return replace(transcript, segments=tuple(replace(segment, words=()) for segment in transcript.segments))


def _plotter(
    recogniser: Transcriber, outputs: Mapping[str, Path], complain: Callable[[AsrError], None]
) -> Callable[..., None]:
    """A drawing of each segment, beside the results of its file."""
    from asr.plots import plot_attention, save_figure

    context = recogniser.bundle.model.config.speller.context
    if context != "attention":
        raise ConfigError(f"--plot: {recogniser.bundle.name} does not attend; its speller's context is {context}")
    frontend = recogniser.bundle.frontend.config

    def draw(name: str, segment: Segment, best: Hypothesis, frames: torch.Tensor) -> None:
        if best.attention is None:  # CTC alone has searched
            return
        weights, labels = best.attention.numpy(), [character.replace(" ", "_") for character in best.text]
        log_mel = frames.cpu().numpy()
        figure = plot_attention(
            weights, labels, log_mel, frontend.hop, segment.text, segment.start, frontend.sample_rate
        )
        try:
            save_figure(figure, f"{outputs[name]}.{segment.start:08.2f}.png")
        except AsrError as error:
            complain(error)

    return draw


@app.command(
    epilog="""Examples:

    asr listen

    asr listen --beam 1 --json | tee notes.jsonl
"""
)
def listen(
    model: Model = None,
    input_device: Annotated[
        str | None, typer.Option(help="Number or name of the microphone.", show_default="the system's")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a segment, with word times.")] = False,
    beam: Beam = None,
    lm_weight: LmWeight = None,
    device: DeviceOption = Device.auto,
    threads: Threads = None,
) -> None:
    """Write down what the microphone hears, each segment when its pause comes. Ctrl-C ends it."""
    from asr.microphone import blocks
    from asr.writers import segment_as_dict

    if threads:
        import torch

        torch.set_num_threads(threads)
    recogniser = _load(model, device, words=as_json, beam=beam, lm_weight=lm_weight)
    number = int(input_device) if input_device and input_device.isdigit() else input_device
    try:
        for segment in recogniser.listen(blocks(recogniser.sample_rate, number)):
            typer.echo(json.dumps(segment_as_dict(segment), ensure_ascii=False) if as_json else segment.text)
    except KeyboardInterrupt:
        return


@app.command(epilog="Example:\n\n    asr info --model runs/mini/model")
def info(
    model: Model = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what a model is, what it was trained on, its known word error rates, and how it searches by default."""
    from asr.bundle import load_bundle
    from asr.transcriber import choose_decoding, find_model

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
        + (", input feeding" if speller.input_feeding else "")
        + (f", reader of d = {speller.reader}" if speller.reader else ""),
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
    search = choose_decoding(bundle)
    facts["search"] = {
        field.name: getattr(search, field.name)
        for field in fields(search)
        if field.name == "beam" or getattr(search, field.name) != field.default
    }
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, default=str))  # YAML has dates
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
            table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))

    for key, value in facts.items():
        add(key, value)
    console = Console(markup=False, emoji=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = 100_000  # a line for each, as other programs search it
    with console.capture() as lines:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in lines.get().splitlines()))


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
    reference: Annotated[
        Path, typer.Argument(readable=False, metavar="REF", help="`ID TEXT` lines, or trn: `TEXT (ID)`.")
    ],
    hypothesis: Annotated[
        Path, typer.Argument(readable=False, metavar="HYP", help="What was recognised, in either form.")
    ],
    second: Annotated[
        Path | None, typer.Argument(readable=False, metavar="[HYP_B]", help="Another system to compare HYP with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON; rates are fractions.")] = False,
    html: Annotated[Path | None, typer.Option(readable=False, help="Write a page with every error marked.")] = None,
    by: Annotated[By | None, typer.Option(help="Break the WER down.")] = None,
    top: Annotated[int, typer.Option("--confusions", min=0, help="Print the N most frequent errors.")] = 0,
    normalize: Annotated[bool, typer.Option("--normalize", help="Spell out digits, drop punctuation.")] = False,
    output: Annotated[
        Path | None, typer.Option(readable=False, help="Write ref.trn, hyp.trn, wer.txt and wer.json here.")
    ] = None,
) -> None:
    """Word and character error rates of HYP against REF."""
    from asr import scoring
    from asr.writers import printable, write_atomically

    references = scoring.read_transcripts(reference, normalize)
    hypotheses = scoring.read_transcripts(hypothesis, normalize)
    others = scoring.read_transcripts(second, normalize) if second else None
    written = [output / name for name in scoring.OUTPUTS] if output else []
    scoring.check_overwriting([*written, *([html] if html else [])], filter(None, (reference, hypothesis, second)))
    compared = references, hypotheses, (reference, hypothesis)
    result = scoring.write_scores(output, *compared) if output else scoring.score(*compared)
    other = scoring.score(references, others, (reference, second)) if others is not None else None
    comparison = other and scoring.paired_bootstrap(result, other)
    groups = {By.speaker: scoring.by_speaker, By.length: scoring.by_length}[by](result) if by else []
    frequent = scoring.confusions(result, top)
    if html:
        with write_atomically(html) as file:
            title = f"{printable(hypothesis.name)} against {printable(reference.name)}"
            file.write(scoring.html_report(result, title))
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
    if second and other and comparison:
        summary = f"{scoring.format_summary(other)}\n\n{scoring.format_comparison(comparison)}"
        typer.echo(f"\n{printable(second)}\n{summary}")
    if by:
        typer.echo(f"\nWER by {by}\n{scoring.format_groups(groups)}")
    if top:
        typer.echo(f"\n{scoring.format_confusions(frequent)}")


def _complain(error: AsrError) -> None:
    print("error:", " ".join(str(error).split()), file=sys.stderr)


def run() -> NoReturn:
    """The `asr` program: `main`, started and ended quickly."""
    # PyTorch's import makes a million objects that stay: looking for garbage among them, and taking them down one by
    # one in the end, costs nearly a second.
    gc.disable()
    # Closed ones are None. What is written to standard output must not be lost without a word.
    sys.stdout = sys.stdout or open(os.open(os.devnull, os.O_RDONLY), "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may not be in the terminal's encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        code: Any = 0
    except SystemExit as stop:
        code = stop.code
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def main() -> None:
    """Every AsrError becomes one line on standard error and exit code 2; so does output that cannot be written."""
    try:
        app()  # ends quietly with exit code 1 where nobody reads any more: asr transcribe ... | head
    except AsrError as error:
        _complain(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _complain(AsrError("out of memory; lower --batch-size or --beam"))
    except OSError as error:
        if error.errno is None:  # no file's: a library that cannot be loaded, say
            raise
        reason = error.strerror
        named = f"{error.filename}: {reason}" if error.filename else f"standard output: cannot be written ({reason})"
        _complain(AsrError(named))
    sys.exit(2)


if __name__ == "__main__":
    run()

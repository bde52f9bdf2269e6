"""What the runs of the grid found: results.json, tables.md and the figures (SVG and PNG).

python recipes/bottleneck/figures.py runs/bottleneck                      # into runs/bottleneck/figures
python recipes/bottleneck/figures.py runs/bottleneck --output recipes/bottleneck/figures
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from _run import characters_by_length
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asr._exit import friendly_errors
from asr.errors import CorpusError
from asr.plots import save_figure
from asr.scoring import read_transcripts, score
from asr.writers import make_writable, write_atomically

DECODERS = {
    "fixed": "fixed",
    "cho": "Cho et al.",
    "attention": "attention",
    "input_feeding": "attention, input feeding",
}
STYLES: dict[str, dict[str, Any]] = {  # told apart without colour
    "fixed": {"color": "0.6", "linestyle": ":", "marker": "x"},
    "cho": {"color": "0.45", "linestyle": "-.", "marker": "^"},
    "attention": {"color": "0.0", "linestyle": "-", "marker": "o"},
    "input_feeding": {"color": "0.25", "linestyle": "--", "marker": "s", "markerfacecolor": "white"},
}
HOP = 0.01  # seconds between two frames
Results = dict[str, Any]


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _load(folder: Path) -> list[Results]:
    runs = []
    for path in sorted(folder.glob("*/result.json")):
        curve = [json.loads(line) for line in (path.parent / "curve.jsonl").read_text().splitlines()]
        by_step = {point["step"]: point["loss"] for point in curve}  # a run that was stopped has some steps twice
        runs.append({**json.loads(path.read_text()), "curve": sorted(by_step.items())})
    return runs


def collect(folder: Path) -> Results:
    """All that the finished runs in `folder` measured, and those in its `longer/`, which trained for more steps.

    Raises:
        CorpusError: there is none.
    """
    runs = _load(folder)
    if not runs:
        raise CorpusError(f"{folder}: no finished run there; run recipes/bottleneck/train.py experiment=bottleneck -m")
    weights = sorted({r["ctc_weight"] for r in runs})
    transcripts = next(folder.glob("*/test/ref.trn"), None)
    if transcripts is None:
        raise CorpusError(f"{folder}: no run there has test/ref.trn; run train.py again")
    references = read_transcripts(transcripts)
    return {
        "runs": len(runs),
        "processor_minutes": round(sum(r["processor_seconds"] for r in runs) / 60, 1),
        "chance": chance(references),
        "longer": _arm(_load(folder / "longer")),
        "arms": {f"{w:g}": _arm([r for r in runs if r["ctc_weight"] == w]) for w in weights},
    }


def chance(references: Mapping[str, str]) -> dict[str, float]:
    """CER in percent, by words, of a decoder that knows their number and no more: it writes another utterance."""
    texts: dict[int, list[str]] = defaultdict(list)
    for text in references.values():
        texts[len(text.split())].append(text)
    others = {n: iter([*group[1:], group[0]]) for n, group in texts.items()}
    counts = characters_by_length(score(references, {i: next(others[len(t.split())]) for i, t in references.items()}))
    return {words: round(100 * wrong / characters, 1) for words, (wrong, characters) in counts.items()}


def _arm(runs: Sequence[Results]) -> Results:
    """Of each decoder, means over the seeds, and CER in percent by words: (lowest, mean, highest) of the seeds."""
    arm = {}
    for decoder in DECODERS:
        own = [r for r in runs if r["decoder"] == decoder]
        if not own:
            continue
        by_length = {}
        for words in own[0]["characters_by_length"]:
            rates = [100 * r["characters_by_length"][words][0] / r["characters_by_length"][words][1] for r in own]
            by_length[words] = [round(x, 1) for x in (min(rates), mean(rates), max(rates))]
        arm[decoder] = {
            "seeds": len(own),
            "parameters": own[0]["parameters"],
            "steps": own[0]["steps"],
            "step_ms": round(mean(r["step_ms"] for r in own), 1),
            "minutes": round(mean(r["processor_seconds"] for r in own) / 60, 1),
            "cer": round(100 * mean(r["cer"] for r in own), 1),
            "cer_by_length": by_length,
            "curves": [r["curve"] for r in own],
        }
    return arm


def tables(results: Results) -> str:
    """Markdown: CER by length, and what each decoder costs."""
    arms = results["arms"]
    lengths = next(iter(next(iter(arms.values())).values()))["cer_by_length"]
    lines = [
        "| CTC weight | decoder | " + " | ".join(lengths) + " | all |",
        "|---|---|" + "---|" * (len(lengths) + 1),
    ]
    for weight, arm in arms.items():
        for decoder, found in arm.items():
            rates = [f"{found['cer_by_length'][n][1]:.0f}" for n in lengths]
            lines.append(f"| {weight} | {DECODERS[decoder]} | {' | '.join(rates)} | {found['cer']:.1f} |")
    lines += [
        "",
        "| CTC weight | decoder | parameters | steps | ms a step | minutes a run |",
        "|---|---|---|---|---|---|",
    ]
    for weight, arm in arms.items():
        for decoder, found in arm.items():
            lines.append(
                f"| {weight} | {DECODERS[decoder]} | {found['parameters']:,} | {found['steps']:,} | "
                f"{found['step_ms']:.0f} | {found['minutes']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def facts(results: Results) -> dict[str, str]:
    """The numbers that the README's text quotes, as it writes them."""
    found = {"runs": str(results["runs"]), "processor minutes": f"{results['processor_minutes']:.0f}"}
    found |= {f"chance, {words} words": f"{value:.1f}" for words, value in results["chance"].items()}
    arms = {f"ctc {weight}": arm for weight, arm in results["arms"].items()} | {"longer": results["longer"]}
    for name, arm in arms.items():
        for decoder, numbers in arm.items():
            found[f"{name}, {decoder}, all"] = f"{numbers['cer']:.1f}"
            found[f"{name}, {decoder}, steps"] = f"{numbers['steps']:,}"
            for words, rates in numbers["cer_by_length"].items():
                for kind, value in zip(("lowest", "mean", "highest"), rates, strict=True):
                    found[f"{name}, {decoder}, {words} words, {kind}"] = f"{value:.1f}"
    return found


# ---- figures ---------------------------------------------------------------------------------------------------------


def _panels(results: Results, draw: Callable[[Axes, str, Results], None], xlabel: str, ylabel: str) -> Figure:
    """One panel an arm, side by side on one scale."""
    arms = results["arms"]
    figure = Figure(figsize=(4.6 * len(arms), 3.8), layout="constrained")
    panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    for axes, (weight, arm) in zip(panels, arms.items(), strict=True):
        for decoder, found in arm.items():
            draw(axes, decoder, found)
        axes.set(title="no CTC" if float(weight) == 0 else f"CTC weight {weight}", xlabel=xlabel)
        axes.grid(color="0.9")
    panels[0].set_ylabel(ylabel)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def plot_cer(results: Results) -> Figure:
    """CER against the number of words: the mean of the seeds, and from the lowest to the highest of them."""

    def draw(axes: Axes, decoder: str, found: Results) -> None:
        words = [int(n) for n in found["cer_by_length"]]
        low, middle, high = np.array(list(found["cer_by_length"].values())).T
        axes.plot(words, middle, label=DECODERS[decoder], markersize=4, **STYLES[decoder])
        axes.fill_between(words, low, high, color=STYLES[decoder]["color"], alpha=0.15, linewidth=0)
        axes.set_xticks(words)

    figure = _panels(results, draw, "words in the utterance", "CER (%)")
    for axes in figure.axes:
        guess = list(results["chance"].values())
        axes.plot(range(1, len(guess) + 1), guess, color="0.75", linewidth=4, zorder=0, label="another utterance")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylim(0, 200)
    return figure


def plot_curves(results: Results) -> Figure:
    """Loss on the development set against the step, one line a seed."""

    def draw(axes: Axes, decoder: str, found: Results) -> None:
        for i, curve in enumerate(found["curves"]):
            steps, losses = np.array(curve).T
            style = {**STYLES[decoder], "markevery": 2, "markersize": 3, "linewidth": 1}
            axes.plot(steps, losses, label=DECODERS[decoder] if i == 0 else None, **style)

    figure = _panels(results, draw, "step", "loss on the development set\n(nats a character, teacher-forced)")
    figure.axes[0].set_yscale("log")
    return figure


def plot_attention(run: Path) -> Figure:
    """The spectrogram of one utterance, and under it its attention matrix after more and more steps."""
    snapshots = [np.load(path) for path in sorted((run / "attention").glob("step-*.npz"))]
    log_mel, labels = snapshots[0]["log_mel"].astype(np.float32), snapshots[0]["labels"]
    seconds = len(log_mel) * HOP
    figure = Figure(figsize=(2.0 * len(snapshots), 4.6), layout="constrained")
    grid = figure.subplots(2, len(snapshots), sharex=True, sharey="row", height_ratios=[1, 3])
    for (top, bottom), snapshot in zip(grid.T, snapshots, strict=True):
        top.imshow(log_mel.T, origin="lower", aspect="auto", extent=(0, seconds, 0, log_mel.shape[1]), cmap="Greys")
        extent = (0, seconds, len(labels), 0)
        weights = snapshot["weights"].astype(np.float32)
        bottom.imshow(weights, aspect="auto", extent=extent, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        top.set_title(f"step {int(snapshot['step'])}", fontsize=9)
        bottom.set_xlabel("time (s)")
    grid[0, 0].set_ylabel("mel band")
    grid[1, 0].set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=6, fontfamily="monospace")
    grid[1, 0].set_ylabel("character written next")
    return figure


def figures(folder: Path, results: Results) -> Iterator[tuple[str, Figure]]:
    yield "cer", plot_cer(results)
    yield "curves", plot_curves(results)
    for run in sorted(folder.glob("*-ctc0.0-seed1")):
        if (run / "attention").is_dir():
            yield f"matrix-{run.name.partition('-')[0]}", plot_attention(run)


@friendly_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of the grid's runs")
    parser.add_argument("--output", type=Path, help="folder for the figures; default: figures/ in that of the runs")
    options = parser.parse_args()
    output = options.output or options.runs / "figures"
    results = collect(options.runs)
    make_writable(output, "--output")
    with write_atomically(output / "results.json") as file:
        json.dump(results, file)
    with write_atomically(output / "tables.md") as file:
        file.write(tables(results))
    with rc_context({"svg.fonttype": "path", "image.interpolation": "nearest", "svg.hashsalt": "bottleneck"}):
        for name, figure in figures(options.runs, results):
            for kind in ("svg", "png"):
                save_figure(figure, output / f"{name}.{kind}")
    print(tables(results))
    print(f"figures: {output}")


if __name__ == "__main__":
    main()

"""The data's side of training: utterances a second out of the loader, against the trainer's appetite, and padding.

    python recipes/benchmark/data.py --manifests data/mini --subset train-clean-5
    python recipes/benchmark/data.py --manifests data/mini --subset train-clean-5 --experiment compact --json

The plan, the feature cache and the loader are those of `train.py` with the settings of the experiment; the cache is
made if it is not there. The appetite is what the model of that experiment can swallow on this machine: training
steps are timed on batches of one epoch, evenly chosen from its shortest to its longest. They hear each utterance once
and search nothing: where `consistency` or `optimal_completion` is on, training itself takes in less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _peers.asr_las import preset
from rich.console import Console
from rich.table import Table

from asr.corpus.dataset import (
    BatchLoader,
    FeatureCache,
    Portion,
    SpeechDataset,
    load_cuts,
    plan_epoch,
    split_trainable,
)
from asr.errors import AsrError
from asr.tokenizer import CharTokenizer


def padding_share(plan: Sequence[Sequence[tuple[str, float]]], frames: FeatureCache) -> float:
    """Share of the frames in an epoch's padded batches that are padding."""
    padded = real = 0
    for batch in plan:
        lengths = [frames.index[key][1] for key in batch]
        padded += max(lengths) * len(lengths)
        real += sum(lengths)
    return 1 - real / padded


def appetite(settings: dict[str, Any], dataset: SpeechDataset, plan: list[Any], steps: int) -> tuple[float, str]:
    """Utterances a second that training takes in, and the precision that it used."""
    from asr.model.loss import joint_loss
    from asr.training.module import LasModule
    from asr.training.run import choose_precision

    torch.manual_seed(1)
    module = LasModule.from_settings(settings)
    module.train()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module.to(device)
    half = choose_precision("auto") != "32-true"
    optimizer = module.configure_optimizers()
    ordered = sorted(plan, key=lambda batch: max(dataset.features.index[key][1] for key in batch))  # type: ignore[union-attr]
    chosen = [ordered[round((i + 0.5) / steps * len(ordered) - 0.5)] for i in range(steps)]
    utterances, seconds = 0, 0.0
    for index, keys in enumerate([chosen[0], *chosen]):  # the first only warms up
        batch = dataset[keys]
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        lengths, characters, counts = (t.to(device) for t in (batch.lengths, batch.characters, batch.character_lengths))
        frames = module.spec_augment(module.normalizer(batch.frames.to(device), lengths), lengths)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            out = module.model(frames, lengths, characters[:, :-1])
            attention, ctc = joint_loss(out.logits, out.ctc_logits, out.lengths, characters, counts, 0.1)
        (0.7 * attention + 0.3 * ctc).backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), 5.0)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        if index:
            utterances += len(keys)
            seconds += time.perf_counter() - start
    return utterances / seconds, "bf16" if half else "fp32"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifests", type=Path, default=Path("data/mini"), help="what prepare.py wrote")
    parser.add_argument("--subset", nargs="+", default=["train-clean-5"])
    parser.add_argument("--experiment", default="small", help="whose settings and model (default: small)")
    parser.add_argument("--speeds", nargs="+", type=float, default=[1.0], help="speed factors (default: 1.0)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are loaded and planned (default: 3)")
    parser.add_argument("--steps", type=int, default=10, help="training steps for the appetite; 0: leave it out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.steps < 0 or options.threads < 1 or min(options.speeds) <= 0:
        parser.error("--epochs and --threads are at least 1, --steps at least 0, --speeds above 0")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*eagerly read CutSet.*")
    settings = preset(options.experiment)
    corpus, tokenizer = settings["corpus"], CharTokenizer()
    try:
        cuts = load_cuts(options.manifests, options.subset)
        reduction = 2 ** len(settings["model"]["encoder"]["join_before"])
        cuts, dropped = split_trainable(cuts, tokenizer, reduction, corpus["max_duration"], max(options.speeds))
        if not cuts:
            parser.error(f"{options.manifests}: nothing to train on in {', '.join(options.subset)}")
        features = FeatureCache.open(options.manifests, cuts, sorted({1.0, *options.speeds}))
    except AsrError as error:
        parser.error(str(error))
    dataset = SpeechDataset(cuts, tokenizer, features)
    rates, paddings, plans = [], [], []
    for epoch in range(options.epochs):
        plan = plan_epoch(
            [Portion(cuts, options.speeds)],
            epoch=epoch,
            seed=1,
            batch_seconds=corpus["batch_seconds"],
            ascending=epoch == 0,
        )
        start = time.perf_counter()
        utterances = sum(len(batch.ids) for batch in BatchLoader(dataset, plan))
        rates.append(utterances / (time.perf_counter() - start))
        paddings.append(padding_share(plan, features))
        plans.append(plan)
    report: dict[str, Any] = {
        "utterances": len(cuts),
        "dropped": len(dropped),
        "hours": sum(cut.duration for cut in cuts) / 3600,
        "batches": len(plans[-1]),
        "batch_seconds": corpus["batch_seconds"],
        "loader_utterances_per_second": statistics.median(rates),
        "padding": paddings,
        "threads": options.threads,
    }
    if options.steps:
        steps = min(options.steps, len(plans[-1]))
        report["trainer_utterances_per_second"], report["precision"] = appetite(settings, dataset, plans[-1], steps)
        report["loader_over_trainer"] = report["loader_utterances_per_second"] / report["trainer_utterances_per_second"]
    if options.json:
        print(json.dumps(report))
        return
    table = Table(
        title=f"{', '.join(options.subset)}: {report['hours']:.2f} h", title_justify="left", show_header=False
    )
    table.add_row("utterances (dropped)", f"{report['utterances']} ({report['dropped']})")
    table.add_row("batches an epoch", f"{report['batches']} of up to {report['batch_seconds']:g} s")
    table.add_row("padding, share of frames, by epoch", ", ".join(f"{p:.1%}" for p in paddings))
    table.add_row("loader, utterances a second", f"{report['loader_utterances_per_second']:,.0f}")
    if options.steps:
        rate = report["trainer_utterances_per_second"]
        table.add_row(f"trainer, utterances a second ({options.experiment}, {report['precision']})", f"{rate:.1f}")
        table.add_row("loader over trainer", f"{report['loader_over_trainer']:.0f} x")
    Console().print(table)


if __name__ == "__main__":
    main()

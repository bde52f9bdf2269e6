"""Beam search over the same random encoder states: this project's `beam_search` and those of its peers.

    python recipes/benchmark/decode.py                              # beam 8, batches of 1 and 8, one CPU thread
    python recipes/benchmark/decode.py --batch 1 --no-ctc --systems asr speechbrain
    python recipes/benchmark/decode.py --device cuda --json > decode.json

Milliseconds for every character of every utterance, and the real-time factor of the search alone, without the encoder.
Weights are random and EOS comes after exactly `--tokens` characters, so that all emit the same number of them.

Every system runs in a process of its own, one after another. The peers live in `.venv-benchmark`, which
`recipes/benchmark/setup.sh` makes; without it they are skipped, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from _decode import Search
from rich.console import Console
from rich.table import Table
from train_step import check_parameters, describe_machine, native_bf16, python_for

HERE = Path(__file__).parent
SYSTEMS = ("asr", "speechbrain", "espnet/4")
MUST = {(1, False): 1.0, (8, False): 2.0, (1, True): 4.0, (8, True): 4.0}  # times SpeechBrain's speed: (batch, CTC)
AIM = 5.0
NOTES = {"espnet/4": "no batches of utterances: one after the other"}


def run_job(python: Path, job: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """One system, case and precision in a fresh process -> its numbers, or None and why there are none."""
    threads = str(job["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(
        [python, "-W", "ignore", HERE / "_decode.py", json.dumps(job)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def title(batch: int, ctc: bool) -> str:
    return f"batch {batch}, {'with' if ctc else 'without'} CTC"


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peer's time over ours in each of our precisions, a case: above 1 where this project is faster."""
    out = []
    for peer in (r for r in results if r["system"] != "asr"):
        case = (peer["batch"], peer["ctc"])
        for ours in results:
            if ours["system"] == "asr" and (ours["batch"], ours["ctc"]) == case:
                out.append(
                    {
                        "batch": peer["batch"],
                        "ctc": peer["ctc"],
                        "peer": peer["system"],
                        "precision": ours["precision"],
                        "ratio": peer["seconds"] / ours["seconds"],
                        "processor_ratio": peer["processor_seconds"] / ours["processor_seconds"],
                        "must": MUST.get(case) if peer["system"] == "speechbrain" else None,
                    }
                )
    return out


def show(report: dict[str, Any], console: Console) -> None:
    machine, search = report["machine"], report["search"]
    console.print(
        f"{machine['processor']}, {machine['threads']} thread(s), {machine['device']}, torch {machine['torch']}\n"
        f"beam {search['beam']}, {search['tokens']} characters from {search['frames']} encoder states an utterance"
    )
    for batch, ctc in dict.fromkeys((r["batch"], r["ctc"]) for r in report["results"]):
        table = Table(title=title(batch, ctc), title_justify="left")
        left = ("system", "search", "precision")
        for heading in (
            *left,
            "M parameters",
            "characters",
            "ms/character",
            "CPU ms",
            "RTF",
            "against ours",
            "repeats",
        ):
            table.add_column(heading, justify="left" if heading in left else "right")
        rows = [r for r in report["results"] if (r["batch"], r["ctc"]) == (batch, ctc)]
        for r in rows:
            pairs = [
                f"{pair['ratio']:.2f} ({pair['precision']})"
                for pair in report["ratios"]
                if (pair["batch"], pair["ctc"], pair["peer"]) == (batch, ctc, r["system"])
            ]
            table.add_row(
                f"{r['system']} {r['version']}",
                r["searcher"],
                r["precision"],
                f"{r['decoding_parameters'] / 1e6:.2f} of {r['parameters'] / 1e6:.2f}",
                str(r["emitted"]),
                f"{r['ms_per_token']:.3f}",
                f"{1000 * r['processor_seconds'] / (r['emitted'] * batch):.3f}",
                f"{r['real_time_factor']:.4f}",
                "\n".join(pairs),
                str(r["repeats"]) + ("*" if r["note"] else ""),
            )
        console.print(table)
        for r in rows:
            if r["note"]:
                console.print(f"* {r['system']} {r['precision']}: {r['note']}")
            if batch > 1 and r["system"] in NOTES:
                console.print(f"{r['system']}: {NOTES[r['system']]}")
        if must := MUST.get((batch, ctc)):
            console.print(f"against speechbrain {must:g} at least is asked for, and {AIM:g} aimed at")
    for skipped in report["skipped"]:
        where = title(skipped["batch"], skipped["ctc"])
        console.print(f"skipped: {where}: {skipped['system']} {skipped['precision']}: {skipped['reason']}")
    console.print(
        "M parameters: those that searching uses, of all; characters: emitted for each utterance;\n"
        "CPU ms: processor time a character, which a busy machine disturbs less;\n"
        "against ours: the peer's time over this project's, in each of our precisions; the peers compute in fp32"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every system (default: 1)")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), help="ours; default: fp32, bf16 if native")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="utterances at a time (default: 1 8)")
    parser.add_argument("--beam", type=int, default=Search.beam, help="hypotheses an utterance (default: 8)")
    parser.add_argument("--tokens", type=int, default=Search.tokens, help="characters an utterance (default: 150)")
    parser.add_argument("--frames", type=int, default=Search.frames, help="encoder states (default: 312)")
    parser.add_argument(
        "--ctc", action=argparse.BooleanOptionalAction, help="only with, or only without CTC (default: both)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="measured searches, after one (default: 5)")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds a system and case may take (default: 240)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.threads, options.beam, options.tokens, *options.batch) < 1:
        parser.error("--repeats, --threads, --beam, --tokens and --batch are at least 1")
    if options.frames < 2 * options.tokens:
        parser.error("--frames is at least twice --tokens: CTC needs a blank between two equal characters")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    precisions = options.precisions or (["fp32", "bf16"] if native_bf16(options.device) else ["fp32"])
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 150)

    found = {system: python_for(system) for system in options.systems}
    search = {k: getattr(options, k) for k in ("beam", "tokens", "frames")}
    results, skipped = [], []
    for ctc in (False, True) if options.ctc is None else (options.ctc,):
        for batch in options.batch:
            for system in options.systems:
                for precision in precisions if system == "asr" else ["fp32"]:
                    job = {"system": system, "precision": precision, "batch": batch, "ctc": ctc}
                    python, reason = found[system]
                    result = None
                    if python is not None:
                        console.log(f"{title(batch, ctc)}: {system} {precision} ...")
                        how = {k: getattr(options, k) for k in ("device", "threads", "repeats", "budget")}
                        result, reason = run_job(python, job | search | how)
                    if result is None:
                        skipped.append(job | {"reason": reason})
                    else:
                        results.append(result)
    check_parameters(results)
    report = {
        "machine": describe_machine(options.device, options.threads),
        "search": search,
        "results": results,
        "ratios": ratios(results),
        "skipped": skipped,
    }
    show(report, console)
    if options.json:
        print(json.dumps(report))
    if not results:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

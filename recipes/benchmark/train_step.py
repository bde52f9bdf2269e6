"""One full training step (forward, loss, backward, clip, optimiser) of this project and of its peers.

    python recipes/benchmark/train_step.py                          # cases a, b and c, one CPU thread
    python recipes/benchmark/train_step.py --cases c --systems asr speechbrain --steps 5
    python recipes/benchmark/train_step.py --device cuda --json > step.json
    python recipes/benchmark/train_step.py --profile --cases b      # where this project's time goes

Every system runs in a process of its own, one after another, on the same batches. The peers live in
`.venv-benchmark`, which `recipes/benchmark/setup.sh` makes; without it they are skipped, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _step import CASES
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEER_PYTHON = ROOT / ".venv-benchmark" / "bin" / "python"
SYSTEMS = ("asr", "speechbrain", "espnet/4", "espnet/8")
TOLERANCE = 0.10  # of parameter counts
PACKAGES = {"speechbrain": "speechbrain", "espnet/4": "espnet2", "espnet/8": "espnet2"}


def native_bf16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "native_bf16": native_bf16(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def python_for(system: str) -> tuple[Path | None, str]:
    """The interpreter that can run `system`, or None and why there is none."""
    if system == "asr":
        return Path(sys.executable), ""
    package = PACKAGES[system]
    if not PEER_PYTHON.exists():
        return None, "no .venv-benchmark: run recipes/benchmark/setup.sh"
    found = subprocess.run([PEER_PYTHON, "-c", f"import {package}"], capture_output=True, text=True)
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["cannot be imported"])[-1]
        return None, f"{reason}: run recipes/benchmark/setup.sh"
    return PEER_PYTHON, ""


def run_job(job: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """One system, case and precision in a fresh process -> its numbers, or None and why there are none."""
    python, reason = python_for(job["system"])
    if python is None:
        return None, reason
    threads = str(job["threads"])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(
        [python, "-W", "ignore", HERE / "_step.py", json.dumps(job)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""


def check_parameters(results: list[dict[str, Any]]) -> None:
    """Every peer within 10 % of this project's count, or the comparison means nothing."""
    ours = {r["parameters"] for r in results if r["system"] == "asr"}
    for result in results:
        for count in ours:
            if abs(result["parameters"] / count - 1) > TOLERANCE:
                raise SystemExit(
                    f"error: {result['system']} has {result['parameters']:,} parameters, this project {count:,}: "
                    f"more than {TOLERANCE:.0%} apart"
                )


def ratios(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peer's best precision over our best, a case: above 1 where this project is faster."""

    def best(system: str, case: str) -> dict[str, Any] | None:
        rows = [r for r in results if r["system"] == system and r["case"] == case]
        return min(rows, key=lambda r: r["seconds"], default=None)

    out = []
    for case in dict.fromkeys(r["case"] for r in results):
        ours = best("asr", case)
        for system in dict.fromkeys(r["system"] for r in results if r["system"] != "asr"):
            peer = best(system, case)
            if ours and peer:
                out.append(
                    {
                        "case": case,
                        "peer": system,
                        "peer_precision": peer["precision"],
                        "precision": ours["precision"],
                        "ratio": peer["seconds"] / ours["seconds"],
                        "processor_ratio": peer["processor_seconds"] / ours["processor_seconds"],
                    }
                )
    return out


def show(report: dict[str, Any], console: Console) -> None:
    machine = report["machine"]
    console.print(
        f"{machine['processor']}, {machine['threads']} thread(s), {machine['device']}, torch {machine['torch']}"
    )
    pairs = {(r["case"], r["peer"]): r for r in report["ratios"]}
    for case in dict.fromkeys(r["case"] for r in report["results"]):
        table = Table(title=f"({case}) {CASES[case]}", title_justify="left")
        for heading in ("system", "precision", "parameters", "s/step", "processor s", "ratio", "speech s/s", "steps"):
            table.add_column(heading, justify="left" if heading in ("system", "precision") else "right")
        rows = [r for r in report["results"] if r["case"] == case]
        for r in rows:
            pair = pairs.get((case, r["system"]))
            ratio = f"{pair['ratio']:.2f}" if pair and pair["peer_precision"] == r["precision"] else ""
            table.add_row(
                f"{r['system']} {r['version']}",
                r["precision"],
                f"{r['parameters'] / 1e6:.2f} M",
                f"{r['seconds']:.3f}",
                f"{r['processor_seconds']:.3f}",
                ratio,
                f"{r['speech_seconds'] / r['seconds']:.1f}",
                str(r["steps"]) + ("*" if r["note"] else ""),
            )
        console.print(table)
        for r in rows:
            if r["note"]:
                console.print(f"* {r['system']} {r['precision']}: {r['note']}")
    for skipped in report["skipped"]:
        console.print(f"skipped: ({skipped['case']}) {skipped['system']} {skipped['precision']}: {skipped['reason']}")
    console.print("ratio: the peer's seconds in its best precision over ours in our best")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every system (default: 1)")
    parser.add_argument("--cases", nargs="+", default=["a", "b", "c"], choices=list(CASES))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), help="default: fp32, and bf16 if native")
    parser.add_argument("--steps", type=int, default=5, help="measured steps (default: 5)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: 2)")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds a system and case may take (default: 240)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout and nothing else")
    parser.add_argument("--profile", action="store_true", help="where this project's time goes, against the floor")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.warmup < 0 or options.threads < 1:
        parser.error("--steps and --threads are at least 1, --warmup at least 0")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    if "bf16" in (options.precisions or ()) and not native_bf16(options.device):
        parser.error(f"--precisions bf16: this {options.device} has no bf16 instructions")
    precisions = options.precisions or (["fp32", "bf16"] if native_bf16(options.device) else ["fp32"])
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 120)

    if options.profile:
        from _profile import profile

        torch.set_num_threads(options.threads)
        profiles = [profile(case, p, options.device, console) for case in options.cases for p in precisions]
        if options.json:
            print(json.dumps({"machine": describe_machine(options.device, options.threads), "profiles": profiles}))
        return

    results, skipped = [], []
    for case in options.cases:
        for system in options.systems:
            for precision in precisions:
                console.log(f"({case}) {system} {precision} ...")
                job = {"system": system, "case": case, "precision": precision, "device": options.device}
                job |= {k: getattr(options, k) for k in ("threads", "steps", "warmup", "budget")}
                result, reason = run_job(job)
                if result is None:
                    skipped.append(job | {"reason": reason})
                else:
                    results.append(result)
    check_parameters(results)
    report = {
        "machine": describe_machine(options.device, options.threads),
        "results": results,
        "ratios": ratios(results),
        "skipped": [{k: s[k] for k in ("system", "case", "precision", "reason")} for s in skipped],
    }
    show(report, console)
    if options.json:
        print(json.dumps(report))
    if not results:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

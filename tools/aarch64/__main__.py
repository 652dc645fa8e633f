"""nano on an emulated ARM processor: the same ids as here, and `verify` within its bounds.

    tools/aarch64/build_root.sh ROOT LLAMA_CPP; python -m tools.aarch64 ROOT BUNDLE -o DIR

Proves that wheels, ctypes structures, alignments, GGUF files and the hand-over of embeddings are right on
aarch64, and what ARM's kernels compute. Says nothing about CUDA, TensorRT, speed or memory.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

import tools
from tinyllava_edge.console import note
from tinyllava_edge.errors import BackendError, UsageError

CHECKOUT = Path(__file__).parents[2]
PICTURES = ("docs/pictures/emoji.webp", "docs/pictures/cat.jpg", "export/pictures/wide.png")
# All that qemu has (i8mm, bf16 too), and armv8.2-a with fp16 vectors and dotprod, as an Orin has.
PROCESSORS = ("max", "cortex-a76")
# What has float16 vectors and what has none; llama.cpp is compiled for the first, so vision alone.
VISION_PROCESSORS = (*PROCESSORS, "cortex-a72")
# Embeddings of nano, the worst stored picture, 3 dB under what was measured: fp32 124.7, int8 32.0, fp16 51.3
# with float16 vectors and 77.5 without.
LEAST_SNR_DB = {"fp32": 121.0, "int8": 29.0, "fp16": 48.0}
LEAST_FP16_WITHOUT_VECTORS = 74.0
TIMEOUT_S = 3600
Record = dict[str, Any]


def emulated(root: Path, processor: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of Python on an emulated processor, its libraries from under `root`."""
    python = [str(root / "usr/bin/python3")]
    command = ["qemu-aarch64-static", "-cpu", processor, "-L", str(root), *python]
    home = {"HOME": str(root / "tmp"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    return command, {**home, "PYTHONPATH": f"{CHECKOUT}:{root / 'opt/site'}"}


def _call(python: tuple[list[str], dict[str, str]], arguments: list[str], codes: tuple[int, ...]) -> str:
    command, environment = python
    result = subprocess.run(
        [*command, *arguments],
        env=environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    if result.returncode not in codes:
        raise BackendError(
            f"{' '.join(command)}: ended with code {result.returncode}: {result.stderr[-2000:]}"
        )
    return result.stdout


def measure(python: tuple[list[str], dict[str, str]], bundle: Path) -> Record:
    """Answers of fp32 with f32, and what `verify` says of every variant, without a checkpoint.

    Raises:
        BackendError: Python died, or a command failed otherwise than by "not equal".
    """
    start = time.perf_counter()
    pictures = [str(CHECKOUT / name) for name in PICTURES]
    answers = _call(python, ["-m", "tools.aarch64.answers", str(bundle), "fp32", "f32", *pictures], (0,))
    report = _call(python, ["-m", "tinyllava_edge", "verify", str(bundle), "--json"], (0, 1))
    return {
        "answers": [json.loads(line) for line in answers.splitlines()],
        "verify": json.loads(report),
        "seconds": time.perf_counter() - start,
    }


def measure_vision(python: tuple[list[str], dict[str, str]], bundle: Path) -> list[Record]:
    """Figures of every vision variant, as `verify` has them of the stored pictures; raises as `measure`."""
    lines = _call(python, ["-m", "tools.aarch64.vision", str(bundle)], (0,)).splitlines()
    return [json.loads(line) for line in lines]


def vision_lines(figures: dict[str, list[Record]]) -> list[str]:
    """SNR of the worst picture, one row for each processor."""
    variants = [row["variant"] for row in figures["here"]]
    lines = [
        "",
        "Embeddings, SNR in dB of the worst stored picture:",
        "",
        f"| processor | {' | '.join(variants)} |",
    ]
    lines.append("|---" + "|---:" * len(variants) + "|")
    for name, rows in figures.items():
        lines.append(f"| {name} | {' | '.join(format(row['snr_db'], '.1f') for row in rows)} |")
    return lines


def vision_faults(figures: dict[str, list[Record]]) -> list[str]:
    """Variants that lose more on a processor than was measured there."""
    found = []
    for processor, rows in figures.items():
        for row in rows:
            least = LEAST_SNR_DB[row["variant"]]
            if row["variant"] == "fp16" and processor not in PROCESSORS:
                least = LEAST_FP16_WITHOUT_VECTORS
            if not row["snr_db"] >= least:
                found.append(
                    f"{processor}, vision {row['variant']}: {row['snr_db']:.1f} dB, at least {least}"
                )
    return found


def report_lines(results: dict[str, Record]) -> list[str]:
    """The report, Markdown: ids beside those of this machine, and each check that has a gate."""
    here = results["here"]
    lines = ["# nano on emulated aarch64", "", "Written by `make aarch64`; qemu-user, no board.", ""]
    lines += [
        "| picture | ids here | " + " | ".join(PROCESSORS) + " |",
        "|---|---|" + "---|" * len(PROCESSORS),
    ]
    for place, answer in enumerate(here["answers"]):
        ids = [results[name]["answers"][place]["ids"] for name in PROCESSORS]
        same = ["the same" if other == answer["ids"] else str(other) for other in ids]
        lines.append(f"| {answer['picture']} | {answer['ids']} ({answer['answer']}) | {' | '.join(same)} |")
    lines += ["", "| stage | variant | metric | bound | " + " | ".join(results) + " |"]
    lines.append("|---|---|---|---:|" + "---:|" * len(results))
    checks = {name: _checks(result["verify"]) for name, result in results.items()}
    for key, (bound, _) in checks["here"].items():
        values = [f"{checks[name][key][1]:.3g}" if key in checks[name] else "-" for name in results]
        lines.append(f"| {' | '.join(key)} | {bound} | {' | '.join(values)} |")
    lines += ["", "| machine | verdict | versions | seconds |", "|---|---|---|---:|"]
    for name, result in results.items():
        versions = ", ".join(f"{k} {v}" for k, v in result["verify"]["versions"].items() if v)
        lines.append(f"| {name} | {result['verify']['verdict']} | {versions} | {result['seconds']:.0f} |")
    return lines


def _checks(report: Record) -> dict[tuple[str, str, str], tuple[str, float]]:
    return {
        (stage["stage"], stage["variant"], check["metric"]): (
            f"{'<=' if check['gate']['kind'] == 'max' else '>='} {check['gate']['limit']:g}",
            check["value"],
        )
        for stage in report["stages"]
        for check in stage["checks"]
        if check["gate"] is not None
    }


def faults(results: dict[str, Record]) -> list[str]:
    """What is not as it is here: another id of fp32 with f32, or a verdict that is not "passed"."""
    found = []
    for name in PROCESSORS:
        for ours, theirs in zip(results["here"]["answers"], results[name]["answers"], strict=True):
            if ours != theirs:
                found.append(f"{name}, {ours['picture']}: ids {theirs['ids']}, here {ours['ids']}")
        if not results[name]["verify"]["passed"]:
            found.append(f"{name}: {results[name]['verify']['verdict']}")
    return found


def main(
    root: Annotated[Path, typer.Argument(help="What build_root.sh made.")],
    bundle: Annotated[Path, typer.Argument(help="Bundle of nano, with fp32 and f32.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Report to write (Markdown).")],
) -> None:
    """Compare this machine with emulated processors."""
    if not (root / "ready").exists():
        raise UsageError(f"{root}: not a finished root. Run tools/aarch64/build_root.sh {root}.")
    results: dict[str, Record] = {}
    vision: dict[str, list[Record]] = {}
    with TemporaryDirectory() as folder:
        copy = Path(folder, "bundle")  # `verify` writes into it
        shutil.copytree(bundle, copy)
        note(f"here: {platform.machine()}")
        here = [sys.executable], dict(os.environ)
        results["here"], vision["here"] = measure(here, copy), measure_vision(here, copy)
        for name in VISION_PROCESSORS:
            vision[name] = measure_vision(emulated(root.resolve(), name), copy)
        for name in PROCESSORS:
            note(f"qemu-user, -cpu {name}: minutes")
            results[name] = measure(emulated(root.resolve(), name), copy)
    lines = [*report_lines(results), *vision_lines(vision)]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = [*faults(results), *vision_faults(vision)]
    for fault in found:
        note(fault)
    note(f"{output}: {'not as here' if found else 'as here'}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    tools.run(main)

"""The memory plan of bundles against the peaks that were measured here.

    python -m tools.memory_plan nano smollm2-bundle -o benchmarks/results/memory_plan

Each row is a fresh process that opens a bundle and answers one question about a picture, long enough to fill
llama.cpp's batch. Anonymous memory is what the process took (watched from outside); mapped is what of the
GGUF file is in memory. Shared libraries' own pages (60 MB) are in neither.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import tools
from tinyllava_edge.atomic_files import write_bytes, write_json
from tinyllava_edge.benchmarks.bench.environment import machine_card
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.console import note, stdout
from tinyllava_edge.errors import BackendError
from tinyllava_edge.llamacpp_memory import KV_BYTES, suits_cache
from tinyllava_edge.memory_plan import MIB, Setting, chosen_setting, plan_memory

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "emoji.webp"
POSITIONS = 1024  # of the prompt at most: two batches
Record = dict[str, Any]


def measure(path: str, setting: Setting) -> Record:
    """Peak and mapped bytes of a process of its own, as `main` prints them where it is that process.

    Raises:
        BackendError: it failed; its message is on stderr.
    """
    command = [sys.executable, "-m", "tools.memory_plan", path, "--one", json.dumps(vars(setting))]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise BackendError(f"{path}: the measuring process ended with code {result.returncode}.")
    found: Record = json.loads(result.stdout)
    return found


def measure_here(path: str, setting: Setting) -> Record:
    """Open the bundle in this process, answer, and read what that took."""
    from tinyllava_edge.memory import watched_memory

    with watched_memory() as watch:
        from tinyllava_edge.runtimes.model import open_bundle

        with open_bundle(path, runtime="onnxruntime+llamacpp", **vars(setting)) as model:
            room = min(setting.context_length, POSITIONS) - model.bundle.manifest.vision.num_tokens - 64
            words = len(model.tokenizer.encode_text("a dog " * 100)) / 100
            model.ask("a dog " * int(room / words), PICTURE, max_tokens=8)
            peak, mapped = watch.peak_bytes(), mapped_bytes(".gguf")
            assert model.last_timings is not None
            return {
                "anonymous_bytes": peak,
                "mapped_bytes": mapped,
                "prompt": model.last_timings.prompt_tokens,
            }


def mapped_bytes(suffix: str) -> int:
    """What of mapped files with this suffix is in memory (Rss in /proc/self/smaps, proc(5))."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = line.endswith(suffix)
        elif is_ours and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def settings_of(bundle: Bundle) -> list[Setting]:
    """Every variant of either part once, and every type of cache; the rest as it is by default."""
    names = {
        part: [v.name for v in bundle.manifest.variants if v.part == part] for part in ("vision", "language")
    }
    wanted = [chosen_setting(bundle, vision=name) for name in names["vision"]]
    wanted += [chosen_setting(bundle, language=name) for name in names["language"]]
    kinds = [kind for kind in KV_BYTES if suits_cache(bundle.manifest.language, kind)]
    wanted += [chosen_setting(bundle, kv_type=kind, context_length=POSITIONS) for kind in kinds]
    return list(dict.fromkeys(wanted))


def compare(path: str) -> list[Record]:
    """A row for each setting: what was planned, what was measured."""
    bundle = Bundle.open(bundle_path(path))
    rows = []
    for setting in settings_of(bundle):
        note(f"{path}: {setting.options()}")
        plan = plan_memory(bundle, setting, gpu=False)
        measured = measure(path, setting)
        found = measured["anonymous_bytes"] + measured["mapped_bytes"]
        rows.append(
            {
                "bundle": Path(path).name,
                "setting": vars(setting),
                "plan": [vars(line) for line in plan.lines],
                "planned_bytes": plan.host_bytes,
                "planned_mapped_bytes": sum(line.bytes for line in plan.lines if line.is_mapped),
                **measured,
                "difference": plan.host_bytes / found - 1,
            }
        )
    return rows


def table(rows: list[Record]) -> str:
    """The rows as Markdown."""
    lines = [
        "| bundle | vision | language | KV | context | planned MiB | mapped | measured | mapped | plan is |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        setting, mapped = row["setting"], row["mapped_bytes"]
        sizes = [row["planned_bytes"], row["planned_mapped_bytes"], row["anonymous_bytes"] + mapped, mapped]
        cells = [row["bundle"], *map(str, setting.values()), *(f"{size / MIB:,.1f}" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} | {row['difference']:+.1%} |")
    return "\n".join(lines) + "\n"


def main(
    bundles: Annotated[list[str], typer.Argument(help="Bundle directories, or nano.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Writes NAME.md and NAME.json.")] = Path(
        "memory_plan"
    ),
    one: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure bundles, each setting in a process of its own, and write planned beside measured."""
    if one:
        sys.stdout.write(json.dumps(measure_here(bundles[0], Setting(**json.loads(one)))))
        return
    rows = [row for path in bundles for row in compare(path)]
    write_json(output.with_suffix(".json"), {"machine": machine_card(), "rows": rows})
    text = f"# Memory: planned and measured\n\n{(__doc__ or '').strip()}\n\n{table(rows)}"
    write_bytes(output.with_suffix(".md"), text.encode())
    stdout.print(table(rows))


if __name__ == "__main__":
    tools.run(main)

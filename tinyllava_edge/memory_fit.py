"""Whether a bundle fits a device, and what of it would."""

import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from tinyllava_edge.boards import BOARDS
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.device import ask_nvidia_smi, has_nvidia_gpu, read_machine
from tinyllava_edge.errors import UsageError
from tinyllava_edge.jetson import read_jetson
from tinyllava_edge.llamacpp_memory import KV_BYTES, suits_cache
from tinyllava_edge.memory_plan import MemoryPlan, Setting, plan_memory
from tinyllava_edge.precisions import split_budget

HERE = "here"
LEAST_CONTEXT = 1024  # no shorter one is proposed: a picture alone may take 729 positions


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a bundle is to run, and what is free there before it is opened.

    Attributes:
        name: a name of `boards.BOARDS`, or "here".
        title: for people.
        gpu: whether both parts go to a CUDA GPU.
        shares_memory: whether that GPU's memory is the main memory.
        architecture: of the processor.
        host_free_bytes: None where it is not known, as beside a card.
        gpu_free_bytes: of a card; None without one, and where memory is shared.
        source: where the figures are from.
    """

    name: str
    title: str
    gpu: bool
    shares_memory: bool
    architecture: str
    host_free_bytes: int | None
    gpu_free_bytes: int | None
    source: str

    def needed(self, plan: MemoryPlan) -> list[tuple[str, int, int]]:
        """What is compared: name of the memory, bytes that the plan takes of it, bytes that are free."""
        pools = []
        whole = plan.host_bytes + plan.gpu_bytes if self.shares_memory else plan.host_bytes
        if self.host_free_bytes is not None:
            pools.append(("memory", whole, self.host_free_bytes))
        if self.gpu_free_bytes is not None:
            pools.append(("memory of the GPU", plan.gpu_bytes, self.gpu_free_bytes))
        return pools

    def fits(self, plan: MemoryPlan) -> bool:
        """Whether there is room everywhere."""
        return all(needed <= free for _, needed, free in self.needed(plan))

    def plan(self, bundle: Bundle, setting: Setting) -> MemoryPlan:
        """The plan of a setting there."""
        return plan_memory(bundle, setting, gpu=self.gpu, architecture=self.architecture)


def find_target(name: str) -> Target:
    """A board by its name, or this machine.

    Raises:
        UsageError: there is no such board; the message lists those there are.
    """
    if name == HERE:
        return _this_machine()
    if name not in BOARDS:
        raise UsageError(f"there is no device {name!r}. Known: {HERE}, {', '.join(BOARDS)}.")
    board = BOARDS[name]
    free = board.memory_bytes - board.reserved_bytes
    return Target(
        name=name, title=board.title, gpu=True, shares_memory=board.shares_memory,
        architecture=board.architecture,
        host_free_bytes=free if board.shares_memory else None,
        gpu_free_bytes=None if board.shares_memory else free,
        source=f"{board.memory_bytes >> 30} GiB, less what the system holds (an estimate)",
    )  # fmt: skip


def _this_machine() -> Target:
    machine = read_machine()
    is_jetson = read_jetson() is not None
    gpu = is_jetson or has_nvidia_gpu()
    return Target(
        name=HERE, title=f"this machine, {machine.cpu.model}", gpu=gpu, shares_memory=is_jetson or not gpu,
        architecture=platform.machine(),
        host_free_bytes=machine.memory.available_bytes if machine.memory else None,
        gpu_free_bytes=_card_free_bytes() if gpu and not is_jetson else None,
        source="available now, within the control group's limit",
    )  # fmt: skip


def _card_free_bytes() -> int | None:
    """Free memory of the first card; None where its driver does not say."""
    said = ask_nvidia_smi("--query-gpu=memory.free", "--format=csv,noheader,nounits").split()
    return int(said[0]) << 20 if said and said[0].isdigit() else None


def smaller_settings(bundle: Bundle, asked: Setting) -> list[Setting]:
    """One change each that takes less: the cache, the language, the vision, the context."""
    spec = bundle.manifest.language
    return [
        *(replace(asked, kv_type=kind) for kind in KV_BYTES if suits_cache(spec, kind)),
        *(replace(asked, language=name) for name in _names(bundle, "language")),
        *(replace(asked, vision=name) for name in _names(bundle, "vision")),
        *(replace(asked, context_length=length) for length in _shorter(asked.context_length)),
    ]


def best_setting(bundle: Bundle, target: Target, asked: Setting) -> Setting | None:
    """The most precise variants that fit, with as much context as was asked for, else less; None if none."""
    candidates = _candidates(bundle, asked, gpu=target.gpu)
    return next((each for each in candidates if target.fits(target.plan(bundle, each))), None)


def _candidates(bundle: Bundle, asked: Setting, *, gpu: bool) -> Iterator[Setting]:
    """Best first, with as many visual tokens.

    On a GPU fp32 comes last for vision, as only narrow types have fused attention there.
    """
    names = _names(bundle.at_tokens(None, asked.vision), "vision")
    visions = sorted(names, key=lambda name: gpu and split_budget(name)[0] == "fp32")
    lengths = [asked.context_length, *_shorter(asked.context_length)]
    caches = [asked.kv_type]
    if asked.kv_type != "q8_0" and suits_cache(bundle.manifest.language, "q8_0"):
        caches.append("q8_0")
    for length, kind, language, vision in product(lengths, caches, _names(bundle, "language"), visions):
        yield Setting(vision=vision, language=language, kv_type=kind, context_length=length)


def _shorter(length: int) -> list[int]:
    """Half of it, a quarter, and so on."""
    halves = (length >> times for times in range(1, length.bit_length()))
    return [half for half in halves if half >= LEAST_CONTEXT]


def _names(bundle: Bundle, part: str) -> list[str]:
    """Verified variants, the most precise first, as the manifest lists them."""
    return [v.name for v in bundle.manifest.variants if v.part == part and v.status == "verified"]


def fit_facts(bundle: Bundle, target: Target, asked: Setting) -> dict[str, Any]:
    """The plan of what was asked for, whether it fits, and what else would; as JSON values."""
    plan = target.plan(bundle, asked)
    now = plan.host_bytes + plan.gpu_bytes
    smaller = [(each, target.plan(bundle, each)) for each in smaller_settings(bundle, asked)]
    best = best_setting(bundle, target, asked)
    return {
        "device": asdict(target),
        "setting": asdict(asked),
        "lines": [vars(line) for line in plan.lines],
        "host_bytes": plan.host_bytes,
        "gpu_bytes": plan.gpu_bytes,
        "needed": [
            dict(zip(("memory", "needed", "free"), pool, strict=True)) for pool in target.needed(plan)
        ],
        "fits": target.fits(plan),
        "smaller": [
            {
                "change": _change(asked, each),
                "bytes": other.host_bytes + other.gpu_bytes,
                "fits": target.fits(other),
            }
            for each, other in smaller
            if other.host_bytes + other.gpu_bytes < now
        ],
        "best": None if best is None else {**asdict(best), "options": best.options()},
    }


def _change(asked: Setting, other: Setting) -> str:
    """The one option that differs."""
    pairs = zip(asked.flags(), other.flags(), strict=True)
    return next(flag for before, flag in pairs if flag != before)


def verdict(facts: dict[str, Any]) -> str:
    """One line: fits or not, with the numbers and what takes less."""
    title = f"{facts['device']['name']} ({facts['device']['title']})"
    pools = facts["needed"]
    if not pools:
        return f"{title}: what is free there is not known"
    tight = max(pools, key=lambda pool: pool["needed"] / max(1, pool["free"]))
    text = f"needs {_gib(tight['needed'])} of {_gib(tight['free'])} {tight['memory']}"
    if facts["fits"]:
        return f"fits {title}: {text}"
    less = [f"with {each['change']} {_gib(each['bytes'])}" for each in facts["smaller"] if each["fits"]]
    best = facts["best"]
    others = f"; {', '.join(less)} would fit" if less else ""
    if not less and best:
        others = f"; {best['options']} would fit"
    return f"does not fit {title}: {text}{others or '; no verified variants of this bundle would'}"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"

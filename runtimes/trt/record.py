"""What is known of TensorRT engines: what they depend on, how they did here, and which one was chosen.

The values that the engine cache keeps (`cache.py`) and a pack carries (`pack.py`).
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinyllava_edge.bundle import sha256_of_file

_SHA256 = "^[0-9a-f]{64}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Board(_Strict):
    """What an engine depends on of the machine; boards are identical where all of it is.

    Attributes:
        library: "tensorrt" or "tensorrt-rtx", and its full version.
        gpu: name, compute capability (87 for 8.7) and number of multiprocessors.
        driver: the kernel's driver where it says, and the newest CUDA it knows.
        cuda: version of the CUDA runtime.
        module: of a Jetson, with its release of L4T; None elsewhere.
    """

    library: str
    library_version: str
    gpu: str
    sm: int
    multiprocessors: int
    driver: str
    cuda: str
    module: str | None
    l4t: str | None

    def difference(self, other: "Board") -> str:
        """What is not the same, as "l4t 36.4.3, not 36.5.0"; "" for identical boards."""
        mine, theirs = self.model_dump(), other.model_dump()
        return ", ".join(
            f"{name} {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name]
        )

    def differs_in_power_mode(self, other: "Board") -> bool:
        """Whether only the multiprocessors are fewer or more, as nvpmodel switches them off on a Jetson."""
        return self != other and self == other.model_copy(update={"multiprocessors": self.multiprocessors})


class EngineKey(_Strict):
    """Everything an engine depends on.

    Attributes:
        onnx: SHA-256 of the graph and of its external data, by their paths in the bundle.
        profile: least, most likely and largest batch.
        flags: what else the builder was told.
    """

    schema_version: Literal[1] = 1
    onnx: dict[str, str]
    board: Board
    profile: tuple[int, int, int]
    flags: dict[str, str]

    @property
    def digest(self) -> str:
        """Name of the key: SHA-256 of its sorted JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class EngineRecord(_Strict):
    """What is known of a stored engine.

    Attributes:
        status: "verified" where it computed the bundle's reference tensors on this device within the gates,
            "refused" where it did not; "answers equal" where it did not, its answers did not show it, and
            nothing better was found; none of these before it was compared.
        reason: of a refusal.
        parity: the figures.
        origin: "built here", or whose pack it came from.
    """

    key: EngineKey
    variant: str
    plan_bytes: int = Field(gt=0)
    plan_sha256: str = Field(pattern=_SHA256)
    origin: str
    stored_utc: str
    build_seconds: float | None = None
    status: Literal["built, not run", "verified", "refused", "answers equal"] = "built, not run"
    reason: str = ""
    parity: dict[str, float | int | None] = Field(default_factory=dict)
    facts: dict[str, Any] = Field(default_factory=dict)


class Step(_Strict):
    """One step of the ladder that `build` climbs down."""

    runtime: str
    vision: str
    outcome: Literal["chosen", "refused", "not possible"]
    reason: str
    parity: dict[str, float | int | None] = Field(default_factory=dict)
    answers_equal: bool = False  # of an engine that missed a gate: all its answers to the reference questions


class Choice(_Strict):
    """What `build` chose for a bundle on this machine, and why; `--runtime auto` goes by it."""

    schema_version: Literal[1] = 1
    manifest_sha256: str = Field(pattern=_SHA256)
    runtime: str
    vision: str
    engine: str | None  # digest of its key
    steps: tuple[Step, ...]


def new_record(
    key: EngineKey, variant: str, work: Path, facts: Mapping[str, Any] = MappingProxyType({})
) -> EngineRecord:
    """The record of an engine that was just built into a work file, and has not run; `facts` of the build."""
    return EngineRecord(
        key=key,
        variant=variant,
        plan_bytes=work.stat().st_size,
        plan_sha256=sha256_of_file(work),
        origin="built here",
        stored_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        build_seconds=facts.get("seconds"),
        facts=dict(facts),
    )

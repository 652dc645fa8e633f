"""What `bench compare` needs of a report.json, which others may have written; the rest may be anything."""

from itertools import chain
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2
_Milliseconds = Annotated[float, Field(gt=0, lt=1e12)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Bundle(_Strict):
    name: str
    manifest_sha256: str
    checkpoint_sha256: str


class _Memory(_Strict):
    total_bytes: int | None


class _Machine(_Strict):
    system: Any
    python: Any
    cpu: Any
    gpus: Any
    jetson: Any
    distribution: Any
    virtualization: Any
    cpu_settings: Any
    memory_settings: Any
    variables: Any
    memory: _Memory | None
    versions: dict[str, str | None]
    source: dict[str, Any] | None

    @model_validator(mode="after")
    def _names_us(self) -> "_Machine":
        if "tinyllava-edge" not in self.versions:
            raise ValueError("versions has no tinyllava-edge")
        return self


class _Times(_Strict):
    total_ms: _Milliseconds
    first_token_ms: _Milliseconds


class _Run(_Strict):
    warm: _Times


class _Session(_Strict):
    requests: list[Annotated[list[_Run], Field(min_length=2, max_length=2)]]


class _Cell(_Strict):
    name: str
    model: str
    runtime: str
    vision: str | None
    language: str | None
    warm: _Times
    sessions: list[_Session] = Field(min_length=1)


class Report(_Strict):
    """A report.json of schema version 2."""

    schema_version: int
    bundles: list[_Bundle]
    request: dict[str, Any]
    machine: _Machine
    control: str
    cells: list[_Cell]


def is_deeper(value: Any, levels: int) -> bool:
    """Whether JSON is nested deeper than that: what walks through it would end with a RecursionError."""
    layer = [value]
    while layer and levels >= 0:
        inner = (v.values() if isinstance(v, dict) else v for v in layer if isinstance(v, dict | list))
        layer, levels = list(chain.from_iterable(inner)), levels - 1
    return bool(layer)

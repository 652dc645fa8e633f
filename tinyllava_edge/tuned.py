"""What `tune` measured of a bundle on this machine, kept in the user's private cache.

It counts for the same bundle, processor, cores and libraries only; a file of anything else, or one that
others can write, is as if it were not there.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.cache import cache_folder, is_private
from tinyllava_edge.device import read_cpu
from tinyllava_edge.installed import installed_version
from tinyllava_edge.verified_files import open_real

FOLDER = "tuned"  # in the cache
NUM_TOKENS = 32  # of the answer that a request is reckoned with
MAX_BYTES = 1 << 20
_LIBRARIES = ("onnxruntime", "llama-cpp-python", "openvino", "tinyllava-edge")


class LanguageSpeed(BaseModel):
    """Of one language variant: the whole prompt, and each further token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prefill_ms: float = Field(gt=0)
    decode_ms: float = Field(gt=0)

    @property
    def total_ms(self) -> float:
        """Prompt and `NUM_TOKENS` tokens, the first of which the prompt gives."""
        return self.prefill_ms + (NUM_TOKENS - 1) * self.decode_ms


class Tuned(BaseModel):
    """One bundle on one machine.

    Attributes:
        manifest_sha256: which bundle.
        machine: `machine_key` of where it was measured.
        prompt_positions: of the prompt, a picture's included.
        threads: that were fastest, or None for the usable cores.
        flash_attention: "on" or "off" where that was faster than the default, else None.
        vision_ms: backend -> variant -> one picture.
        language: backend -> variant -> its speed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest_sha256: str
    machine: str
    prompt_positions: int = Field(gt=0)
    threads: int | None = Field(default=None, ge=1)
    flash_attention: str | None = None
    vision_ms: dict[str, dict[str, float]]
    language: dict[str, dict[str, LanguageSpeed]]

    def request_ms(self, backends: Sequence[str], vision: str, language: str) -> float | None:
        """A picture, a question and an answer by a pair of variants, None where one was not measured."""
        picture = self.vision_ms.get(backends[0], {}).get(vision)
        text = self.language.get(backends[1], {}).get(language)
        return None if picture is None or text is None else picture + text.total_ms


def machine_key() -> str:
    """What a measurement depends on beside the bundle."""
    cpu = read_cpu()
    libraries = " ".join(f"{name} {installed_version(name)}" for name in _LIBRARIES)
    return f"{cpu.model}; {cpu.usable_cores} cores; {' '.join(cpu.features)}; {libraries}"


def tuned_path(bundle: Bundle) -> Path:
    """Where the record of a bundle is."""
    return cache_folder() / FOLDER / f"{bundle.manifest_sha256}.json"


def read_tuned(bundle: Bundle) -> Tuned | None:
    """What was measured of this bundle on this machine, or None."""
    with suppress(OSError, ValidationError), open_real(tuned_path(bundle)) as file:
        status = os.fstat(file.fileno())
        if is_private(status) and status.st_size <= MAX_BYTES:
            found = Tuned.model_validate_json(file.read())
            is_of_this = (found.manifest_sha256, found.machine) == (bundle.manifest_sha256, machine_key())
            if is_of_this and (found.threads or 1) <= read_cpu().usable_cores:
                return found
    return None


def write_tuned(bundle: Bundle, tuned: Tuned) -> Path:
    """Keep what was measured.

    Raises:
        DiskFullError: there is no room.
        OSError: it cannot be written there.
    """
    path = tuned_path(bundle)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(path, tuned.model_dump_json(indent=1).encode(), mode=0o600)
    return path

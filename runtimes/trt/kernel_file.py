"""The kernels that TensorRT-RTX compiled for an engine on this machine, in a file beside its plan.

They are native code, as the plan is: read only where private, bound to the plan, whole.

    17 bytes   magic and version
    32         SHA-256 of the plan they are for
    32         SHA-256 of the rest
    rest       what TensorRT-RTX's runtime cache gave
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tinyllava_edge.atomic_files import write_bytes
from tinyllava_edge.errors import NoEngineError

from .private_files import open_private

_MAGIC = b"TLEDGE KERNELS 1\n"
_HEAD_BYTES = len(_MAGIC) + 2 * 32
MAX_KERNEL_BYTES = 1 << 30


@dataclass(frozen=True)
class KernelFile:
    """Where the kernels of one plan are kept.

    Attributes:
        path: of the file, in the engine cache.
        plan_sha256: of the plan.
    """

    path: Path
    plan_sha256: str

    def read(self) -> bytes:
        """The kernels; b"" where none were kept yet.

        Raises:
            NoEngineError: the file is damaged, of another plan, or not private to the user.
        """
        if not os.path.lexists(self.path):
            return b""
        with open_private(self.path) as handle, open(handle, "rb", closefd=False) as file:
            size = os.fstat(handle).st_size
            if size > MAX_KERNEL_BYTES:
                raise NoEngineError(f"{self.path.name} is too large ({size:,} bytes)")
            head, kernels = file.read(_HEAD_BYTES), file.read()
        if head != self._head(kernels):
            is_ours = head[:-32] == self._head(b"")[:-32]
            raise NoEngineError(f"{self.path.name} is {'damaged' if is_ours else 'of another engine'}")
        return kernels

    def write(self, kernels: bytes) -> None:
        """Keep them; what is there is replaced.

        Raises:
            OSError: they cannot be written.
        """
        write_bytes(self.path, self._head(kernels) + kernels, mode=0o600)

    def _head(self, kernels: bytes) -> bytes:
        return _MAGIC + bytes.fromhex(self.plan_sha256) + hashlib.sha256(kernels).digest()

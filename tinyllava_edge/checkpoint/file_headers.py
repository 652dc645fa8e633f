"""Names, shapes and dtypes in one file of tensors, without torch and without a weight being read."""

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from tinyllava_edge.errors import CheckpointError, MissingFileError, guarded

from .layouts import check_is_there, listed_shards

MAX_HEADER = 100 << 20  # bytes; what the safetensors package takes
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "U8": "uint8",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "BOOL": "bool",
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "BoolStorage": "bool",
}


class Header(NamedTuple):
    """Of one tensor."""

    shape: tuple[int, ...]
    dtype: str


def file_headers(path: Path) -> dict[str, Header]:
    """The tensors that a file holds, by its own names; of a pickle no code runs.

    Raises:
        MissingFileError: the file is missing, or is a pickle that only torch can read.
        CheckpointError: it is damaged.
    """
    check_is_there(path)
    return _pickle_headers(path) if path.suffix == ".bin" else _safetensors_headers(path)


def names_in(whole: Path) -> set[str]:
    """The names in the file of a whole model, or in its index; errors as `file_headers`."""
    if whole.suffix == ".json":
        return {name for names in listed_shards(whole).values() for name in names}
    return set(file_headers(whole))


def _safetensors_headers(path: Path) -> dict[str, Header]:
    with guarded(path, CheckpointError), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
            raise CheckpointError(f"{path}: damaged safetensors file (its header is cut). Copy it again.")
        values = json.loads(file.read(length))
        values.pop("__metadata__", None)
        end = max((int(value["data_offsets"][1]) for value in values.values()), default=0)
        if 8 + length + end != path.stat().st_size:
            raise CheckpointError(
                f"{path}: damaged safetensors file: {path.stat().st_size:,} bytes, its header says "
                f"{8 + length + end:,}. Copy or download it again."
            )
        return {
            key: Header(tuple(map(int, value["shape"])), _DTYPES.get(value["dtype"], value["dtype"].lower()))
            for key, value in values.items()
        }


def _pickle_headers(path: Path) -> dict[str, Header]:
    """Of a file of `torch.save`; the pickle in it may name nothing but tensors, and runs no code."""
    with guarded(path, CheckpointError):
        if not zipfile.is_zipfile(path):
            raise MissingFileError(f"{path}: is of torch before 1.6, or cut short; only torch can tell.")
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > MAX_HEADER:
                raise CheckpointError(f"{path}: damaged: {name} is larger than any list of tensors.")
            with archive.open(name) as file:
                values = _HeaderUnpickler(file).load()
    if not isinstance(values, dict) or not all(isinstance(value, Header) for value in values.values()):
        raise CheckpointError(f"{path}: expected a dictionary of names and tensors.")
    return {str(key): value for key, value in values.items()}


class _HeaderUnpickler(pickle.Unpickler):
    """Makes a `Header` of each tensor; what names anything else is refused."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._known: dict[tuple[str, str], Callable[..., Any] | str] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            **{("torch", name): dtype for name, dtype in _STORAGES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        """One of the few names that a file of tensors has."""
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"it holds more than tensors: {module}.{name}")
        return self._known[module, name]

    def persistent_load(self, key: Any) -> str:
        """The dtype of a storage, which is all that is wanted of it."""
        return str(key[1])


def _tensor(dtype: str, offset: int, shape: tuple[int, ...], *_: Any) -> Header:
    return Header(tuple(map(int, shape)), dtype)

"""`manifest.json`: what a bundle says of itself, and what is believed of that. docs/bundle.md.

The manifest is written by somebody else: unknown keys, impossible values and names that leave the directory
are refused.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.errors import BundleError
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.precisions import split_budget
from tinyllava_edge.prompt import Template, template_fault

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
MMPROJ_FILE = "mmproj.gguf"  # tower and connector for llama.cpp's own programs, where there is one
PARITY_FOLDER = "parity"  # results added later; not listed in the manifest, never executable
MAX_MANIFEST_BYTES = 8 << 20
# No `..`, no absolute, hidden or drive name, no backslash, no control character.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
# Code is never in a bundle, whatever a manifest says; engines are built on the device (docs/jetson.md).
_CODE_SUFFIXES = (".plan", ".engine", ".trt", ".so", ".dll", ".dylib", ".exe", ".sh", ".py", ".pyc", ".pkl")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """One file of the bundle."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Part(_Strict):
    """One part of the model as it was in the checkpoint."""

    architecture: str
    parameters: int = Field(ge=0)
    dtype: str


class Recipe(_Strict):
    """How a GGUF variant was quantized, where not by its type alone."""

    imatrix_prompts: int = Field(
        default=0, ge=0
    )  # that errors were weighed by (imatrix.gguf); 0: all the same
    imatrix_positions: int = Field(default=0, ge=0)  # of them, pictures' and texts'
    tensor_types: tuple[str, ...] = Field(default=(), max_length=64)  # "REGEX=TYPE", the first found counts

    def __str__(self) -> str:
        by = f"imatrix of {self.imatrix_prompts} prompts"
        return ", ".join([*([by] if self.imatrix_prompts else []), *self.tensor_types])


class Variant(_Strict):
    """One precision of one part.

    `files` are relative paths, the one to open first; the others are its external data, or weights.
    The name of a vision variant of a smaller budget of visual tokens ends with it: `fp16-81`.
    """

    part: Literal["vision", "language"]
    name: str  # "fp32", "fp16", "int8"; "f32", "f16", "q8_0", "q4_k_m"
    target: Literal["onnx", "gguf", "openvino"]
    files: tuple[str, ...] = Field(min_length=1)
    status: Literal["verified", "built, not run"]
    recipe: Recipe | None = None

    @model_serializer(mode="wrap")
    def _plain_without_recipe(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As programs of before there were recipes read it."""
        found: dict[str, Any] = write(self)
        return {key: value for key, value in found.items() if key != "recipe" or value is not None}

    @property
    def precision(self) -> str:
        """Its name without the budget."""
        return split_budget(self.name)[0] if self.part == "vision" else self.name

    @property
    def budget(self) -> int | None:
        """Visual tokens of a picture, where they are fewer than the manifest's."""
        return split_budget(self.name)[1] if self.part == "vision" else None


class PromptSpec(_Strict):
    """How a conversation becomes token ids, and what ends an answer."""

    template: Template
    template_reason: str
    bos_id: int | None
    stop_ids: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _usable(self) -> "PromptSpec":
        if fault := template_fault(self.template):
            raise ValueError(fault)
        return self


DEFAULT_CONTEXT_LENGTH = 4096
PIXELS, EMBEDDINGS = "pixels", "embeddings"  # input and output of every vision graph


class VisionSpec(_Strict):
    """What goes into the vision graph, and what comes out of it."""

    image_size: int = Field(gt=0)
    num_tokens: int = Field(gt=0)
    hidden_size: int = Field(gt=0)  # of the embeddings, which is the language model's
    feature_layer: int
    drop_first: bool
    preprocessing: Preprocessing
    tower_output: str  # name of the graph's inner value between tower and connector


class LanguageSpec(_Strict):
    """Facts of the language model that a runtime needs before it opens the file."""

    architecture: str
    hidden_size: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    context_length: int = Field(gt=0)
    embedding_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @classmethod
    def of(cls, config: LanguageConfig) -> "LanguageSpec":
        """What a checkpoint's config says."""
        values = {name: getattr(config, name) for name in cls.model_fields if name != "context_length"}
        return cls(**values, context_length=config.max_position_embeddings)

    @property
    def default_context_length(self) -> int:
        """Positions of the context where nobody asks for more: 32,768 would fill a small board."""
        return min(self.context_length, DEFAULT_CONTEXT_LENGTH)


class Source(_Strict):
    """Where the bundle came from."""

    name: str
    checkpoint_sha256: str
    layout: str
    repository: str = ""  # of the hub
    revision: str = ""  # its commit


class Manifest(_Strict):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    parts: dict[Literal["vision_tower", "connector", "language_model"], Part]
    prompt: PromptSpec
    vision: VisionSpec
    language: LanguageSpec
    variants: tuple[Variant, ...] = Field(min_length=1)
    files: tuple[FileEntry, ...]
    source: Source
    versions: dict[str, str]
    digest: str | None = None  # `digest_of` all the rest; None in bundles of before there was one

    @model_validator(mode="after")
    def _fits_together(self) -> "Manifest":
        ids = [*self.prompt.stop_ids, *([] if self.prompt.bos_id is None else [self.prompt.bos_id])]
        if not all(0 <= index < self.language.vocab_size for index in ids):
            raise ValueError(f"a special id of {ids} is not in a vocabulary of {self.language.vocab_size}")
        names = [(variant.part, variant.name) for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("a variant is listed twice")
        if odd := [v.name for v in self.variants if (v.budget or 0) >= self.vision.num_tokens]:
            raise ValueError(f"variant {odd[0]} has no fewer tokens than vision.num_tokens")
        how = self.vision.preprocessing
        if how.image_size != self.vision.image_size:
            raise ValueError(f"pictures of {how.image_size} px, a graph of {self.vision.image_size} px")
        return self

    @property
    def budgets(self) -> tuple[int, ...]:
        """Numbers of visual tokens that a picture can become, most first."""
        found = {v.budget or self.vision.num_tokens for v in self.variants if v.part == "vision"}
        return tuple(sorted(found, reverse=True)) or (self.vision.num_tokens,)

    def at_tokens(self, tokens: int) -> "Manifest":
        """What it says with the vision variants of one of its budgets alone."""
        variants = tuple(
            v for v in self.variants if v.part != "vision" or (v.budget or self.vision.num_tokens) == tokens
        )
        vision = self.vision.model_copy(update={"num_tokens": tokens})
        return self.model_copy(update={"variants": variants, "vision": vision})


def digest_of(contents: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's canonical JSON (keys sorted, no spaces, ASCII) without its `digest`.

    It finds damage. Whoever can change the manifest can also compute it anew.
    """
    rest = {key: value for key, value in contents.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_manifest(text: bytes, path: Path) -> Manifest:
    """Read a manifest that somebody else wrote.

    Raises:
        BundleError: not JSON, another schema version, not what its digest says, or an impossible value; the
            message names it.
    """
    try:
        raw = json.loads(text)
        found = digest_of(raw) if isinstance(raw, dict) else None
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error}).") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:  # True == 1
        raise BundleError(
            f"{path}: schema version {shown(version)}, this program reads {SCHEMA_VERSION}. "
            "Export the bundle again, or install the tinyllava-edge that wrote it."
        )
    if raw.get("digest", found) != found:
        raise BundleError(
            f"{path}: its content has the digest {found}, it says {shown(raw['digest'])}: the file is "
            "damaged or was edited. Copy or export the bundle again."
        )
    try:
        return Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {where[:200]}: {first['msg']}.") from None


def check_listed_names(root: Path, manifest: Manifest) -> None:
    """Every listed name stays inside, is listed once, and is not one of the names that are never listed.

    Raises:
        BundleError: one does not; the message names it.
    """
    seen: set[str] = set()
    for entry in manifest.files:
        name = entry.path
        if len(name) > 200 or not _PLAIN_PATH.fullmatch(name):
            raise BundleError(f"{root}: the manifest lists {shown(name)}, which is not a plain path inside.")
        folded = name.casefold()  # two names that differ by case only are one file on some disks
        if folded in seen:
            raise BundleError(f"{root}: the manifest lists {name!r} twice.")
        if folded.endswith(_CODE_SUFFIXES):
            raise BundleError(f"{root}: the manifest lists {name!r}; a bundle never holds code or engines.")
        if folded == MANIFEST_FILE or folded.split("/")[0] == PARITY_FOLDER:
            raise BundleError(f"{root}: the manifest lists {name!r}, which no manifest may list.")
        seen.add(folded)
    listed = {entry.path for entry in manifest.files}
    for variant in manifest.variants:
        for name in variant.files:
            if name not in listed:
                raise BundleError(f"{root}: variant {variant.name} needs {shown(name)}, which is not listed.")

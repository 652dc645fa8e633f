"""What a TinyLLaVA checkpoint says about itself.

Source of the layout: spec/tinyllava.md sections 1 and 3.4. `text_config` and `vision_config` are *diffs*: a
key equal to the defaults of its own transformers config class may be missing; `families.py` has those
defaults. Knows nothing of torch or transformers.
"""

from pathlib import Path

from tinyllava_edge.errors import UnsupportedModelError

from .config import (
    IGNORE_LABEL,
    IMAGE_MARKER,
    IMAGE_TOKEN_ID,
    QUERY_CONNECTORS,
    SIDECAR_FILE,
    BertSizes,
    ConnectorConfig,
    LanguageConfig,
    ModelConfig,
    VisionConfig,
)
from .config_parts import connector_config, language_config, second_vision, vision_config
from .files import is_legacy, is_llava, read_factory_config, read_json_object
from .values import whole_number

__all__ = [
    "IGNORE_LABEL", "IMAGE_MARKER", "IMAGE_TOKEN_ID", "QUERY_CONNECTORS", "SIDECAR_FILE",
    "BertSizes", "ConnectorConfig", "LanguageConfig", "ModelConfig", "VisionConfig",
    "connector_config", "is_legacy", "is_llava", "language_config", "read_factory_config",
    "read_json_object", "read_model_config", "vision_config",
]  # fmt: skip


def read_model_config(
    directory: Path, *, template: str | None = None, sources: Path | None = None
) -> ModelConfig:
    """Read `config.json` (and `tinyllava_edge.json` where there is one) of a TinyLLaVA checkpoint.

    Args:
        directory: the checkpoint.
        template: name of the prompt template, in the place of the stored or inferred one.
        sources: where the configs are that the checkpoint only names (a MoF's second tower, Q-Former's BERT).

    Raises:
        CheckpointError: a file is missing or not JSON, or a value is impossible.
        UnsupportedModelError: a part is not supported; the message lists what is.
    """
    path = directory / "config.json"
    raw = read_factory_config(directory, sources=sources)
    if raw.get("model_type") != "tinyllava":
        raise UnsupportedModelError(
            f"{path}: model_type is {raw.get('model_type')!r}, expected 'tinyllava'. "
            "Supported today: checkpoints saved by TinyLLaVA Factory or by `tinyllava-edge train`."
        )
    vision = vision_config(raw, path)
    language = language_config(raw, path)
    name, reason = (template, "given by --template") if template else _inferred_template(directory, language)
    max_length = whole_number(raw, "tokenizer_model_max_length", language.max_position_embeddings, path)
    aspect = raw.get("image_aspect_ratio", "square")
    if aspect not in ("square", "pad"):
        raise UnsupportedModelError(f"{path}: image_aspect_ratio is {aspect!r}. Supported: square, pad.")
    second, connector = second_vision(raw, path, sources), connector_config(raw, path, sources)
    if (second is None) == (connector.type == "mof_mlp"):
        raise UnsupportedModelError(
            f"{path}: connector_type {connector.type!r} with {1 if second is None else 2} vision tower(s). "
            "mof_mlp joins two towers (vision_model_name_or_path2), every other connector takes one."
        )
    if second is not None and vision.num_tokens != second.num_tokens_at(vision.image_size):
        raise UnsupportedModelError(
            f"{path}: the two towers give {vision.num_tokens} and "
            f"{second.num_tokens_at(vision.image_size)} tokens; mof_mlp joins as many of each."
        )
    return ModelConfig(
        vision=vision,
        second_vision=second,
        connector=connector,
        language=language,
        image_aspect_ratio=aspect,
        tokenizer_max_length=max_length,
        template=name,
        template_reason=reason,
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or ""),
    )


def _inferred_template(directory: Path, language: LanguageConfig) -> tuple[str, str]:
    """Name of the prompt template, which upstream never stores, and why it is that one."""
    sidecar = directory / SIDECAR_FILE
    stored = read_json_object(sidecar).get("template") if sidecar.exists() else None
    if stored is not None:
        return str(stored), f"stored in {SIDECAR_FILE}"
    family, name = language.family, language.architecture
    tokenizer = directory / "tokenizer_config.json"
    if family.template_by_eos and tokenizer.exists():
        eos = read_json_object(tokenizer).get("eos_token")
        eos = str(eos.get("content") if isinstance(eos, dict) else eos)
        if eos in family.template_by_eos:
            reason = f"inferred from the family {name!r} and the tokenizer's EOS {eos!r}"
            return family.template_by_eos[eos], reason
    return family.template, f"inferred from the language model's family {name!r}"

"""A checkpoint's folder as transformers 4 reads it, which the converters of rivals want.

transformers 5 writes a list where 4 wants another key, and the picture's settings inside another file
(docs/sources/peers.md#checkpoints-of-two-generations).
"""

import json
from pathlib import Path


def write_readable(checkpoint: Path, folder: Path) -> None:
    """Links to a checkpoint's files, with the two configs that differ written anew.

    Args:
        checkpoint: as either generation wrote it.
        folder: to make.
    """
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.name not in ("tokenizer_config.json", "preprocessor_config.json"):
            (folder / path.name).symlink_to(path.resolve())
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_bytes())
    if isinstance(special := tokenizer.get("extra_special_tokens"), list):
        del tokenizer["extra_special_tokens"]
        tokenizer["additional_special_tokens"] = special
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    own = checkpoint / "preprocessor_config.json"
    inside = checkpoint / "processor_config.json"
    picture = (
        json.loads(own.read_bytes()) if own.exists() else json.loads(inside.read_bytes())["image_processor"]
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(picture), encoding="utf-8")

"""Random TinyLLaVA checkpoints of a few hundred kilobytes, for tests: real layout, meaningless weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.model.vlm import build_model, upstream_state_dict

# A SentencePiece vocabulary of 420 pieces, from the golden fixtures (random tiny Llama).
TOKENIZER_FOLDER = Path(__file__).parent / "fixtures" / "tiny-tokenizer"
TOKENIZER_VOCAB = 450


def tiny_config(
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vocab: int = TOKENIZER_VOCAB,
    tied: bool = False,
    rms_norm_eps: float = 1e-5,
    rope_theta: float = 10000.0,
    tower: str = "siglip_vision_model",
    vision_hidden: int = 48,
    vision_layers: int = 3,
    vision_heads: int = 4,
    vision_intermediate: int = 96,
    image_size: int = 56,
    patch_size: int = 14,
    feature_layer: int = -2,
    select_strategy: str = "patch",
    connector: str = "mlp2x_gelu",
    factor: int | None = None,
    aspect: str = "square",
) -> dict[str, Any]:
    """`config.json` as TinyLLaVA Factory writes it."""
    return {
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "model_type": "tinyllava",
        "connector_type": connector,
        "hidden_size": hidden,
        "image_aspect_ratio": aspect,
        "image_token_index": -200,
        "ignore_index": -100,
        "llm_model_name_or_path": "tiny-random/llama",
        "tokenizer_model_max_length": 512,
        "tokenizer_name_or_path": "tiny-random/llama",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 1024,
            "rms_norm_eps": rms_norm_eps,
            "rope_theta": rope_theta,
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "model_type": tower,
            "hidden_size": vision_hidden,
            "image_size": image_size,
            **(
                {"mlp_ratio": vision_intermediate // vision_hidden}
                if tower == "dinov2"
                else {"intermediate_size": vision_intermediate}
            ),
            "num_attention_heads": vision_heads,
            "num_hidden_layers": vision_layers,
            "patch_size": patch_size,
        },
        **({} if factor is None else {"connector_factor": factor}),
        "vision_feature_layer": feature_layer,
        "vision_feature_select_strategy": select_strategy,
        "vision_hidden_size": vision_hidden,
        "vision_model_name_or_path": "tiny-random/siglip",
        "torch_dtype": "float32",
        "vocab_size": vocab,
    }


def write_tiny_checkpoint(
    directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: Any
) -> Path:
    """Write a random Llama + SigLIP (or CLIP) checkpoint, every parameter random (norms and biases too).

    Args:
        directory: created.
        seed: of the weights.
        dtype: of the stored weights.
        sizes: arguments of `tiny_config`.
    """
    directory.mkdir(parents=True)
    config = tiny_config(**sizes)
    (directory / "config.json").write_text(json.dumps(config, indent=1))
    image_size = config["vision_config"]["image_size"]
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    for path in TOKENIZER_FOLDER.iterdir():
        shutil.copy(path, directory / path.name)
    torch.manual_seed(seed)
    model = build_model(Checkpoint(directory).config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.15 * noise)
    state = {name: tensor.to(dtype).contiguous() for name, tensor in upstream_state_dict(model).items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory

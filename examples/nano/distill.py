"""Stage 0 of nano: the vision tower learns to see from a teacher, without any text.

The mean over the patches of the tower's feature layer predicts the teacher's pooled features, in the
directions in which the things of the data set differ whoever drew them. Every patch predicts the principal
components of the teacher's features at its place.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name
from torch import nn

from tinyllava_edge.model.vision_tower import VisionTower

from .initialise import initialise_tower
from .loop import Loop, muon_and_adamw
from .recipe import Distillation
from .views import Views


def distil(
    tower: VisionTower, views: Views, how: Distillation, *, generator: torch.Generator, loop: Loop
) -> None:
    """Train a fresh tower of the SigLIP architecture, from first weights that are chosen here, on `views`."""
    hidden = tower.config.hidden_size
    initialise_tower(tower, views.pixels[:1024] / 127.5 - 1, generator)
    norm = nn.LayerNorm(hidden)
    to_pooled = nn.Linear(hidden, views.pooled.shape[-1])
    to_patches = nn.Linear(hidden, views.patches.shape[-1])
    heads = nn.ModuleList([norm, to_pooled, to_patches])

    def loss(pixels: torch.Tensor, pooled: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        features = norm(run_used_layers(tower, pixels))
        said = to_pooled(tower.select(features).mean(1))
        said_of_patches = to_patches(features).float()
        return F.mse_loss(said.float(), pooled) + F.mse_loss(said_of_patches, patches.flatten(1, 2))

    rate = how.learning_rate
    tower.train()
    loop.optimise(
        "distil",
        muon_and_adamw(
            [(tower, rate), (heads, rate)], muon_rate=how.muon_rate, weight_decay=how.weight_decay
        ),
        (partial(loss, *views.sample(how, generator)) for _ in range(how.steps)),
        num_steps=how.steps,
        warmup_ratio=0.05,
    )
    with torch.no_grad():
        features = run_used_layers(tower, views.pixels[:512] / 127.5 - 1)
    scale_stream(tower, 1 / features.std())  # about 1, as a fresh connector expects
    tower.eval()


@torch.no_grad()
def scale_stream(tower: VisionTower, factor: torch.Tensor) -> None:
    """Multiply the tower's features, and all that is added up to them; every layer reads them normalised."""
    model: Any = tower.model
    model = getattr(model, "vision_model", model)  # transformers 4
    parts = [model.embeddings.patch_embedding, model.embeddings.position_embedding]
    for layer in model.encoder.layers[: tower.config.num_used_layers]:
        parts += [layer.self_attn.out_proj, layer.mlp.fc2]
    for part in parts:
        for parameter in part.parameters():
            parameter.mul_(factor)


def run_used_layers(tower: VisionTower, pixels: torch.Tensor) -> torch.Tensor:
    """The feature layer of every patch, [batch, patches, hidden], without running the layers behind it."""
    model: Any = tower.model
    model = getattr(model, "vision_model", model)  # transformers 4
    hidden: torch.Tensor = model.embeddings(pixels)
    for layer in model.encoder.layers[: tower.config.num_used_layers]:
        output = layer(hidden, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden

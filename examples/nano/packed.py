"""Several conversations about one picture in one row, behind the prompt and the picture that they share.

Each conversation sees what is shared and itself, at the positions that it has when it is alone, so that the
loss is that of separate rows at a fraction of their cost: what is shared is most of a short conversation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's usual name

from tinyllava_edge.checkpoint.config import IGNORE_LABEL, IMAGE_TOKEN_ID
from tinyllava_edge.model.vlm import TinyLlava

Labelled = tuple[list[int], list[int]]  # ids and labels of one conversation, from `label_answers`

_SHARED, _PADDING = -1, -2


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Conversations of one step, a row for each picture."""

    shared: list[int]  # ids before the picture
    ids: torch.Tensor  # [pictures, length] of what follows the picture
    labels: torch.Tensor  # [pictures, length]
    members: torch.Tensor  # [pictures, length] number of the conversation in its row; padding is -2
    offsets: torch.Tensor  # [pictures, length] position after the picture
    pixels: torch.Tensor  # [pictures, 3, height, width]


def pack(rows: Sequence[Sequence[Labelled]], pixels: torch.Tensor) -> PackedBatch:
    """Join the conversations about each picture; all start with the same ids and one picture."""
    start = rows[0][0][0].index(IMAGE_TOKEN_ID)
    shared = rows[0][0][0][:start]
    columns = []
    for row in rows:
        assert all(whole[: start + 1] == [*shared, IMAGE_TOKEN_ID] for whole, _ in row)
        tails = [zip(whole[start + 1 :], learned[start + 1 :], strict=True) for whole, learned in row]
        columns.append(
            [(*pair, number, offset) for number, tail in enumerate(tails) for offset, pair in enumerate(tail)]
        )
    length = max(map(len, columns))
    padding = (0, IGNORE_LABEL, _PADDING, 0)
    table = torch.tensor([row + [padding] * (length - len(row)) for row in columns])
    ids, labels, members, offsets = table.unbind(2)
    return PackedBatch(shared=shared, ids=ids, labels=labels, members=members, offsets=offsets, pixels=pixels)


def packed_loss(model: TinyLlava, batch: PackedBatch) -> torch.Tensor:
    """Mean cross entropy over the labelled positions of a batch."""
    rows, mask, positions = _inputs(model, batch)
    language_model: Any = model.language_model
    states = language_model.model(inputs_embeds=rows, attention_mask=mask, position_ids=positions)
    states = states.last_hidden_state[:, -batch.ids.shape[1] :]
    learned = batch.labels[:, 1:] != IGNORE_LABEL
    logits = language_model.lm_head(states[:, :-1][learned])  # of the few positions that are learned
    return F.cross_entropy(logits.float(), batch.labels[:, 1:][learned])


def _inputs(model: TinyLlava, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [pictures, n, hidden], mask to add [pictures, 1, n, n], positions [pictures, n]."""
    language_model: Any = model.language_model
    embed = language_model.get_input_embeddings()
    pictures = model.encode(batch.pixels)
    count = len(pictures)
    shared = embed(torch.tensor(batch.shared)).expand(count, -1, -1)
    rows = torch.cat([shared, pictures.to(shared.dtype), embed(batch.ids)], dim=1)
    before = len(batch.shared) + pictures.shape[1]
    members = torch.cat([torch.full((count, before), _SHARED), batch.members], dim=1)
    positions = torch.cat([torch.arange(before).expand(count, -1), before + batch.offsets], dim=1)
    visible = (members[:, :, None] == members[:, None, :]) | (members[:, None, :] == _SHARED)
    visible &= torch.ones(visible.shape[1:], dtype=torch.bool).tril()
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    return rows, mask[:, None], positions

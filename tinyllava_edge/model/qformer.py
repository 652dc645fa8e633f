"""The `qformer` connector: BLIP-2's querying transformer (docs/sources/tinyllava.md#q-former).

BERT layers, norms after the sums; even layers also attend to the picture. Sizes are those of a BERT config,
which no checkpoint contains: bert-base-uncased unless `--sources` has another.
"""

import torch
from torch import nn

from tinyllava_edge.checkpoint.config import BertSizes, ConnectorConfig


class QFormer(nn.Module):
    """[batch, tokens, vision_hidden] -> [batch, num_queries, language_hidden]."""

    def __init__(self, config: ConnectorConfig, vision_hidden: int, language_hidden: int) -> None:
        super().__init__()
        sizes = config.bert
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_queries, sizes.hidden_size))
        self.bert = nn.ModuleDict({"encoder": _Encoder(vision_hidden, sizes)})
        self.projector = nn.Linear(sizes.hidden_size, language_hidden)
        self.eps = sizes.layer_norm_eps

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The embedding stage is a LayerNorm without weights, as upstream deletes them."""
        queries = self.query_tokens.expand(features.shape[0], -1, -1)
        queries = nn.functional.layer_norm(queries, queries.shape[-1:], eps=self.eps)
        for layer in self.bert["encoder"].layer:  # type: ignore[union-attr]
            queries = layer(queries, features)
        output: torch.Tensor = self.projector(queries)
        return output


class _Encoder(nn.Module):
    def __init__(self, vision_hidden: int, sizes: BertSizes) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            _Layer(vision_hidden if index % 2 == 0 else None, sizes)
            for index in range(sizes.num_hidden_layers)
        )


class _Layer(nn.Module):
    """Self-attention, cross-attention where `vision_hidden` is given, feed-forward."""

    def __init__(self, vision_hidden: int | None, sizes: BertSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.attention = _Attention(width, sizes)
        self.crossattention = None if vision_hidden is None else _Attention(vision_hidden, sizes)
        self.intermediate_query = nn.ModuleDict({"dense": nn.Linear(width, sizes.intermediate_size)})
        self.output_query = _Output(sizes.intermediate_size, sizes)

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        queries = self.attention(queries, queries)
        if self.crossattention is not None:
            queries = self.crossattention(queries, features)
        inner = nn.functional.gelu(self.intermediate_query["dense"](queries))
        output: torch.Tensor = self.output_query(inner, queries)
        return output


class _Attention(nn.Module):
    """Names as in transformers' BertAttention: `self` projects, `output` mixes, adds and normalises."""

    def __init__(self, key_width: int, sizes: BertSizes) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.heads = sizes.num_attention_heads
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(key_width, width),
                "value": nn.Linear(key_width, width),
            }
        )
        self.output = _Output(width, sizes)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        query = self._heads(self.self["query"](queries))
        key, value = self._heads(self.self["key"](keys)), self._heads(self.self["value"](keys))
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        output: torch.Tensor = self.output(attended.transpose(1, 2).flatten(2), queries)
        return output

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(*rows.shape[:2], self.heads, -1).transpose(1, 2)


class _Output(nn.Module):
    """Linear, then the sum with the input, then LayerNorm."""

    def __init__(self, inner: int, sizes: BertSizes) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=sizes.layer_norm_eps)

    def forward(self, inner: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.LayerNorm(self.dense(inner) + residual)
        return output

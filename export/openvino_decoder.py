"""The language model as an OpenVINO graph with its KV cache inside, made of OpenVINO's own operations.

One decoder for every family, and none is named here: which tensors there are tells how a layer is built, and
the entry in `families.py` tells the rest. Computed as the reference model does (`model/language_model.py`),
which `verify` holds it against.

Inputs: `input_ids` [1, n] int32, where -1 takes the row of `inputs_embeds` [1, n, hidden] (or [1, 1, hidden]
where no id is -1); `position_ids` [1, n]; `key_positions` [all], of what the cache holds and of the new rows:
a row whose position is beyond every query's is not seen; `wanted` [k], the rows whose logits are computed;
`beam_idx` [1], which is 0: only with it the CPU plugin keeps keys and values in its own cache
(docs/sources/openvino.md#kv-cache). Output: `logits` [1, k, vocab].
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from openvino import Type
from openvino import opset13 as op

from tinyllava_edge.checkpoint.config import LanguageConfig
from tinyllava_edge.checkpoint.families import SLIDING
from tinyllava_edge.checkpoint.rope import rope_divisors
from tinyllava_edge.precisions import FLOAT16_MAX

Weight = Callable[[str], Any]  # name of a tensor -> node of its values in float32
Rows = Callable[[str, Any], Any]  # name of a table, ids [1, n] -> [1, n, columns]
_LOWEST = -FLOAT16_MAX  # of a position that is not seen; finite in every type
# Names of modules in transformers' decoders, the first that a checkpoint has.
_TABLES = ("model.embed_tokens", "transformer.token_embeddings")
_BEFORE_FFN = ("pre_feedforward_layernorm", "ffn_norm", "post_attention_layernorm")
_ATTENTION_OUTPUT = ("self_attn.o_proj", "self_attn.dense", "attn.out_proj")
# The first product of the feed-forward -> the last one; gate and up are one tensor in two of them.
_FEED_FORWARD = {
    "mlp.gate_proj": "down_proj",
    "mlp.gate_up_proj": "down_proj",
    "ffn.proj_1": "proj_2",
    "mlp.fc1": "fc2",
}


class Decoder:
    """Builds the graph of one model.

    Args:
        config: the language model's.
        weight: gives a tensor's values by its canonical name.
        rows: gives rows of a table by its canonical name and their numbers.
        has: whether the checkpoint has a tensor of this name.
    """

    def __init__(
        self, config: LanguageConfig, weight: Weight, rows: Rows, has: Callable[[str], bool]
    ) -> None:
        self._config, self._weight, self._rows, self._has = config, weight, rows, has
        self._states: list[Any] = []
        self._family = config.family
        self._table = self._first_of("", _TABLES)
        self._root = self._table.split(".")[0]

    def build(self) -> Any:
        """The model; its states are named `keys.0`, `values.0` and so on."""
        hidden = self._config.hidden_size
        ids = _parameter([1, -1], Type.i32, "input_ids")
        embeds = _parameter([1, -1, hidden], Type.f32, "inputs_embeds")
        positions = _parameter([1, -1], Type.i32, "position_ids")
        keys = _parameter([-1], Type.i32, "key_positions")
        wanted = _parameter([-1], Type.i32, "wanted")
        self._beams = _parameter([-1], Type.i32, "beam_idx")
        is_row = op.unsqueeze(op.less(ids, _ints(0)), _ints(2))  # [1, n, 1]
        rows = op.select(is_row, embeds, self._rows(f"{self._table}.weight", op.maximum(ids, _ints(0))))
        if self._config.embedding_scale != 1.0:
            rows = op.multiply(rows, _floats(self._config.embedding_scale))
        self._rotary = self._cosines_and_sines(positions)
        self._masks = self._build_masks(positions, keys)
        for layer in range(self._config.num_hidden_layers):
            rows = self._layer(layer, rows)
        final = self._first_of(f"{self._root}.", ("norm", "final_layernorm"))
        rows = self._norm(op.gather(rows, wanted, _ints(1)), final)
        result = op.result(self._head(rows))
        result.get_output_tensor(0).set_names({"logits"})
        inputs = [ids, embeds, positions, keys, wanted, self._beams]
        return openvino.Model([result], self._states, inputs, self._config.architecture)

    def _head(self, rows: Any) -> Any:
        logits = self._linear(rows, self._table if self._config.tie_word_embeddings else "lm_head")
        if cap := self._config.values.get("final_logit_softcapping"):
            logits = op.multiply(op.tanh(op.divide(logits, _floats(cap))), _floats(cap))
        return logits

    def _first_of(self, prefix: str, names: tuple[str, ...]) -> str:
        """The one of some modules that the checkpoint has a weight of."""
        return next(prefix + name for name in names if self._has(f"{prefix}{name}.weight"))

    def _layer(self, layer: int, rows: Any) -> Any:
        name = f"{self._root}.layers.{layer}."
        normed = self._norm(rows, self._first_of(name, ("input_layernorm", "attn_norm")))
        attended = self._attention(layer, normed)
        is_normed_behind = self._has(
            f"{name}pre_feedforward_layernorm.weight"
        )  # else one name has two places
        if is_normed_behind:
            attended = self._norm(attended, f"{name}post_attention_layernorm")
        names = tuple(each for each in _BEFORE_FFN if self._has(f"{name}{each}.weight"))
        if not names:  # side by side behind one norm
            return op.add(rows, op.add(attended, self._feed_forward(layer, normed)))
        rows = op.add(rows, attended)
        fed = self._feed_forward(layer, self._norm(rows, name + names[0]))
        if is_normed_behind:
            fed = self._norm(fed, f"{name}post_feedforward_layernorm")
        return op.add(rows, fed)

    def _attention(self, layer: int, rows: Any) -> Any:
        config = self._config
        output = self._first_of(f"{self._root}.layers.{layer}.", _ATTENTION_OUTPUT)
        name = output.rpartition(".")[0]
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        if self._family.layers_differ:
            heads, kv_heads = (config.values[key][layer] for key in ("num_query_heads", "num_kv_heads"))
        query, key, value = self._projections(name, rows, heads, kv_heads)
        for letter in "qk":
            if self._has(f"{name}.{letter}_norm.weight"):
                normed = self._norm(query if letter == "q" else key, f"{name}.{letter}_norm")
                query, key = (normed, key) if letter == "q" else (query, normed)
        if self._of_layer("no_rope_layers", layer) != 0:
            query, key = self._rotate(query), self._rotate(key)
        key, value = (
            self._grow(f"{kind}.{layer}", states, kv_heads)
            for kind, states in (("keys", key), ("values", value))
        )
        if heads != kv_heads:
            key, value = (_repeat(states, heads // kv_heads, config.head_dim) for states in (key, value))
        mask = self._masks[self._of_layer("layer_types", layer) == SLIDING]
        found = self._attend(query, key, value, mask)
        joined = op.reshape(op.transpose(found, _ints([0, 2, 1, 3])), _ints([0, 0, -1]), True)
        return self._linear(joined, output)

    def _of_layer(self, name: str, layer: int) -> Any:
        """What the family's entry says of a layer; None where it says nothing."""
        repeated = self._family.by_layer.get(name)
        return repeated[layer % len(repeated)] if repeated else None

    def _projections(self, name: str, rows: Any, heads: int, kv_heads: int) -> list[Any]:
        """Queries, keys and values [1, heads, n, head_dim]."""
        counts = (heads, kv_heads, kv_heads)
        if self._has(f"{name}.qkv_proj.weight"):
            fused = self._linear(rows, f"{name}.qkv_proj")
            sizes = _ints([count * self._config.head_dim for count in counts])
            parts = op.variadic_split(fused, _ints(2), sizes).outputs()
        else:
            parts = [self._linear(rows, f"{name}.{letter}_proj") for letter in "qkv"]
        shapes = [_ints([0, 0, count, self._config.head_dim]) for count in counts]
        split = [op.reshape(part, shape, True) for part, shape in zip(parts, shapes, strict=True)]
        return [op.transpose(part, _ints([0, 2, 1, 3])) for part in split]

    def _attend(self, query: Any, key: Any, value: Any, mask: Any) -> Any:
        config = self._config
        scale = config.values.get("query_pre_attn_scalar", config.head_dim) ** -0.5
        cap = config.values.get("attn_logit_softcapping")
        if not cap:
            return op.scaled_dot_product_attention(query, key, value, mask, _floats(scale))
        scores = op.multiply(op.matmul(query, key, False, True), _floats(scale / cap))
        scores = op.add(op.multiply(op.tanh(scores), _floats(cap)), mask)
        return op.matmul(op.softmax(scores, 3), value, False, False)

    def _grow(self, name: str, states: Any, kv_heads: int) -> Any:
        """What the cache holds and, behind it, what is new: [1, kv_heads, positions, head_dim]."""
        shape = [1, kv_heads, 0, self._config.head_dim]
        nothing = op.broadcast(_floats(0.0), _ints(shape))
        info = openvino.op.util.VariableInfo()
        info.data_shape = openvino.PartialShape([1, kv_heads, -1, self._config.head_dim])
        info.data_type, info.variable_id = Type.f32, name
        variable = openvino.op.util.Variable(info)
        past = op.read_value(nothing, variable)
        grown = op.concat([op.gather(past, self._beams, _ints(0)), states], 2)
        self._states.append(op.assign(grown, variable))
        return grown

    def _cosines_and_sines(self, positions: Any) -> tuple[Any, Any]:
        """Of every angle [1, 1, n, rotary_dim], as transformers computes them in float32."""
        config = self._config
        exponents = np.arange(0, config.rotary_dim, 2, dtype=np.float32) / np.float32(config.rotary_dim)
        frequencies = (np.float32(1) / np.float32(config.rope_theta) ** exponents).astype(np.float32)
        scaling = config.rope_scaling or {}
        if scaling.get("rope_type") == "linear":
            frequencies /= np.float32(scaling["factor"])
        elif scaling.get("rope_type") == "llama3":
            divisors = rope_divisors(scaling, config.rope_theta, config.rotary_dim)
            frequencies /= np.array(divisors, dtype=np.float32)
        column = op.unsqueeze(op.convert(positions, Type.f32), _ints([1, 3]))  # [1, 1, n, 1]
        angles = op.multiply(column, _floats(frequencies.reshape(1, 1, 1, -1)))
        both = op.concat([angles, angles], 3)
        return op.cos(both), op.sin(both)

    def _rotate(self, heads: Any) -> Any:
        """In the form that the plugin has one operation for (docs/sources/openvino.md#turned-heads)."""
        dim, head_dim = self._config.rotary_dim, self._config.head_dim
        turned, rest = heads, None
        if dim < head_dim:
            turned, rest = op.variadic_split(heads, _ints(3), _ints([dim, head_dim - dim])).outputs()
        first, second = op.variadic_split(turned, _ints(3), _ints([dim // 2, dim // 2])).outputs()
        other = op.concat([op.multiply(second, _floats(-1.0)), first], -1)
        cosines, sines = self._rotary
        found = op.add(op.multiply(turned, cosines), op.multiply(other, sines))
        return found if rest is None else op.concat([found, rest], -1)

    def _build_masks(self, positions: Any, keys: Any) -> tuple[Any, Any]:
        """What is added to scores [1, 1, n, all]: of full attention, and of a sliding window."""
        queries = op.unsqueeze(positions, _ints([1, 3]))  # [1, 1, n, 1]
        seen = op.less_equal(keys, queries)
        full = op.select(seen, _floats(0.0), _floats(_LOWEST))
        window = self._config.values.get("sliding_window")
        if SLIDING not in self._family.by_layer.get("layer_types", ()) or not window:
            return full, full
        near = op.logical_and(seen, op.greater(op.add(keys, _ints(window)), queries))
        return full, op.select(near, _floats(0.0), _floats(_LOWEST))

    def _feed_forward(self, layer: int, rows: Any) -> Any:
        layers = f"{self._root}.layers.{layer}."
        first = self._first_of(layers, tuple(_FEED_FORWARD))
        name, last = first.rpartition(".")[0], _FEED_FORWARD[first.removeprefix(layers)]
        inner = self._linear(rows, first)
        if first.endswith("fc1"):
            return self._linear(self._activate(inner), f"{name}.{last}")
        if first.endswith("gate_proj"):
            gate, up = inner, self._linear(rows, f"{name}.up_proj")
        else:
            gate, up = op.split(inner, _ints(2), 2).outputs()
        return self._linear(op.multiply(self._activate(gate), up), f"{name}.{last}")

    def _activate(self, values: Any) -> Any:
        """GELU in its tanh form is the only one besides SiLU that any graph of llama.cpp computes here."""
        return op.gelu(values, "tanh") if self._family.float16_gelu else op.swish(values)

    def _linear(self, rows: Any, name: str) -> Any:
        found = op.matmul(rows, self._weight(f"{name}.weight"), False, True)
        return op.add(found, self._weight(f"{name}.bias")) if self._has(f"{name}.bias") else found

    def _norm(self, rows: Any, name: str) -> Any:
        weight, epsilon = self._weight(f"{name}.weight"), self._config.norm_eps
        if self._family.norm == "layer":
            normed = op.mvn(rows, _ints([-1]), True, epsilon, "inside_sqrt")
            return op.add(op.multiply(normed, weight), self._weight(f"{name}.bias"))
        if self._family.norms_around_one:
            weight = op.add(weight, _floats(1.0))
        square = op.reduce_mean(op.power(rows, _floats(2.0)), _ints([-1]), True)
        root = op.sqrt(op.add(square, _floats(epsilon)))
        return op.multiply(op.multiply(rows, op.divide(_floats(1.0), root)), weight)


def _repeat(states: Any, times: int, head_dim: int) -> Any:
    """Each head so many times, for the queries that share it."""
    wide = op.broadcast(op.unsqueeze(states, _ints(2)), _ints([1, 1, times, 1, 1]), None, "BIDIRECTIONAL")
    heads = states.get_output_partial_shape(0)[1].get_length() * times
    return op.reshape(wide, _ints([1, heads, -1, head_dim]), False)


def _parameter(shape: list[int], kind: Any, name: str) -> Any:
    node = op.parameter(shape, kind, name)
    node.get_output_tensor(0).set_names({name})
    return node


def _ints(values: Any) -> Any:
    return op.constant(np.array(values, dtype=np.int32))


def _floats(values: Any) -> Any:
    return op.constant(np.array(values, dtype=np.float32))

"""ONNX graphs of the cases, of the fused operators that ONNX Runtime's own optimiser makes of such models."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime
from cases import Attention, EncoderLayer, MultiheadAttention
from formulas import LAYER_NORM_EPS, Arrays
from onnx import helper, numpy_helper
from sentence_cases import layer_state

CONTRIB = "com.microsoft"
# Up to this length one operator for projections and attention is the fastest, above it the attention that
# never forms all scores, behind a product of its own. Measured on 2 cores; from 16 to 128 they are equal.
SHORT = 16


class Graph:
    """Nodes are added one by one; names of their outputs are what the next take."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"constant {len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes) -> list[str]:
        names = [f"{operator} {len(self.nodes)} {i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, domain=domain, **attributes))
        return names

    def linear(self, x: str, weight: np.ndarray) -> str:
        return self.add("MatMul", x, self.constant(weight.T))[0]

    def session(self, inputs: dict[str, str], output: str, threads: int) -> onnxruntime.InferenceSession:
        """`inputs`: the dtype of each."""

        def described(name: str, dtype: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)

        graph = helper.make_graph(
            self.nodes,
            "case",
            [described(name, dtype) for name, dtype in inputs.items()],
            [described(output, "float32")],
            self.constants,
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def attention(case: Attention, *, has_bias: bool, threads: int) -> onnxruntime.InferenceSession:
    """Of query, key and value (batch, length, heads * dim), and perhaps a bias; with fewer key heads, or one
    query, (batch, heads, length, dim)."""
    graph = Graph()
    inputs = dict.fromkeys(("query", "key", "value", *(["bias"] if has_bias else [])), "float32")
    if takes_heads_apart(case):
        names = ["query", "key", "value", *(["bias"] if has_bias else [])]
        output = graph.add("Attention", *names, is_causal=int(case.causal and not has_bias))
    else:
        names = ["query", "key", "value", "", "", "bias" if has_bias else ""]
        output = graph.add(
            "MultiHeadAttention",
            *names,
            domain=CONTRIB,
            num_heads=case.heads,
            unidirectional=int(case.causal and not has_bias),
        )
    return graph.session(inputs, output[0], threads)


def takes_heads_apart(case: Attention) -> bool:
    return case.key_shape[1] != case.heads


def multihead_attention(case: MultiheadAttention, threads: int) -> onnxruntime.InferenceSession:
    graph = Graph()
    state = case.state()
    y = self_attention(graph, "x", state, case.heads, length=case.length)
    output = graph.add("Add", y, graph.constant(state["out_proj.bias"]))[0]
    return graph.session({"x": "float32"}, output, threads)


def self_attention(
    graph: Graph,
    x: str,
    state: Arrays,
    heads: int,
    *,
    length: int | None,
    causal: bool = False,
    key_lengths: str = "",
) -> str:
    """Without the output projection's bias, which the operator after it adds."""
    weight, bias = state["in_proj_weight"], graph.constant(state["in_proj_bias"])
    options = {"num_heads": heads, "unidirectional": int(causal), "domain": CONTRIB}
    if length is not None and length <= SHORT:
        y = graph.add("Attention", x, graph.constant(weight.T), bias, key_lengths, **options)[0]
    else:
        parts = graph.add("Split", graph.linear(x, weight), outputs=3, axis=-1, num_outputs=3)
        y = graph.add("MultiHeadAttention", *parts, bias, key_lengths, **options)[0]
    return graph.linear(y, state["out_proj.weight"])


def encoder_layer(case: EncoderLayer, threads: int) -> onnxruntime.InferenceSession:
    graph = Graph()
    add = add_pre_norm_layer if case.norm_first else add_post_norm_layer
    inputs = {"x": "float32"} | ({"key_lengths": "int32"} if case.ragged else {})
    output = add(
        graph,
        "x",
        case.state(),
        case.heads,
        LAYER_NORM_EPS,
        length=case.length,
        causal=case.causal,
        key_lengths="key_lengths" if case.ragged else "",
    )
    return graph.session(inputs, output, threads)


def attention_state(state: Arrays) -> Arrays:
    prefix = "self_attn."
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}


def norm_constants(graph: Graph, state: Arrays, name: str) -> list[str]:
    return [graph.constant(state[f"{name}.{part}"]) for part in ("weight", "bias")]


def feed_forward(graph: Graph, x: str, state: Arrays) -> str:
    """Without the second bias, which the operator after it adds."""
    hidden = graph.linear(x, state["linear1.weight"])
    hidden = graph.add("BiasGelu", hidden, graph.constant(state["linear1.bias"]), domain=CONTRIB)[0]
    return graph.linear(hidden, state["linear2.weight"])


def add_post_norm_layer(graph: Graph, x: str, state: Arrays, heads: int, eps: float, **masks) -> str:
    def norm_of_sum(y: str, x: str, name: str, bias: str) -> str:
        constants = [*norm_constants(graph, state, name), graph.constant(state[bias])]
        return graph.add("SkipLayerNormalization", y, x, *constants, domain=CONTRIB, epsilon=eps)[0]

    y = self_attention(graph, x, attention_state(state), heads, **masks)
    x = norm_of_sum(y, x, "norm1", "self_attn.out_proj.bias")
    return norm_of_sum(feed_forward(graph, x, state), x, "norm2", "linear2.bias")


def add_pre_norm_layer(graph: Graph, x: str, state: Arrays, heads: int, eps: float, **masks) -> str:
    normed = graph.add("LayerNormalization", x, *norm_constants(graph, state, "norm1"), epsilon=eps)[0]
    y = self_attention(graph, normed, attention_state(state), heads, **masks)
    # Its first output is the norm, its fourth the sum that is normed.
    constants = [*norm_constants(graph, state, "norm2"), graph.constant(state["self_attn.out_proj.bias"])]
    normed, _, _, x = graph.add(
        "SkipLayerNormalization", y, x, *constants, outputs=4, domain=CONTRIB, epsilon=eps
    )
    y = graph.add("Add", feed_forward(graph, normed, state), graph.constant(state["linear2.bias"]))[0]
    return graph.add("Add", y, x)[0]


def sentence_encoder(weights: Arrays, config: dict, threads: int) -> onnxruntime.InferenceSession:
    """BERT, of ids (batch, length), padded, and key_lengths (batch,): the last hidden state."""
    graph = Graph()
    eps = config["layer_norm_eps"]
    embeddings = [
        graph.constant(weights[f"embeddings.{name}"])
        for name in (
            "word_embeddings.weight",
            "position_embeddings.weight",
            "token_type_embeddings.weight",
            "LayerNorm.weight",
            "LayerNorm.bias",
        )
    ]
    types = graph.add("Sub", "ids", "ids")[0]
    x = graph.add(
        "EmbedLayerNormalization", "ids", types, *embeddings, outputs=2, domain=CONTRIB, epsilon=eps
    )[0]
    for index in range(config["num_hidden_layers"]):
        state = layer_state(weights, index)
        x = add_post_norm_layer(
            graph, x, state, config["num_attention_heads"], eps, length=None, key_lengths="key_lengths"
        )
    return graph.session({"ids": "int32", "key_lengths": "int32"}, x, threads)


def bias_of(allowed: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray | None:
    """What is added to the scores, for a mask, a bias or both."""
    if allowed is None:
        return bias
    hidden = np.where(allowed, np.float32(0), np.float32(-math.inf))
    return hidden if bias is None else hidden + bias

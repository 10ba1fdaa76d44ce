"""The ONNX standard's own node tests, which its 1.22.0 wheel carries: an oracle written by others."""

from pathlib import Path

import blasformer
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

NODE_TESTS = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"

# How many tests of each operator there are, expanded twins aside, so that none goes missing unnoticed.
OPERATORS = {
    "Attention": 64,
    "RotaryEmbedding": 8,
    "LayerNormalization": 19,
    "RMSNormalization": 19,
    "Gelu": 4,
    "Softmax": 7,
    "LogSoftmax": 7,
}

# What the contract cannot express, and why.
RANDOM_CACHES = "cos_cache and sin_cache hold random numbers, which are the cosine and sine of no angle"
NOT_EXPRESSIBLE = {
    "test_rotary_embedding": RANDOM_CACHES,
    "test_rotary_embedding_3d_input": RANDOM_CACHES,
    "test_rotary_embedding_interleaved": RANDOM_CACHES,
    "test_rotary_embedding_no_position_ids": RANDOM_CACHES,
    "test_rotary_embedding_no_position_ids_interleaved": RANDOM_CACHES,
    "test_rotary_embedding_no_position_ids_rotary_dim": RANDOM_CACHES,
    "test_rotary_embedding_with_interleaved_rotary_dim": RANDOM_CACHES,
    "test_rotary_embedding_with_rotary_dim": RANDOM_CACHES,
}


class NodeTest:
    """A model of one node, its attributes, inputs and expected outputs by name; absent ones are None."""

    def __init__(self, folder):
        (self.node,) = onnx.load(folder / "model.onnx").graph.node
        self.operator = self.node.op_type
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in self.node.attribute}
        self.inputs = self._tensors(folder, "input", self.node.input)
        self.outputs = self._tensors(folder, "output", self.node.output)

    @staticmethod
    def _tensors(folder, kind, names):
        present = [name for name in names if name]
        files = [folder / "test_data_set_0" / f"{kind}_{index}.pb" for index in range(len(present))]
        arrays = [numpy_helper.to_array(onnx.load_tensor(file)) for file in files]
        assert len(list((folder / "test_data_set_0").glob(f"{kind}_*.pb"))) == len(present)
        return dict(zip(present, arrays, strict=True))


def node_tests():
    folders = sorted(folder for folder in NODE_TESTS.iterdir() if "_expanded" not in folder.name)
    prefixes = ("attention", "rotary", "layer_norm", "rms_norm", "gelu", "softmax", "logsoftmax")
    candidates = [folder for folder in folders if folder.name.removeprefix("test_").startswith(prefixes)]
    tests = {folder.name: NodeTest(folder) for folder in candidates}
    return {name: test for name, test in tests.items() if test.operator in OPERATORS}


TESTS = node_tests()


def run_attention(test):
    query, key, value = (test.inputs[name] for name in "QKV")
    three_axes = query.ndim == 3
    if three_axes:
        query = split_heads(query, test.attributes["q_num_heads"])
        key, value = (split_heads(x, test.attributes["kv_num_heads"]) for x in (key, value))
    past = 0
    if "past_key" in test.inputs:
        past = test.inputs["past_key"].shape[-2]
        key = np.concatenate([test.inputs["past_key"], key], axis=-2)
        value = np.concatenate([test.inputs["past_value"], value], axis=-2)

    arguments = {"scale": test.attributes.get("scale")}
    if test.attributes.get("softcap"):
        arguments["softcap"] = test.attributes["softcap"]
    softcapped = dict(arguments)
    if "attn_mask" in test.inputs:
        mask = test.inputs["attn_mask"]
        missing = key.shape[-2] - mask.shape[-1]  # the standard masks the keys a short mask leaves out
        mask = np.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(0, missing)], constant_values=absent(mask.dtype))
        arguments["mask" if mask.dtype == bool else "bias"] = mask
    if test.attributes.get("is_causal"):
        arguments |= {"causal": True, "query_offset": past}
    if "nonpad_kv_seqlen" in test.inputs:
        arguments["key_lengths"] = test.inputs["nonpad_kv_seqlen"]

    output = blasformer.scaled_dot_product_attention(query, key, value, **arguments)
    results = {"Y": merge_heads(output) if three_axes else output, "present_key": key, "present_value": value}
    mode = test.attributes.get("qk_matmul_output_mode", 0)
    terms = [{"scale": arguments["scale"]}, softcapped, arguments, arguments][mode]
    everything = blasformer.scaled_dot_product_attention(
        query, key, value, **terms, return_weights=True, return_logsumexp=True
    )
    with np.errstate(divide="ignore"):
        scores = np.log(everything.weights) + everything.logsumexp[..., None]
    results["qk_matmul_output"] = everything.weights if mode == 3 else scores
    return results


def absent(dtype):
    return False if dtype.kind == "b" else -np.inf


def split_heads(x, heads):
    return np.swapaxes(x.reshape(*x.shape[:-1], heads, -1), -2, -3)


def merge_heads(x):
    x = np.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-2], -1)


def run_layer_norm(test):
    x, weight, bias = (test.inputs[name] for name in ("X", "W", "B"))
    axis, eps = test.attributes.get("axis", -1), test.attributes.get("epsilon", 1e-5)
    return {"Y": blasformer.layer_norm(x, x.shape[axis:], weight, bias, eps=eps)}


def run_rms_norm(test):
    x, weight = test.inputs["X"], test.inputs["W"]
    axis, eps = test.attributes.get("axis", -1), test.attributes.get("epsilon", 1e-5)
    return {"Y": blasformer.rms_norm(x, x.shape[axis:], weight, eps=eps)}


def run_gelu(test):
    approximate = test.attributes.get("approximate", b"none").decode()
    return {"y": blasformer.gelu(test.inputs["x"], approximate=approximate)}


def run_softmax(test):
    return {"y": blasformer.softmax(test.inputs["x"], axis=test.attributes.get("axis", -1))}


def run_log_softmax(test):
    return {"y": blasformer.log_softmax(test.inputs["x"], axis=test.attributes.get("axis", -1))}


RUN = {
    "Attention": run_attention,
    "LayerNormalization": run_layer_norm,
    "RMSNormalization": run_rms_norm,
    "Gelu": run_gelu,
    "Softmax": run_softmax,
    "LogSoftmax": run_log_softmax,
}


@pytest.mark.parametrize("name", [name for name in TESTS if name not in NOT_EXPRESSIBLE])
def test_the_standards_node_test_passes(name, isa):
    test = TESTS[name]
    results = RUN[test.operator](test)
    # Statistics that LayerNormalization can return beside its result are no part of the contract.
    expected = {
        output: array for output, array in test.outputs.items() if output not in ("Mean", "InvStdDev")
    }
    half = any(array.dtype == np.float16 for array in expected.values())
    for output, array in expected.items():
        assert results[output].dtype == array.dtype
        # The standard's own tolerance; its float16 results are sums in float16, rounded at every step.
        tolerance = {"rtol": 2e-2, "atol": 1e-3} if half else {"rtol": 1e-3, "atol": 1e-7}
        np.testing.assert_allclose(results[output], array, **tolerance, err_msg=output)


def test_every_node_test_of_these_operators_is_run_or_listed():
    counts = {operator: sum(test.operator == operator for test in TESTS.values()) for operator in OPERATORS}
    assert counts == OPERATORS
    assert set(NOT_EXPRESSIBLE) <= set(TESTS)


@pytest.mark.parametrize("name", NOT_EXPRESSIBLE)
def test_what_is_listed_as_not_expressible_is_not(name):
    """The caches belong to no angle: cos^2 + sin^2 is not 1."""
    test = TESTS[name]
    squares = test.inputs["cos_cache"] ** 2 + test.inputs["sin_cache"] ** 2
    assert np.abs(squares - 1).max() > 0.1

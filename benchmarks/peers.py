"""How further libraries compute a case: torch.compile, ONNX Runtime and CTranslate2, in float32."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import numpy as np
from cases import Attention, Case, EncoderLayer, MultiheadAttention
from formulas import Arrays
from libraries import Call, Library, PyTorch, Unsupported
from sentence_cases import Sentences, checkpoint, config, embed_padded, weights

# Of a process that held_to_avx2.py made.
HELD_TO_AVX2 = "(held to AVX2)"


def thread_count() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


class TorchCompile(PyTorch):
    """PyTorch's calls, each through torch.compile."""

    def version(self) -> str:
        return "torch.compile"

    def attention(self, case: Attention, inputs: Arrays) -> Call:
        if case.pytorch_fuses:
            raise Unsupported("the same kernel as without it")
        return super().attention(case, inputs)

    def sentences(self, case: Sentences, inputs: Arrays) -> Call:
        raise Unsupported("compiles again for every length")

    def compiled(self, function: Callable) -> Callable:
        import torch

        torch._dynamo.reset()
        if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":
            torch._inductor.config.cpp.simdlen = 256
        quick = torch.compile(function, dynamic=False)

        def call(*arguments, **options):
            try:
                return quick(*arguments, **options)
            except Exception as error:
                raise Unsupported(f"torch.compile fails: {str(error).splitlines()[0]}") from error

        return call


class OnnxRuntime(Library):
    """Graphs of its fused operators; inputs are in the layout that they take."""

    def version(self) -> str:
        import onnxruntime

        held = f" {HELD_TO_AVX2}" if os.environ.get("HELD_TO_AVX2") else ""
        return f"ONNX Runtime {onnxruntime.__version__}{held}"

    def check(self, case: Case) -> None:
        if case.backward:
            raise Unsupported("no gradients")
        if case.dtype != "float32" or case.precision != "highest":
            raise Unsupported("float32 only")

    def attention(self, case: Attention, inputs: Arrays) -> Call:
        import onnx_models

        if case.dropout_p:
            raise Unsupported("no dropout")
        # The operator knows causal, but not windows and lengths.
        only_causal = case.causal and case.window is None and case.mask is None
        allowed = inputs.get("mask", None if only_causal else case.allowed())
        bias = onnx_models.bias_of(allowed, inputs.get("bias"))
        feed = {name: inputs[name] for name in ("query", "key", "value")}
        heads_apart = onnx_models.takes_heads_apart(case)
        if not heads_apart:
            feed = {name: heads_last(array) for name, array in feed.items()}
        if bias is not None:
            feed["bias"] = np.ascontiguousarray(
                np.broadcast_to(bias, (*bias.shape[:2], case.length, bias.shape[3]))
            )
        session = onnx_models.attention(case, has_bias=bias is not None, threads=thread_count())
        if heads_apart:
            return lambda: session.run(None, feed)

        def call() -> tuple:
            (output,) = session.run(None, feed)
            batch, length, _ = output.shape
            return (output.reshape(batch, length, case.heads, -1).swapaxes(1, 2),)

        return call

    def multihead_attention(self, case: MultiheadAttention, inputs: Arrays) -> Call:
        import onnx_models

        session = onnx_models.multihead_attention(case, thread_count())
        return lambda: session.run(None, inputs)

    def encoder_layer(self, case: EncoderLayer, inputs: Arrays) -> Call:
        import onnx_models

        session = onnx_models.encoder_layer(case, thread_count())
        feed = dict(inputs)
        if case.ragged:
            feed["key_lengths"] = case.key_lengths().astype(np.int32)
        return lambda: session.run(None, feed)

    def sentences(self, case: Sentences, inputs: Arrays) -> Call:
        import onnx_models

        session = onnx_models.sentence_encoder(weights(), config(), thread_count())

        def hidden_states(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            feed = {"ids": ids.astype(np.int32), "key_lengths": lengths.astype(np.int32)}
            return session.run(None, feed)[0]

        return embed_padded(case, hidden_states)


class CTranslate2(Library):
    """Its Encoder, converted from the checkpoint by its own converter."""

    def version(self) -> str:
        import ctranslate2

        return f"CTranslate2 {ctranslate2.__version__}"

    def sentences(self, case: Sentences, inputs: Arrays) -> Call:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        with tempfile.TemporaryDirectory() as folder:
            TransformersConverter(str(checkpoint())).convert(folder, force=True)
            encoder = ctranslate2.Encoder(
                folder, device="cpu", compute_type="float32", inter_threads=1, intra_threads=thread_count()
            )

        def hidden_states(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            storage = ctranslate2.StorageView.from_array
            output = encoder.forward_batch(storage(ids.astype(np.int32)), storage(lengths.astype(np.int32)))
            return np.array(output.last_hidden_state)

        return embed_padded(case, hidden_states)


def heads_last(x: np.ndarray) -> np.ndarray:
    """(batch, heads, length, dim) -> (batch, length, heads * dim)."""
    batch, _, length, _ = x.shape
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(batch, length, -1)


PEERS: dict[str, type[Library]] = {
    "torch.compile": TorchCompile,
    "onnxruntime": OnnxRuntime,
    "ctranslate2": CTranslate2,
}

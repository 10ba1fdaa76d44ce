"""How each library trains a case: what a user would write in it.

A trainer is made for a case, with the case's first weights or, without a state, with its own. `gradients()`
are those of a batch, under the names of training_cases.py; `step(batch)` is what is timed, and returns the
loss if there is one. PyTorch's can also be made in float64: its gradients then are the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from cases import LAYER_NORM_EPS, Arrays
from training_cases import (
    LEARNING_RATE,
    ClassifierTraining,
    LanguageModelTraining,
    LayerTraining,
    TrainingCase,
)


class Trainer(ABC):
    @abstractmethod
    def gradients(self, batch: Arrays) -> Arrays: ...

    @abstractmethod
    def step(self, batch: Arrays) -> float | None: ...


# ---- This package


class OurLayer(Trainer):
    def __init__(self, case: LayerTraining, state: Arrays | None) -> None:
        from blasformer import nn

        self.layer = nn.TransformerEncoderLayer(
            case.d_model,
            case.heads,
            case.dim_feedforward,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            norm_first=case.norm_first,
        )
        if state is not None:
            self.layer.load_state_dict(state)

    def gradients(self, batch: Arrays) -> Arrays:
        _, saved = self.layer.forward(batch["x"])
        d_x, grads = self.layer.backward(saved, batch["d_y"])
        return {"x": d_x, **grads}

    def step(self, batch: Arrays) -> None:
        self.gradients(batch)


class OurModel(Trainer):
    """A model that has loss_and_gradients, and AdamW."""

    def __init__(self, model, dropout: float) -> None:
        from blasformer import optim

        self.model = model
        self.optimizer = optim.AdamW(model, lr=LEARNING_RATE)
        self.rng = np.random.default_rng(0) if dropout else None

    def gradients(self, batch: Arrays) -> Arrays:
        return self.model.loss_and_gradients(*batch.values(), rng=self.rng)[1]

    def step(self, batch: Arrays) -> float:
        loss, grads = self.model.loss_and_gradients(*batch.values(), rng=self.rng)
        self.optimizer.step(grads)
        return loss


class OurLanguageModel(OurModel):
    def __init__(self, case: LanguageModelTraining, state: Arrays | None) -> None:
        from blasformer import models

        model = models.LanguageModel(
            case.vocab_size,
            case.length,
            case.d_model,
            case.heads,
            case.layers,
            dropout=case.dropout,
            layer_norm_eps=LAYER_NORM_EPS,
        )
        if state is not None:
            model.load_state_dict(state)
        super().__init__(model, case.dropout)


class OurClassifier(OurModel):
    # PyTorch's names without "weight" or "bias", and transformers' modules, which divide in_proj.
    MODULES: ClassVar = {
        "tokens.": ["embeddings.word_embeddings"],
        "positions.": ["embeddings.position_embeddings"],
        "norm.": ["embeddings.LayerNorm"],
    }
    LAYER_MODULES: ClassVar = {
        "self_attn.in_proj_": ["attention.self.query", "attention.self.key", "attention.self.value"],
        "self_attn.out_proj.": ["attention.output.dense"],
        "linear1.": ["intermediate.dense"],
        "linear2.": ["output.dense"],
        "norm1.": ["attention.output.LayerNorm"],
        "norm2.": ["output.LayerNorm"],
    }

    def __init__(self, case: ClassifierTraining, state: Arrays | None) -> None:
        from blasformer import models

        config = models.BertConfig(
            vocab_size=case.vocab_size,
            hidden_size=case.d_model,
            num_hidden_layers=case.layers,
            num_attention_heads=case.heads,
            intermediate_size=4 * case.d_model,
            max_position_embeddings=case.length,
            type_vocab_size=1,
            layer_norm_eps=LAYER_NORM_EPS,
            hidden_dropout_prob=case.dropout,
            attention_probs_dropout_prob=case.dropout,
        )
        model = models.BertForSequenceClassification(config, case.classes, "mean")
        # BERT adds a vector for the first of two sentences, which the case has not.
        segment = "bert.embeddings.token_type_embeddings.weight"
        model.load_state_dict({segment: np.zeros((1, case.d_model), np.float32)}, strict=False)
        model.freeze(segment)
        modules = {name: [f"bert.{part}" for part in parts] for name, parts in self.MODULES.items()}
        for index in range(case.layers):
            for name, parts in self.LAYER_MODULES.items():
                modules[f"encoder.layers.{index}.{name}"] = [
                    f"bert.encoder.layer.{index}.{part}" for part in parts
                ]
        modules["classifier."] = ["classifier"]
        self.parts = {
            name + leaf: [f"{part}.{leaf}" for part in parts]
            for name, parts in modules.items()
            for leaf in ("weight", "bias")
            if f"{parts[0]}.{leaf}" in model.parameters()
        }
        if state is not None:
            model.load_state_dict(
                {
                    part: piece
                    for name, parts in self.parts.items()
                    for part, piece in zip(parts, np.split(state[name], len(parts)), strict=True)
                },
                strict=False,
            )
        super().__init__(model, case.dropout)

    def gradients(self, batch: Arrays) -> Arrays:
        grads = super().gradients(batch)
        return {name: np.concatenate([grads[part] for part in parts]) for name, parts in self.parts.items()}


# ---- PyTorch


class TorchLayer(Trainer):
    def __init__(self, case: LayerTraining, state: Arrays | None, dtype: str = "float32") -> None:
        import torch

        self.layer = torch.nn.TransformerEncoderLayer(
            case.d_model,
            case.heads,
            case.dim_feedforward,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            batch_first=True,
            norm_first=case.norm_first,
            dtype=getattr(torch, dtype),
        )
        self.dtype = dtype
        if state is not None:
            self.layer.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def gradients(self, batch: Arrays) -> Arrays:
        import torch

        x = torch.from_numpy(batch["x"].astype(self.dtype, copy=False)).requires_grad_()
        self.layer.zero_grad(set_to_none=True)
        self.layer(x).backward(torch.from_numpy(batch["d_y"].astype(self.dtype, copy=False)))
        return {"x": x.grad.numpy()} | {
            name: parameter.grad.numpy() for name, parameter in self.layer.named_parameters()
        }

    def step(self, batch: Arrays) -> None:
        self.gradients(batch)


class TorchModel(Trainer):
    """One of torch_models.py, and fused AdamW."""

    def __init__(self, case: TrainingCase, state: Arrays | None, dtype: str = "float32") -> None:
        import torch
        import torch_models

        torch.manual_seed(0)
        self.model = torch_models.MODELS[case.kind](case).to(getattr(torch, dtype))
        if state is not None:
            self.model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def loss(self, batch: Arrays):
        import torch

        return self.model(*map(torch.from_numpy, batch.values()))

    def gradients(self, batch: Arrays) -> Arrays:
        self.loss(batch).backward()
        grads = {name: parameter.grad.numpy() for name, parameter in self.model.named_parameters()}
        self.optimizer.zero_grad(set_to_none=True)
        return grads

    def step(self, batch: Arrays) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()


TRAINERS = {
    "blasformer": {"layer": OurLayer, "language_model": OurLanguageModel, "classifier": OurClassifier},
    "pytorch": {"layer": TorchLayer, "language_model": TorchModel, "classifier": TorchModel},
}

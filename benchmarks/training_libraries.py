"""How each library trains a case: what a user would write in it.

A trainer is made for a case, with the case's first weights or, without a state, with its own. `gradients()`
are those of a batch, under the names of training_cases.py; `step(batch)` is what is timed, and returns the
loss if there is one. PyTorch's can also be made in float64: its gradients then are the truth.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from formulas import LAYER_NORM_EPS, Arrays
from training_cases import (
    LEARNING_RATE,
    ClassifierTraining,
    LanguageModelTraining,
    LayerTraining,
    Seq2SeqTraining,
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
        self.masks = {"causal": True} if case.causal else {}
        if state is not None:
            self.layer.load_state_dict(state)

    def gradients(self, batch: Arrays) -> Arrays:
        _, saved = self.layer.forward(batch["x"], **self.masks)
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
    def __init__(self, case: ClassifierTraining, state: Arrays | None) -> None:
        from blasformer import models

        model = models.Classifier(
            case.classes,
            case.length,
            vocab_size=case.vocab_size,
            d_model=case.d_model,
            nhead=case.heads,
            num_layers=case.layers,
            dropout=case.dropout,
            layer_norm_eps=LAYER_NORM_EPS,
        )
        if state is not None:
            model.load_state_dict(state)
        super().__init__(model, case.dropout)


class OurSeq2Seq(OurModel):
    def __init__(self, case: Seq2SeqTraining, state: Arrays | None) -> None:
        from blasformer import models

        model = models.Seq2Seq(
            case.vocab_size,
            case.vocab_size,
            bos_id=case.vocab_size - 2,
            eos_id=case.vocab_size - 1,
            d_model=case.d_model,
            nhead=case.heads,
            num_encoder_layers=case.layers,
            num_decoder_layers=case.layers,
            dim_feedforward=4 * case.d_model,
            dropout=case.dropout,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
        )
        if state is not None:
            model.load_state_dict(state)
        super().__init__(model, case.dropout)


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
        self.call = self.compiled(self.layer)
        self.masks = {}
        if case.causal:
            mask = torch.nn.Transformer.generate_square_subsequent_mask(
                case.length, dtype=getattr(torch, dtype)
            )
            self.masks = {"src_mask": mask, "is_causal": True}
        if state is not None:
            self.layer.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})

    def compiled(self, model):
        return model

    def gradients(self, batch: Arrays) -> Arrays:
        import torch

        x = torch.from_numpy(batch["x"].astype(self.dtype, copy=False)).requires_grad_()
        self.layer.zero_grad(set_to_none=True)
        self.call(x, **self.masks).backward(torch.from_numpy(batch["d_y"].astype(self.dtype, copy=False)))
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
        self.call = self.compiled(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def compiled(self, model):
        return model

    def loss(self, batch: Arrays):
        import torch

        return self.call(*map(torch.from_numpy, batch.values()))

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


class CompiledLayer(TorchLayer):
    def compiled(self, model):
        import torch

        return torch.compile(model, dynamic=False)


class CompiledModel(TorchModel):
    def compiled(self, model):
        import torch

        return torch.compile(model, dynamic=False)


TRAINERS = {
    "blasformer": {
        "layer": OurLayer,
        "language_model": OurLanguageModel,
        "classifier": OurClassifier,
        "seq2seq": OurSeq2Seq,
    },
    "pytorch": {
        "layer": TorchLayer,
        "language_model": TorchModel,
        "classifier": TorchModel,
        "seq2seq": TorchModel,
    },
    "torch.compile": {
        "layer": CompiledLayer,
        "language_model": CompiledModel,
        "classifier": CompiledModel,
        "seq2seq": CompiledModel,
    },
}

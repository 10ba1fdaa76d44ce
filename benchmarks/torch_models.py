"""The models of training_cases.py as they are written in PyTorch; calling one gives the loss."""

from __future__ import annotations

import torch
from formulas import LAYER_NORM_EPS
from torch import Tensor, nn
from torch.nn import functional
from training_cases import ClassifierTraining, LanguageModelTraining, Seq2SeqTraining


class CausalSelfAttention(nn.Module):
    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.c_attn = nn.Linear(d_model, 3 * d_model)
        self.c_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, d_model = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.c_attn(x).split(d_model, dim=-1)
        )
        y = functional.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout, is_causal=True)
        y = self.c_proj(y.transpose(1, 2).reshape(batch, length, d_model))
        return functional.dropout(y, self.dropout)


class FeedForward(nn.Module):
    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = nn.Linear(d_model, 4 * d_model)
        self.c_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))
        return functional.dropout(y, self.dropout)


class Block(nn.Module):
    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model, LAYER_NORM_EPS)
        self.attn = CausalSelfAttention(d_model, heads, dropout)
        self.ln_2 = nn.LayerNorm(d_model, LAYER_NORM_EPS)
        self.mlp = FeedForward(d_model, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class LanguageModel(nn.Module):
    def __init__(self, case: LanguageModelTraining) -> None:
        super().__init__()
        self.dropout = case.dropout
        self.wte = nn.Embedding(case.vocab_size, case.d_model)
        self.wpe = nn.Embedding(case.length, case.d_model)
        self.h = nn.ModuleList(Block(case.d_model, case.heads, case.dropout) for _ in range(case.layers))
        self.ln_f = nn.LayerNorm(case.d_model, LAYER_NORM_EPS)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = functional.dropout(self.wte(ids) + self.wpe.weight[: ids.shape[1]], self.dropout)
        for block in self.h:
            x = block(x)
        logits = functional.linear(self.ln_f(x), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Classifier(nn.Module):
    def __init__(self, case: ClassifierTraining) -> None:
        super().__init__()
        self.dropout = case.dropout
        self.embedding = nn.Embedding(case.vocab_size, case.d_model)
        self.position_embedding = nn.Embedding(case.length, case.d_model)
        layer = nn.TransformerEncoderLayer(
            case.d_model,
            case.heads,
            4 * case.d_model,
            dropout=case.dropout,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(case.d_model, LAYER_NORM_EPS)
        self.encoder = nn.TransformerEncoder(layer, case.layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(case.d_model, case.classes)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        x = self.encoder(functional.dropout(x, self.dropout)).mean(dim=1)
        return functional.cross_entropy(self.head(x), labels)


class Seq2Seq(nn.Module):
    def __init__(self, case: Seq2SeqTraining) -> None:
        super().__init__()
        self.dropout = case.dropout
        self.source_embedding = nn.Embedding(case.vocab_size, case.d_model)
        self.target_embedding = nn.Embedding(case.vocab_size, case.d_model)
        self.transformer = nn.Transformer(
            case.d_model,
            case.heads,
            case.layers,
            case.layers,
            4 * case.d_model,
            dropout=case.dropout,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            batch_first=True,
        )
        position = torch.arange(case.length, dtype=torch.float64)[:, None]
        angles = position * 10000.0 ** (-torch.arange(0, case.d_model, 2, dtype=torch.float64) / case.d_model)
        positions = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
        self.register_buffer("positions", positions.float(), persistent=False)
        mask = nn.Transformer.generate_square_subsequent_mask(case.length)
        self.register_buffer("causal_mask", mask, persistent=False)
        self.register_buffer("begin", torch.full((case.batch, 1), case.vocab_size - 2), persistent=False)
        self.register_buffer("end", torch.full((case.batch, 1), case.vocab_size - 1), persistent=False)

    def embed(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        x = embedding(ids) * embedding.embedding_dim**0.5 + self.positions[: ids.shape[1]]
        return functional.dropout(x, self.dropout)

    def forward(self, source_ids: Tensor, target_ids: Tensor) -> Tensor:
        source = self.embed(self.source_embedding, source_ids)
        target = self.embed(self.target_embedding, torch.cat([self.begin, target_ids], dim=1))
        x = self.transformer(source, target, tgt_mask=self.causal_mask, tgt_is_causal=True)
        logits = functional.linear(x, self.target_embedding.weight)
        wanted = torch.cat([target_ids, self.end], dim=1)
        return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())


MODELS: dict[str, type[nn.Module]] = {
    "language_model": LanguageModel,
    "classifier": Classifier,
    "seq2seq": Seq2Seq,
}

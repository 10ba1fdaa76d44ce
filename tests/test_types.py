"""Programs that mypy --strict accepts: it reads this file with the package, as pyproject.toml says.

Every public function and class is used as users would, with the types that they expect. Running it finds
out that what the types promise is so.
"""

from pathlib import Path

import blasformer as bf
import numpy as np
import pytest
from blasformer import data, io, lora, models, nn, optim, testing, train
from numpy.typing import NDArray

Float = NDArray[np.float32]
RNG = np.random.default_rng(0)
HEADS: Float = RNG.standard_normal((2, 4, 8, 16), dtype=np.float32)
ROWS: Float = RNG.standard_normal((3, 8), dtype=np.float32)
WEIGHT: Float = RNG.standard_normal((4, 8), dtype=np.float32)
X: Float = RNG.standard_normal((2, 5, 8), dtype=np.float32)
IDS: NDArray[np.int64] = np.array([[1, 2, 3], [3, 2, 1]])


def test_attention() -> None:
    y: Float = bf.scaled_dot_product_attention(
        HEADS, HEADS, HEADS, causal=True, window=(2, None), dropout_p=0.1, rng=RNG
    )
    selection = bf.WeightSelection(heads=[0], rows=slice(2), mean=True)
    result: bf.AttentionResult = bf.scaled_dot_product_attention(
        HEADS, HEADS, HEADS, return_weights=selection, return_logsumexp=True
    )
    assert result.weights is not None
    output, saved = bf.attention_forward(HEADS, HEADS, HEADS, mask=np.ones((8, 8), bool))
    grads: bf.AttentionGrads = bf.attention_backward(saved, output)
    allowed: NDArray[np.bool_] = bf.explain_mask((4, 8, 16), (4, 8, 16), causal="lower_right")
    plan: bf.AttentionPlan = bf.attention_plan(HEADS.shape, HEADS.shape, HEADS.shape, np.float32)
    peak: int = plan.peak_bytes + saved.nbytes
    assert y.shape == grads.query.shape
    assert grads.bias is None
    assert allowed.all() == 0 < peak


def test_functions() -> None:
    for function, backward in (
        (bf.relu, bf.relu_backward),
        (bf.silu, bf.silu_backward),
        (bf.gelu, bf.gelu_backward),
    ):
        d_x: Float = backward(ROWS, function(ROWS))
        assert d_x.shape == ROWS.shape
    bf.softmax_backward(bf.softmax(ROWS, axis=-1), ROWS)
    bf.log_softmax_backward(bf.log_softmax(ROWS), ROWS)
    of_norm: bf.LayerNormGrads = bf.layer_norm_backward(ROWS, bf.layer_norm(ROWS, 8, eps=1e-6), 8)
    of_rms: bf.RMSNormGrads = bf.rms_norm_backward(ROWS, bf.rms_norm(ROWS, (8,)), 8)
    of_linear: bf.LinearGrads = bf.linear_backward(ROWS, bf.linear(ROWS, WEIGHT), WEIGHT)
    assert of_norm.x.shape == of_rms.x.shape == of_linear.x.shape
    bf.embedding_backward([0, 1], bf.embedding(np.array([0, 1]), WEIGHT), 4)
    turned = bf.rotary_embedding(HEADS, np.arange(8), interleaved=False)
    bf.rotary_embedding_backward(turned, np.arange(8), interleaved=False)
    positions: Float = bf.sinusoidal_positions(8, 16, layout="concatenated")
    _, d_logits = bf.cross_entropy(positions, np.arange(8), label_smoothing=0.1, reduction="none")
    assert d_logits.shape == positions.shape


def test_settings() -> None:
    with bf.num_threads(1), bf.precision("high"), bf.batch_invariant(), bf.use_isa("baseline"):
        threads: int = bf.get_num_threads()
    assert threads == 1
    bf.set_num_threads(bf.get_num_threads())
    version: str = bf.show_config(mode="dicts")["version"]
    assert version == bf.__version__


def test_layers() -> None:
    rotary = nn.RotaryPositions(interleaved=True)
    for layer in [
        nn.Linear(8, 8, rng=0),
        nn.LayerNorm(8),
        nn.RMSNorm(8),
        nn.Dropout(0.1),
        nn.FeedForward(8, 16, rng=0),
        nn.GatedFeedForward(8, 16, rng=0),
        nn.PositionalEncoding(8),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, rotary=rotary), 2, rng=0),
    ]:
        y: Float = layer(X)
        y, saved = layer.forward(X, rng=1)
        d_x, _ = layer.backward(saved, y)
        assert d_x.shape == y.shape
    attention = nn.MultiheadAttention(8, 2, rng=0)
    y, _ = attention(X, return_weights=True)
    y, kept = attention.forward(X, X, X, key_lengths=[3, 5])
    (d_query, *_), _ = attention.backward(kept, y)
    assert d_query.shape == X.shape
    transformer = nn.Transformer(8, 2, 1, 1, 16, rng=0)
    y = transformer.decode(X, transformer.encode(X), causal=True)


def test_decoders() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 16, rng=0)
    y, saved = layer.forward(X, X, causal=True)
    (d_target, d_memory), _ = layer.backward(saved, y)
    assert d_target.shape == d_memory.shape
    cache: nn.DecoderCache = nn.TransformerDecoder(layer, 2).new_cache(X, capacity=4)
    step: Float = cache.add(X[:, :1])
    cache.choose([1, 0])
    assert step.shape == (2, 1, 8)
    assert cache.lengths.tolist() == [1, 1]


def test_weights() -> None:
    embedding = nn.Embedding(10, 8, padding_idx=0, rng=0)
    model = nn.Sequential(embedding, nn.Linear(8, 3, rng=0))
    parameters: dict[str, Float] = model.parameters()
    with embedding.edit() as weights:
        weights["weight"][0] = 0
    keys: nn.IncompatibleKeys = embedding.load_state_dict(embedding.state_dict(), strict=False)
    assert not keys.missing_keys
    embedding.freeze("weight")
    embedding.unfreeze()
    embedding.hold_weights("float32")
    embedding.release_packed()
    module: nn.Module = model
    assert len(module.parameters()) == len(parameters)
    nbytes: int = embedding.packed_nbytes
    errors: dict[str, float] = testing.check_gradients(nn.Linear(3, 2, dtype=np.float64), np.ones((2, 3)))
    assert nbytes == 0
    assert max(errors.values()) < 1e-6


def test_training(tmp_path: Path) -> None:
    model = models.LanguageModel(16, max_length=8, d_model=8, nhead=2, num_layers=1, rng=0)
    groups = [{"match": optim.biases_and_norms, "weight_decay": 0.0}]
    optimizers: list[optim.Optimizer] = [
        optim.SGD(model, lr=0.1),
        optim.Adam(model),
        optim.AdamW(model, lr=1e-3, groups=groups),
        optim.Lion(model),
    ]
    history: train.History = train.fit(
        model,
        data.Batches(list(IDS), batch_size=1, rng=0),
        optimizer=optimizers[2],
        schedule=optim.cosine_schedule(1e-3, steps=2),
        callbacks=[lambda step: step.loss < 0],
        checkpoint=tmp_path / "run",
    )
    train.load_checkpoint(tmp_path / "run", model)
    _, grads = model.loss_and_gradients(IDS, rng=0)
    clipped, _ = optim.clip_grad_norm(grads, 1.0)
    assert optim.global_norm(clipped) <= 1.0001
    lr: float = sum(
        schedule(0)
        for schedule in (
            optim.constant_schedule(1.0),
            optim.linear_schedule(1.0, steps=3),
            optim.inverse_sqrt_schedule(1.0, warmup=2),
        )
    )
    assert lr > 0
    assert history.loss.shape == (2,)
    names: list[str] = lora.add(model, "c_attn", rank=2, rng=0)
    lora.save(model, tmp_path / "adapter")
    lora.merge(model)
    lora.unmerge(model)
    lora.remove(model)
    assert lora.load(model, tmp_path / "adapter") == names


def test_data() -> None:
    ids, lengths = data.pad([[1, 2], [3]])
    packed: data.Packed = data.pack([[1, 2], [3]], length=4)
    parts: list[NDArray[np.int64]] = packed.unpack(packed.array)
    tokenizer = data.ByteTokenizer()
    text: str = tokenizer.decode(tokenizer.encode("ab"))
    assert (ids.shape, lengths.tolist(), len(parts), text) == ((2, 2), [2, 1], 2, "ab")


def test_models(tmp_path: Path) -> None:
    generated: NDArray[np.int64] = models.Llama(
        16, max_length=8, d_model=8, nhead=2, num_layers=1, rng=0
    ).generate([1, 2], 3, temperature=1.0, top_k=2, rng=0)
    models.Seq2Seq(5, 6, bos_id=4, eos_id=5, d_model=8, nhead=2, rng=0).generate([1, 2], 3, beams=2)
    classifier = models.Classifier(2, in_features=8, max_length=5, d_model=8, nhead=2, num_layers=1, rng=0)
    classes: NDArray[np.int64] = classifier.predict(X)
    patches: Float = models.image_patches(np.zeros((2, 8, 8), np.float32), 4)
    config = models.BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    output: models.BertOutput = models.BertModel(config, rng=0)(IDS, return_weights=True)
    answers: models.Answers = models.BertForQuestionAnswering(config, rng=0).answers(IDS)
    models.BertForSequenceClassification(config, 2, rng=0).save(tmp_path)
    loaded = models.BertForSequenceClassification.from_pretrained(tmp_path, dtype=np.float64)
    assert loaded(IDS).shape == (2, 2)
    assert output.weights is not None
    assert len(generated) == 3
    assert (classes.shape, patches.shape, len(answers.start)) == ((2,), (2, 4, 16), 2)


def test_files(tmp_path: Path) -> None:
    io.save_tensors(tmp_path / "a.safetensors", {"x": ROWS}, metadata={"of": "nothing"})
    tensors: dict[str, NDArray[np.float64]] = io.load_tensors(tmp_path / "a.safetensors", dtype=np.float64)
    with io.Checkpoint(tmp_path / "a.safetensors") as checkpoint:
        shape: tuple[int, ...] = checkpoint.shapes["x"]
    assert tensors["x"].shape == shape


def test_an_estimator() -> None:
    sklearn = pytest.importorskip("sklearn")
    assert sklearn
    from blasformer.sklearn import TransformerClassifier

    estimator = TransformerClassifier(d_model=8, num_layers=1, epochs=1, random_state=0)
    assert estimator.fit(ROWS, [0, 1, 0]).predict(ROWS).shape == (3,)

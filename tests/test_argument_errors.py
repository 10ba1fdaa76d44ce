"""Arguments of the wrong kind are one clear error, which names them, says what they must be and what they
were."""

import numpy as np
import pytest
from blasformer import (
    WeightSelection,
    attention_plan,
    data,
    functional,
    io,
    lora,
    models,
    nn,
    num_threads,
    optim,
    precision,
    scaled_dot_product_attention,
    set_num_threads,
    train,
)
from blasformer.testing import check_gradients

X = np.ones((2, 3, 8), np.float32)
HEADS = np.ones((2, 2, 3, 4), np.float32)
IDS = np.array([[1, 2, 3], [4, 0, 1]])
SHAPE = (2, 2, 3, 4)
MODEL = models.LanguageModel(5, 8, 16, 2, 1, rng=0)
ENCODER = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, rng=0), 2)
CACHE = nn.TransformerDecoderLayer(8, 2, 16, rng=0).new_cache(X, 3)
LINEAR = nn.Linear(8, 8, rng=0)
DOUBLE = nn.Linear(3, 3, dtype="float64", rng=0)
RAGGED = [[1, 2], [3]]
BERT = models.BertConfig(5, 8, 1, 2, 16)
TEXT = "\ud800"  # which UTF-8 cannot encode

CALLS = [
    (TypeError, "return_logsumexp must be a bool, got list", lambda: attend(return_logsumexp=[])),
    (
        TypeError,
        "return_logsumexp must be a bool, got str",
        lambda: attention_plan(SHAPE, SHAPE, dtype=np.float32, return_logsumexp="no"),
    ),
    (ValueError, 'precision must be "highest", "high", ', lambda: attend(precision=X)),
    (ValueError, 'precision must be "highest", "high", ', lambda: precision(X)),
    (ValueError, "causal must be False, True, ", lambda: attend(causal=TEXT)),
    (TypeError, "window must be a pair (left, right), got b'ab'", lambda: attend(window=b"ab")),
    (TypeError, "approximate must be a string, got NoneType", lambda: functional.gelu(X, approximate=None)),
    (
        TypeError,
        "approximate must be a string, got bool",
        lambda: functional.gelu_backward(X, X, approximate=True),
    ),
    (TypeError, "layout must be a string, got int", lambda: functional.sinusoidal_positions(3, 4, layout=1)),
    (
        TypeError,
        "reduction must be a string, got NoneType",
        lambda: functional.cross_entropy(X[0], [0, 1, 2], reduction=None),
    ),
    (
        TypeError,
        "normalized_shape must be an integer, got ndarray",
        lambda: functional.layer_norm(X, np.array(8.0)),
    ),
    (TypeError, "normalized_shape must be an integer, got bytes", lambda: functional.rms_norm(X, b"\x08")),
    (TypeError, "normalized_shape must be an integer, got bytes", lambda: nn.LayerNorm(b"\x08")),
    (
        ValueError,
        "activation must be text that UTF-8 can encode, got '\\ud800'",
        lambda: nn.FeedForward(8, 8, activation=TEXT),
    ),
    (ValueError, "embed_dim must be >= 1, got -4", lambda: nn.MultiheadAttention(-4, 2)),
    (ValueError, "max_len must be >= 1, got -1", lambda: nn.PositionalEncoding(8, max_len=-1)),
    (
        TypeError,
        "layers of return_weights must be an integer, got list",
        lambda: ENCODER(X, return_weights=RAGGED),
    ),
    (TypeError, "rows must be integers, got object", lambda: CACHE.choose(None)),
    (TypeError, "rows must be integers, got object", lambda: CACHE.choose({0, 1})),
    (ValueError, "rows must have one dimension, got 0", lambda: CACHE.choose(1)),
    (TypeError, "strict must be a bool, got str", lambda: LINEAR.load_state_dict({}, strict="no")),
    (TypeError, "label_smoothing must be a number, got str", lambda: MODEL.loss(IDS, label_smoothing="x")),
    (TypeError, "ignore_index must be an integer, got float", lambda: MODEL.loss(IDS, ignore_index=0.5)),
    (
        TypeError,
        "lengths must be integers, got a list of different lengths",
        lambda: MODEL.generate(IDS, 1, lengths=RAGGED),
    ),
    (TypeError, "progress must be a bool, got str", lambda: MODEL.generate(IDS, 1, progress="no")),
    (TypeError, "momentum must be a number, got ndarray", lambda: optim.SGD(LINEAR, momentum=X)),
    (TypeError, "groups must be a list of dicts, got NoneType", lambda: optim.SGD(LINEAR, groups=None)),
    (TypeError, "a group must map names to values, got int", lambda: optim.SGD(LINEAR, groups=[1])),
    (ValueError, "nonfinite must be 'error' or 'skip', got", lambda: optim.SGD(LINEAR, nonfinite=X)),
    (TypeError, "sequences must be arrays or lists, got ndarray", lambda: data.pad(np.array(1))),
    (TypeError, "columns must be arrays or sequences, got set", lambda: data.Batches({1, 2}, batch_size=1)),
    (
        TypeError,
        "lengths must be integers, got a list of different lengths",
        lambda: data.Batches(IDS, batch_size=1, lengths=RAGGED),
    ),
    (ValueError, "text must be text that UTF-8 can encode", lambda: data.ByteTokenizer().encode(TEXT)),
    (TypeError, "eos must be a bool, got str", lambda: data.ByteTokenizer().encode("", eos="no")),
    (
        TypeError,
        "ids must be integers, got a list of different lengths",
        lambda: data.ByteTokenizer().decode(RAGGED),
    ),
    (ValueError, "n must fit into 64 bits, got 1000", lambda: set_num_threads(10**30)),
    (
        ValueError,
        "the number of threads must be from 1 to 256, got 4294967298",
        lambda: num_threads(2**32 + 2),
    ),
    (TypeError, "n must be an integer, got ndarray", lambda: num_threads(np.ones(1, np.float32))),
    (ValueError, "step must be positive and finite, got 0", lambda: check_gradients(DOUBLE, X[0], step=0)),
    (TypeError, "tolerance must be a number, got str", lambda: check_gradients(DOUBLE, X[0], tolerance="x")),
    (TypeError, "elements must be an integer, got str", lambda: check_gradients(DOUBLE, X[0], elements="x")),
    (TypeError, "mean of a WeightSelection must be a bool, got str", lambda: attend_and_return(mean="no")),
    (
        TypeError,
        "pooling must be a string, got ndarray",
        lambda: models.BertForSequenceClassification(BERT, 2, X),
    ),
    (
        TypeError,
        "labels must be names, got float",
        lambda: models.BertForSequenceClassification(BERT, 2, labels=0.5),
    ),
    (
        TypeError,
        "ignore_index must be an integer, got NoneType",
        lambda: models.BertForQuestionAnswering(BERT).loss(IDS, [0, 1], [1, 2], ignore_index=None),
    ),
    (TypeError, "accumulate must be an integer, got NoneType", lambda: fit(accumulate=None)),
    (TypeError, "resume must be a bool, got str", lambda: fit(resume="no")),
    (TypeError, "checkpoint must be a path, got float", lambda: fit(checkpoint=0.5)),
    (TypeError, "restore_best must be a bool, got int", lambda: train.EarlyStopping(restore_best=1)),
    (TypeError, "path must be a path, got NoneType", lambda: io.save_tensors(None, {"x": X})),
    (TypeError, "path must be a path, got float", lambda: io.Checkpoint(1.5)),
    (TypeError, "folder must be a path, got NoneType", lambda: MODEL.save(None)),
    (ValueError, "targets must name at least one linear layer, got none", lambda: lora.add(LINEAR, [])),
    (TypeError, "folder must be a path, got NoneType", lambda: lora.load(LINEAR, None)),
]


def attend(**arguments):
    return scaled_dot_product_attention(HEADS, HEADS, HEADS, **arguments)


def attend_and_return(**selection):
    return attend(return_weights=WeightSelection(**selection))


def fit(**arguments):
    batches = data.Batches(X[0], [0, 1, 2], batch_size=2)
    return train.fit(LINEAR, batches, optimizer=optim.SGD(LINEAR), loss=functional.cross_entropy, **arguments)


@pytest.mark.parametrize(("kind", "text", "call"), CALLS, ids=[text for _, text, _ in CALLS])
def test_errors_name_the_argument_what_it_must_be_and_what_it_was(kind, text, call):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(text)

"""Ids, classes and positions that no signed integer of 64 bits can hold: out of range as others are."""

import blasformer
import numpy as np
import pytest
from blasformer import data, models, nn

TOO_LARGE = 2**63 + 5
X = np.zeros((3, 4), np.float32)
GPT = models.LanguageModel(7, max_length=8, d_model=8, nhead=2, num_layers=1, rng=0)
CLASSIFIER = models.Classifier(3, vocab_size=7, max_length=8, d_model=8, nhead=2, num_layers=1, rng=0)
TRANSLATOR = models.Seq2Seq(
    7, 7, bos_id=1, eos_id=2, d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=1, rng=0
)
ENCODER = nn.PositionalEncoding(4, max_len=9, kind="learned", rng=0)

CALLS = {
    "ids of embedding": lambda ids: blasformer.embedding(ids, X),
    "ids of embedding_backward": lambda ids: blasformer.embedding_backward(ids, X, 5),
    "targets of cross_entropy": lambda ids: blasformer.cross_entropy(X, ids),
    "ids of nn.Embedding": lambda ids: nn.Embedding(7, 4)(ids),
    "positions of nn.PositionalEncoding": lambda ids: ENCODER(X, positions=ids),
    "ids of LanguageModel": GPT,
    "targets of LanguageModel": lambda ids: GPT.loss_and_gradients([0, 1, 2], targets=ids),
    "prompt_ids of LanguageModel": lambda ids: GPT.generate(ids, 2),
    "x of Classifier": CLASSIFIER,
    "targets of Classifier": lambda ids: CLASSIFIER.loss_and_gradients(np.ones((3, 2), int), ids),
    "source_ids of Seq2Seq": lambda ids: TRANSLATOR(ids, [1, 2, 3]),
    "target_ids of Seq2Seq": lambda ids: TRANSLATOR([1, 2, 3], ids),
    "ids of ByteTokenizer": lambda ids: data.ByteTokenizer().decode(ids),
}


@pytest.mark.parametrize(
    "ids", [np.array([0, 1, TOO_LARGE], np.uint64), [TOO_LARGE] * 3], ids=["array", "list"]
)
@pytest.mark.parametrize("call", CALLS)
def test_an_id_beyond_all_signed_integers_is_out_of_range(call, ids):
    name = call.split()[0]
    with pytest.raises(IndexError, match=rf"^{name} must .*, got {TOO_LARGE}\b"):
        CALLS[call](ids)


@pytest.mark.parametrize("value", [2**64, -(2**70)])
def test_an_id_beyond_all_integers_of_numpy_is_out_of_range(value):
    with pytest.raises(IndexError, match=rf"^ids must be in \[0, 2\*\*63\), got {value} at position 1$"):
        blasformer.embedding([1, value], X)


def test_small_ids_of_any_integer_type_are_the_same():
    expected = blasformer.embedding([2, 0, 1], X)
    for dtype in "bBhHiIlLqQ":
        assert np.array_equal(blasformer.embedding(np.array([2, 0, 1], dtype), X), expected)


@pytest.mark.parametrize(
    ("lengths", "error", "got"),
    [
        (np.array([1, TOO_LARGE], np.uint64), ValueError, f"{TOO_LARGE} at position 1"),
        ([1, 2**64], ValueError, f"{2**64} at position 1"),
        ([1, None], TypeError, "NoneType"),
    ],
)
def test_a_length_beyond_all_signed_integers_is_a_wrong_value(lengths, error, got):
    with pytest.raises(error, match=f"^lengths must .* integers, got {got}$"):
        GPT.forward(np.ones((2, 3), int), lengths=lengths)
    q = np.ones((2, 1, 3, 4), np.float32)
    with pytest.raises(error, match=f"^key_lengths must .* integers, got {got}$"):
        blasformer.scaled_dot_product_attention(q, q, q, key_lengths=lengths)

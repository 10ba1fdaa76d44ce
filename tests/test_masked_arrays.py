"""Masked arrays are refused wherever arrays are taken: nobody's mask is silently ignored."""

import numpy as np
import pytest
from blasformer import (
    attention_backward,
    attention_forward,
    data,
    functional,
    io,
    models,
    nn,
    optim,
    scaled_dot_product_attention,
)


def masked(array):
    return np.ma.masked_array(array, mask=np.zeros(np.shape(array), bool))


X = np.ones((2, 3, 8), np.float32)
HEADS = np.ones((2, 2, 3, 4), np.float32)
IDS = np.array([[1, 2, 3], [4, 0, 1]])
MODEL = models.LanguageModel(5, 8, 16, 2, 1, rng=0)
SIZES = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 16}
SEQ2SEQ = models.Seq2Seq(5, 5, bos_id=0, eos_id=1, **SIZES, rng=0)
VECTORS = models.Seq2Seq(None, 5, source_features=8, bos_id=0, eos_id=1, **SIZES, rng=0)
BERT = models.BertModel(models.BertConfig(5, 8, 1, 2, 16), rng=0)
CLASSIFIER = models.Classifier(3, 4, in_features=8, d_model=8, nhead=2, num_layers=1, rng=0)
LINEAR = nn.Linear(8, 8, rng=0)
ENCODER = nn.TransformerEncoderLayer(8, 2, 16, rng=0)
DECODER = nn.TransformerDecoderLayer(8, 2, 16, rng=0)


def attend(**arguments):
    return scaled_dot_product_attention(**{"query": HEADS, "key": HEADS, "value": HEADS, **arguments})


def zeros_of(layer):
    return {name: np.zeros_like(array) for name, array in layer.parameters().items()}


CALLS = {
    **{
        name: lambda m, name=name, array=array: attend(**{name: m(array)})
        for name, array in {
            "query": HEADS,
            "key": HEADS,
            "value": HEADS,
            "mask": np.ones((3, 3), bool),
            "bias": np.ones((3, 3), np.float32),
            "key_lengths": np.array([1, 2]),
            "query_segments": IDS,
            "alibi_slopes": np.ones(2, np.float32),
            "sinks": np.ones(2, np.float32),
            "out": HEADS.copy(),
        }.items()
    },
    "d_output": lambda m: attention_backward(attention_forward(HEADS, HEADS, HEADS)[1], m(HEADS)),
    "x": lambda m: functional.softmax(m(X)),
    "weight": lambda m: functional.linear(X, m(np.ones((4, 8), np.float32))),
    "ids": lambda m: functional.embedding(m(IDS), np.ones((5, 2), np.float32)),
    "logits": lambda m: functional.cross_entropy(m(X[0]), [0, 1, 2]),
    "targets": lambda m: functional.cross_entropy(X[0], m([0, 1, 2])),
    "x of a layer": lambda m: LINEAR(m(X)),
    "x of forward": lambda m: LINEAR.forward(m(X)),
    "out of a layer": lambda m: LINEAR(X, out=m(np.zeros_like(X))),
    "d_output of a layer": lambda m: LINEAR.backward(LINEAR.forward(X)[1], m(X)),
    "accumulate": lambda m: LINEAR.backward(
        LINEAR.forward(X)[1], X, accumulate={name: m(array) for name, array in zeros_of(LINEAR).items()}
    ),
    "mask of a layer": lambda m: ENCODER(X, mask=m(np.ones((3, 3), bool))),
    "key_lengths of a layer": lambda m: ENCODER(X, key_lengths=m([1, 2])),
    "memory": lambda m: DECODER(X, m(X)),
    "memory of a cache": lambda m: DECODER.new_cache(m(X), 3),
    "target": lambda m: DECODER.new_cache(X, 3).add(m(X)),
    "weights": lambda m: LINEAR.load_state_dict({"weight": m(np.ones((8, 8), np.float32))}, strict=False),
    "weights of a composite": lambda m: nn.Sequential(LINEAR).load_state_dict(
        {"0.weight": m(np.ones((8, 8), np.float32))}, strict=False
    ),
    "gradients": lambda m: optim.SGD(LINEAR).step({name: m(x) for name, x in zeros_of(LINEAR).items()}),
    "norm of gradients": lambda m: optim.global_norm({"weight": m(X)}),
    "ids of a language model": lambda m: MODEL(m(IDS)),
    "lengths of a language model": lambda m: MODEL(IDS, lengths=m([1, 2])),
    "prompts": lambda m: MODEL.generate(m(IDS), 1),
    "prompts in a list": lambda m: MODEL.generate([m([1, 2]), [3]], 1),
    "lengths of prompts": lambda m: MODEL.generate(IDS, 1, lengths=m([1, 2])),
    "sources": lambda m: SEQ2SEQ.generate(m(IDS), max_new_tokens=2),
    "sources of vectors": lambda m: VECTORS.generate(m(X), max_new_tokens=2),
    "sources of vectors in a list": lambda m: VECTORS.generate([m(X[0]), X[1]], max_new_tokens=2),
    "targets of a model": lambda m: SEQ2SEQ(IDS, m(IDS)),
    "input_ids": lambda m: BERT(m(IDS)),
    "attention_mask": lambda m: BERT(IDS, attention_mask=m(np.ones_like(IDS))),
    "classified": lambda m: CLASSIFIER(m(X)),
    "mask of a classifier": lambda m: CLASSIFIER(X, mask=m(np.ones((2, 3), bool))),
    "padded": lambda m: data.pad([m([1, 2]), [3]]),
    "packed": lambda m: data.pack([m([1, 2]), [3]], 4),
    "columns": lambda m: data.Batches(m(IDS), batch_size=1),
    "decoded": lambda m: data.ByteTokenizer().decode(m([65])),
    "saved": lambda m: io.save_tensors("/dev/null/none.safetensors", {"x": m(X)}),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_masked_array_is_refused_with_a_clear_error(call):
    if call != "saved":
        CALLS[call](lambda array: np.asarray(array))
    with pytest.raises(TypeError, match=r"\w+.* must be .*, got .*[mM]asked.?[aA]rray") as error:
        CALLS[call](masked)
    assert "mask" in str(error.value)

"""What is printed of an object: short, and what one would ask about it, shapes and bytes above all."""

import blasformer
import numpy as np
import pytest
from blasformer import data, io, models, nn

X = np.ones((2, 5, 8), np.float32)
CONFIG = models.BertConfig(
    vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
)


def test_a_saved_value_shows_its_output_and_its_bytes_until_it_is_used():
    layer = nn.TransformerEncoderLayer(8, 2, 16, rng=0)
    y, saved = layer.forward(X)
    assert repr(saved) == f"Saved(output=float32 (2, 5, 8), nbytes={saved.nbytes})"
    layer.backward(saved, y)
    assert repr(saved) == "Saved(output=float32 (2, 5, 8), used)"


def test_saved_attention_shows_its_operands():
    query, key = np.ones((2, 4, 3, 8)), np.ones((2, 2, 5, 8))
    _, saved = blasformer.attention_forward(query, key, key)
    key_text = "float64 (2, 2, 5, 8)"
    assert repr(saved) == (
        f"AttentionSaved(query=float64 (2, 4, 3, 8), key={key_text}, value={key_text}, nbytes={saved.nbytes})"
    )


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (models.BertModel(CONFIG, rng=0), "BertSaved"),
        (models.BertForQuestionAnswering(CONFIG, rng=0), "QuestionAnsweringSaved"),
    ],
)
def test_saved_values_of_models_show_no_arrays(model, name):
    _, saved = model.forward(np.ones((3, 500), int))
    assert repr(saved) == f"{name}({saved.values!r}, of tokens (3, 500))"


def test_the_saved_value_of_halves_shows_both():
    halves = {"custom_encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 1)}
    _, saved = nn.Transformer(8, 2, 1, 1, 16, **halves, rng=0).forward(X, X)
    assert repr(saved) == f"Saved(encoder={saved.encoder!r}, decoder={saved.decoder!r})"


def test_a_cache_shows_how_long_its_targets_are():
    cache = nn.TransformerDecoderLayer(8, 2, 16, rng=0).new_cache(X, capacity=7)
    cache.add(X[:, :3], lengths=[3, 2])
    assert repr(cache) == f"DecoderCache(lengths=[3, 2], nbytes={cache.nbytes})"


def test_batches_show_their_number():
    x = np.zeros((21, 3))
    assert repr(data.Batches(x, batch_size=4)) == "Batches(6 of 21 examples, in their order)"
    batches = data.Batches(x, batch_size=4, rng=1)
    assert repr(batches) == "Batches(6 of 21 examples, in a new order in every epoch)"


def test_a_checkpoint_shows_its_path(tmp_path):
    io.save_tensors(tmp_path / "a.safetensors", {"x": np.ones(3)})
    with io.Checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert repr(checkpoint) == f"Checkpoint({str(tmp_path / 'a.safetensors')!r}, 1 tensors)"


def test_every_public_class_has_a_repr_of_its_own():
    modules = (blasformer, data, io, models, nn, blasformer.optim, blasformer.train)
    public = [getattr(module, name) for module in modules for name in module.__all__]
    classes = [value for value in public if isinstance(value, type)]
    silent = {kind.__name__ for kind in classes if kind.__repr__ is object.__repr__}
    assert silent == {"Module"}  # a protocol, of which there are no objects

"""models.Seq2Seq: its formula, its loss and gradients, training, greedy and beam search, and its folders."""

import itertools
import json
import pickle

import blasformer
import numpy as np
import pytest
import reference
from blasformer import models, nn, optim
from derivatives import Accuracy, assert_is_derivative
from layer_cases import same_bits, shaken

SOURCES, TARGETS, BOS, EOS = 23, 19, 17, 18
VARIANTS = {
    "2017": {},
    "pre-norm, learned positions, untied": {
        "norm_first": True,
        "positions": "learned",
        "max_length": 12,
        "tied": False,
        "activation": "gelu",
    },
    "one embedding, recomputed": {"source_vocab_size": TARGETS, "shared": True, "recompute": True},
    "one embedding, untied": {
        "source_vocab_size": TARGETS,
        "shared": True,
        "tied": False,
        "norm_first": True,
        "num_encoder_layers": 1,
    },
    "vectors": {"source_vocab_size": None, "source_features": 5, "norm_first": True},
    "vectors, learned positions, recomputed": {
        "source_vocab_size": None,
        "source_features": 13,
        "positions": "learned",
        "max_length": 12,
        "recompute": True,
    },
}
LENGTHS = {
    "whole": {},
    "sources": {"source_lengths": np.array([9, 1, 4])},
    "targets": {"target_lengths": np.array([3, 7, 0])},
    "both": {"source_lengths": np.array([3, 0, 9]), "target_lengths": np.array([7, 2, 1])},
}


def make(variant="2017", dtype=np.float64, **changes):
    """A model of which no weight is zero or one, and whose attention is far from uniform."""
    sizes = {
        "source_vocab_size": SOURCES,
        "target_vocab_size": TARGETS,
        "bos_id": BOS,
        "eos_id": EOS,
        "d_model": 24,
        "nhead": 3,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dim_feedforward": 37,
        "dropout": 0.0,
    }
    model = models.Seq2Seq(**sizes | VARIANTS[variant] | changes, dtype=dtype, rng=1)
    return shaken(model, 0.2)


def pair(batch=3, seed=0, model=None):
    """A source and a target; vectors for a model of vectors."""
    random = np.random.default_rng(seed)
    source, target = random.integers(0, TARGETS, (batch, 9)), random.integers(0, 17, (batch, 7))
    features = None if model is None else model._arguments["source_features"]
    if features is not None:
        source = random.standard_normal((batch, 9, features)).astype(model.dtype)
    return source, target


def formula(model, source, target, parameters, dtype=np.float64, **lengths):
    arguments = model._arguments
    return reference.seq2seq(
        parameters,
        source,
        target,
        bos_id=arguments["bos_id"],
        num_encoder_layers=arguments["num_encoder_layers"],
        num_decoder_layers=arguments["num_decoder_layers"],
        num_heads=arguments["nhead"],
        norm_first=arguments["norm_first"],
        activation=arguments["activation"],
        dtype=dtype,
        **lengths,
    )


def expected_targets(target, target_lengths=None):
    """What is predicted at each place: the target, its end, and nothing behind it."""
    lengths = np.full(len(target), target.shape[1]) if target_lengths is None else target_lengths
    result = np.full((len(target), target.shape[1] + 1), -100)
    for row, ids, length in zip(result, target, lengths, strict=True):
        row[:length], row[length] = ids[:length], EOS
    return result


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_accurate_as_numpy(variant, lengths, isa):
    model = make(variant, np.float32)
    source, target = pair(model=model)
    there = expected_targets(target, LENGTHS[lengths].get("target_lengths")) != -100

    def of_tokens(parameters, dtype):
        return formula(model, source, target, parameters, dtype, **LENGTHS[lengths])[there]

    logits = model(source, target, **LENGTHS[lengths])
    assert logits.shape == (3, 8, TARGETS)
    reference.assert_as_accurate_as_numpy(logits[there], of_tokens, model.state_dict())


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_derivatives_of_the_loss(variant, lengths):
    model = make(variant)
    source, target = pair(model=model)
    arguments = LENGTHS[lengths]
    targets = expected_targets(target, arguments.get("target_lengths"))
    loss, grads = model.loss_and_gradients(source, target, label_smoothing=0.1, **arguments)

    def function(parameters):
        logits = formula(model, source, target, parameters, **arguments)
        return reference.cross_entropy(logits, targets, label_smoothing=0.1)[0]

    assert loss == pytest.approx(function(model.state_dict()), rel=1e-12)
    assert model.loss(source, target, label_smoothing=0.1, **arguments) == pytest.approx(loss, rel=1e-12)
    assert model.target_count(source, target, **arguments) == (targets != -100).sum()
    assert_is_derivative(function, model.state_dict(), grads)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_loss_are_as_accurate_as_numpys(variant, lengths, isa):
    model = make(variant, np.float32)
    source, target = pair(model=model)
    targets = expected_targets(target, LENGTHS[lengths].get("target_lengths"))

    def function(parameters, dtype):
        logits = formula(model, source, target, parameters, dtype, **LENGTHS[lengths])
        return reference.cross_entropy(logits, targets, dtype=dtype)[0]

    accuracy = Accuracy(function, model.state_dict(), 1, np.float32)
    accuracy.check(model.loss_and_gradients(source, target, **LENGTHS[lengths])[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_give_the_gradients_of_the_loss(variant):
    model = make(variant, dropout=0.2)
    source, target = pair(model=model)
    logits, saved = model.forward(source, target, rng=3)
    assert saved.nbytes > 0
    loss, d_logits = blasformer.cross_entropy(logits, expected_targets(target))
    _, grads = model.backward(saved, d_logits)
    own_loss, own_grads = model.loss_and_gradients(source, target, rng=3)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(own_grads[name], gradient, atol=1e-12)


def test_gradients_with_dropout_are_derivatives_for_the_same_draw():
    model, (source, target) = make(dropout=0.3), pair()
    _, grads = model.loss_and_gradients(source, target, rng=7)

    def function(parameters):
        other = models.Seq2Seq(**model._arguments)
        other.load_state_dict(parameters)
        return other.loss_and_gradients(source, target, rng=7)[0]

    assert_is_derivative(function, model.state_dict(), grads)


def test_what_lies_beyond_a_length_is_not_looked_at():
    model, (source, target) = make(), pair()
    wild_source, wild_target = source.copy(), target.copy()
    lengths = LENGTHS["both"]
    for row, length in enumerate(lengths["source_lengths"]):
        wild_source[row, length:] = -7
    for row, length in enumerate(lengths["target_lengths"]):
        wild_target[row, length:] = 10**9
    loss, grads = model.loss_and_gradients(source, target, **lengths)
    same, same_grads = model.loss_and_gradients(wild_source, wild_target, **lengths)
    assert loss == same
    assert all(same_bits(gradient, same_grads[name]) for name, gradient in grads.items())


def test_nan_in_vectors_beyond_a_length_changes_no_bit():
    model = make("vectors")
    source, target = pair(model=model)
    lengths, wild = [3, 0, 9], source.copy()
    for row, length in zip(wild, lengths, strict=True):
        row[length:] = np.nan
    loss, grads = model.loss_and_gradients(source, target, source_lengths=lengths)
    same, same_grads = model.loss_and_gradients(wild, target, source_lengths=lengths)
    assert loss == same
    assert all(same_bits(gradient, same_grads[name]) for name, gradient in grads.items())
    found = model.generate(source, 5, source_lengths=lengths, beams=2)
    of_list = model.generate([row[:length] for row, length in zip(wild, lengths, strict=True)], 5, beams=2)
    assert [a.tolist() for a in found] == [b.tolist() for b in of_list]
    assert model.generate(source[2], 5, beams=2).tolist() == found[2].tolist()
    assert model.generate([], 5) == []


@pytest.mark.parametrize(
    ("kind", "text", "call"),
    [
        (
            ValueError,
            "source_vocab_size must be given, or source_features in its place, got both",
            lambda: make(source_features=3),
        ),
        (
            ValueError,
            "source_vocab_size must be given, or source_features in its place, got neither",
            lambda: make(source_vocab_size=None),
        ),
        (ValueError, "source_features must be positive, got 0", lambda: make("vectors", source_features=0)),
        (
            ValueError,
            "shared must be False where sources are vectors, got True",
            lambda: make("vectors", shared=True),
        ),
        (
            ValueError,
            "source_ids must have the shape (batch, length, 5) or (length, 5), got (3, 9, 4)",
            lambda: make("vectors").loss(np.zeros((3, 9, 4)), np.zeros((3, 2), int)),
        ),
        (
            TypeError,
            "source_ids must be a NumPy array of float64, the dtype of the layer, got float32",
            lambda: make("vectors").loss(np.zeros((3, 9, 5), np.float32), np.zeros((3, 2), int)),
        ),
        (
            TypeError,
            "source_ids must be a NumPy array of vectors, got list",
            lambda: make("vectors").loss([[0.0] * 5], [[1]]),
        ),
        (
            ValueError,
            "source_ids must have the shape (batch, length, 5) or (length, 5), got (5,)",
            lambda: make("vectors").generate(np.zeros(5), 3),
        ),
        (
            ValueError,
            "source_ids must be float64 arrays (length, 5), got float64 (2, 4)",
            lambda: make("vectors").generate([np.zeros((2, 4))], 3),
        ),
        (
            ValueError,
            "source_lengths must not be given for a list of sources, which have theirs",
            lambda: make("vectors").generate([np.zeros((2, 5))], 3, source_lengths=[1]),
        ),
    ],
)
def test_errors_of_vectors_name_the_argument_what_it_must_be_and_what_it_was(kind, text, call):
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(text)


def test_one_sequence_needs_no_axis_for_the_batch():
    model, (source, target) = make(), pair()
    assert same_bits(model(source[0], target[0]), model(source[:1], target[:1])[0])
    assert model.loss(source[0], target[0], source_lengths=4) == model.loss(
        source[:1], target[:1], source_lengths=[4]
    )
    logits, weights = model(source[0], target[0], return_weights=(1,))
    assert logits.shape == (8, TARGETS)
    assert weights[1].shape == (3, 8, 9)


@pytest.mark.parametrize(("batch", "length"), [(0, 7), (3, 0), (0, 0)])
def test_empty_batches_and_empty_targets_are_legal(batch, length):
    model = make()
    source, target = np.zeros((batch, 5), int), np.zeros((batch, length), int)
    assert model(source, target).shape == (batch, length + 1, TARGETS)
    loss, grads = model.loss_and_gradients(source, target)
    assert (loss > 0) == (batch > 0)
    assert all(np.isfinite(gradient).all() for gradient in grads.values())


def test_weights_of_the_attention_to_the_source_are_returned():
    model, (source, target) = make(), pair()
    logits, weights = model(source, target, source_lengths=[9, 2, 5], return_weights=(0, -1))
    assert same_bits(logits, model(source, target, source_lengths=[9, 2, 5]))
    assert weights[-1].shape == (3, 3, 8, 9)
    np.testing.assert_allclose(weights[0].sum(-1), 1)
    assert not weights[0][1, :, :, 2:].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_results_have_the_same_bits_for_every_number_of_threads(variant):
    model, results = make(variant, np.float32, dropout=0.2), []
    source, target = pair(17, model=model)
    for count in (1, 2, 3):
        with blasformer.num_threads(count):
            results.append((model(source, target), *model.loss_and_gradients(source, target, rng=5)))
    for logits, loss, grads in results[1:]:
        assert same_bits(logits, results[0][0])
        assert loss == results[0][1]
        assert all(same_bits(gradient, results[0][2][name]) for name, gradient in grads.items())


@pytest.mark.parametrize(
    "frozen",
    [
        ("source_embedding.*",),
        ("target_embedding.*",),
        ("source_embedding.*", "transformer.encoder.*"),
        (
            "source_embedding.*",
            "target_embedding.*",
            "transformer.encoder.*",
            "transformer.decoder.layers.0.*",
        ),
        ("target_embedding.*", "transformer.decoder.*"),
        ("*_embedding.*", "transformer.encoder.*", "transformer.decoder.layers.*"),
        ("*_embedding.*", "transformer.*"),
        ("output.*",),
    ],
)
def test_frozen_parameters_have_no_gradients_and_the_others_are_the_same(frozen):
    model, (source, target) = make(tied=False), pair()
    loss, everything = model.loss_and_gradients(source, target, rng=1)
    model.freeze(*frozen)
    same, some = model.loss_and_gradients(source, target, rng=1)
    assert same == loss
    assert set(some) == set(everything) - model.frozen
    assert all(same_bits(gradient, everything[name]) for name, gradient in some.items())
    logits, saved = model.forward(source, target)
    assert set(model.backward(saved, np.ones_like(logits))[1]) == set(some)
    total = {name: np.ones_like(gradient) for name, gradient in some.items()}
    model.loss_and_gradients(source, target, rng=1, accumulate=total)
    for name, gradient in some.items():
        np.testing.assert_allclose(total[name], 1 + gradient, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_added_to_the_arrays_that_are_given(variant):
    model = make(variant)
    source, target = pair(model=model)
    _, grads = model.loss_and_gradients(source, target)
    total = {name: np.ones_like(gradient) for name, gradient in grads.items()}
    _, result = model.loss_and_gradients(source, target, accumulate=total)
    for name, gradient in grads.items():
        assert result[name] is total[name]
        np.testing.assert_allclose(total[name], 1 + gradient, atol=1e-13)


# ----------------------------------------------------------------------------------------------------------
# Training and generating
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reverser():
    """A model that has learnt to write digits backwards."""
    model = models.Seq2Seq(
        10,
        12,
        bos_id=10,
        eos_id=11,
        d_model=32,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=64,
        dropout=0.0,
        norm_first=True,
        rng=0,
    )
    # Long enough that nothing hangs on rounding: 400 steps of 32 leave one in five wrong, these next to none.
    steps, rows = 1500, 64
    schedule = optim.linear_schedule(3e-3, steps=steps)
    optimizer, random = optim.AdamW(model, lr=schedule(0)), np.random.default_rng(0)
    for step in range(steps):
        optimizer.lr = schedule(step)
        source, lengths = random.integers(0, 10, (rows, 6)), random.integers(1, 7, rows)
        target = np.zeros_like(source)
        for row, ids, length in zip(target, source, lengths, strict=True):
            row[:length] = ids[:length][::-1]
        _, grads = model.loss_and_gradients(source, target, source_lengths=lengths, target_lengths=lengths)
        optimizer.step(grads)
    return model


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_learns_to_write_backwards(reverser, beams):
    sources = [[1, 2, 3, 4], [7], [9, 8, 8, 1, 0, 2], [5, 5]]
    targets = reverser.generate(sources, 8, beams=beams)
    assert [target.tolist() for target in targets] == [source[::-1] for source in sources]
    alone = reverser.generate(np.array(sources[2]), 8, beams=beams)
    assert alone.tolist() == sources[2][::-1]
    array = np.array([[1, 2, 3, 0], [4, 0, 0, 0]])
    padded = reverser.generate(array, 8, source_lengths=[3, 1], beams=beams)
    assert [target.tolist() for target in padded] == [[3, 2, 1], [4]]


def test_weights_of_what_was_generated_are_those_of_the_model(reverser):
    sources = [[1, 2, 3, 4], [9, 8, 7, 1, 0, 2]]
    _, weights = reverser.generate(sources, 8, return_weights=(0,))
    assert weights[0].shape == (2, 4, 7, 6)
    for row, source in enumerate(sources):
        target, alone = reverser.generate(source, 8, return_weights=True)
        assert alone[0].shape == (4, len(source) + 1, len(source))
        assert same_bits(alone[0], reverser(source, target, return_weights=(0,))[1][0])
        shown = weights[0][row, :, : len(source) + 1, : len(source)]
        np.testing.assert_allclose(shown, alone[0], atol=1e-5)


def log_probability(model, source, tokens):
    """Of a target with all its tokens, eos_id included where there is one."""
    logits = model(np.array(source), np.array(tokens[:-1], int))
    log_p = reference.log_softmax(logits)
    return sum(log_p[place, token] for place, token in enumerate(tokens))


def greedily(model, source, count):
    tokens = []
    while len(tokens) < count:
        token = int(model(np.array(source), np.array(tokens, int))[-1].argmax())
        if token == EOS:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_targets_are_those_of_whole_forward_passes(variant, isa):
    model = make(variant)
    sources = [pair(1, seed, model)[0][0, :length] for seed, length in enumerate([4, 1, 9])]
    targets = model.generate(sources, 10)
    assert [target.tolist() for target in targets] == [greedily(model, source, 10) for source in sources]


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("variant", ["2017", "pre-norm, learned positions, untied"])
def test_a_beam_that_holds_everything_finds_the_best_target(variant, length_penalty):
    model = make(variant, target_vocab_size=5, bos_id=3, eos_id=4, source_vocab_size=7, max_length=12)
    count, best = 4, {}
    for seed in range(5):
        source = np.random.default_rng(seed).integers(0, 7, 5)
        hypotheses = [
            [*body, 4] for length in range(count) for body in itertools.product(range(4), repeat=length)
        ] + [list(body) for body in itertools.product(range(4), repeat=count)]
        scores = [
            log_probability(model, source, tokens) / len(tokens) ** length_penalty for tokens in hypotheses
        ]
        best[seed] = [token for token in hypotheses[int(np.argmax(scores))] if token != 4]
    sources = [np.random.default_rng(seed).integers(0, 7, 5) for seed in range(5)]
    found = model.generate(sources, count, beams=4**count, length_penalty=length_penalty)
    assert [target.tolist() for target in found] == list(best.values())


def test_a_wider_beam_finds_targets_that_are_at_least_as_probable():
    model = make()
    for seed in range(6):
        source = np.random.default_rng(seed).integers(0, SOURCES, 6)
        scores = []
        for beams in (2, 8, 32):
            target = model.generate(source, 6, beams=beams, length_penalty=0.0).tolist()
            tokens = target if len(target) == 6 else [*target, EOS]
            scores.append(log_probability(model, source, tokens))
        assert scores[0] <= scores[-1] + 1e-9


@pytest.mark.parametrize("beams", [1, 4])
def test_sources_do_not_influence_each_other(beams):
    model = make()
    sources = [np.random.default_rng(seed).integers(0, SOURCES, 1 + seed) for seed in range(6)]
    together = model.generate(sources, 9, beams=beams)
    for source, target in zip(sources, together, strict=True):
        assert model.generate(source, 9, beams=beams).tolist() == target.tolist()


def test_nothing_to_generate_from_is_legal():
    model = make()
    assert model.generate(np.zeros((0, 4), int), 5) == []
    assert model.generate(np.zeros((2, 0), int), 5)[0].tolist() == model.generate([], 5).tolist()


# ----------------------------------------------------------------------------------------------------------
# Folders and errors
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_model_is_loaded_as_it_was(tmp_path, variant, dtype):
    model = make(variant, dtype)
    source, target = pair(model=model)
    model.save(tmp_path)
    loaded = models.Seq2Seq.from_pretrained(tmp_path)
    assert loaded._arguments == model._arguments
    assert same_bits(loaded(source, target), model(source, target))
    assert same_bits(pickle.loads(pickle.dumps(model))(source, target), model(source, target))


def test_the_stacks_have_the_states_of_the_layers():
    state = make().state_dict()
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(24, 3, 37, dtype=float), 2, nn.LayerNorm(24, dtype=float)
    )
    encoder.load_state_dict(reference.within(state, "transformer.encoder."))
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(24, 3, 37, dtype=float), 2, nn.LayerNorm(24, dtype=float)
    )
    decoder.load_state_dict(reference.within(state, "transformer.decoder."))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "gpt2"}, "model_type must be 'blasformer_seq2seq' for Seq2Seq, got 'gpt2'"),
        ({"positions": "relative"}, 'positions must be "sinusoidal" or "learned", got "relative"'),
        ({"nhead": "3"}, "nhead must be an integer, got str"),
        ({"num_decoder_layers": 1}, "unexpected: transformer.decoder.layers.1.linear1.bias"),
        ({"shared": True, "source_vocab_size": 19}, "unexpected: source_embedding.weight"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, text):
    make().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=text):
        models.Seq2Seq.from_pretrained(tmp_path)


def test_a_model_is_a_module():
    assert isinstance(make(), nn.Module)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"source_ids": [[1.0]]}, TypeError, "source_ids must be integers, got float64"),
        ({"target_ids": np.zeros((3, 2, 2), int)}, ValueError, "target_ids must have the shape"),
        ({"target_ids": [[1, 2]]}, ValueError, "target_ids must have the batch of source_ids"),
        ({"target_ids": [1, 2]}, ValueError, "target_ids must have the batch of source_ids"),
        ({"source_ids": np.full((3, 9), 23)}, IndexError, r"^source_ids must lie in \[0, 23\), got 23 at"),
        ({"target_ids": [[1, 19]] * 3}, IndexError, r"^target_ids must lie in \[0, 19\), got 19 at"),
        ({"source_lengths": [1]}, ValueError, r"source_lengths must have the shape \(3,\)"),
        ({"target_lengths": [8, 0, 0]}, ValueError, "target_lengths must lie between 0 and the 7 columns"),
        ({"divisor": np.inf}, ValueError, "divisor must be positive, got inf"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing must lie between 0 and 1, got 2"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, text):
    model, (source, target) = make(), pair()
    accumulate = {name: np.ones_like(array) for name, array in model.parameters().items()}
    given = {"source_ids": source, "target_ids": target, "accumulate": accumulate} | arguments
    with pytest.raises(error, match=text):
        model.loss_and_gradients(**given)
    assert all((array == 1).all() for array in accumulate.values())


def test_sequences_longer_than_learned_positions_are_an_error():
    model = make("pre-norm, learned positions, untied")
    source, target = np.zeros((1, 13), int), np.zeros((1, 12), int)
    with pytest.raises(ValueError, match="source_ids must have at most max_length = 12 columns, got 13"):
        model(source, target[:, :3])
    with pytest.raises(ValueError, match="target_ids with the first token must have at most max_length = 12"):
        model(source[:, :3], target)
    with pytest.raises(ValueError, match="max_new_tokens must be at most max_length = 12, got 13"):
        model.generate([1, 2], 13)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"beams": 0}, ValueError, "beams must be at least 1, got 0"),
        ({"beams": 2.0}, TypeError, "beams must be an integer, got float"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"length_penalty": np.nan}, ValueError, "length_penalty must lie between -10 and 10, got nan"),
        ({"length_penalty": 11}, ValueError, "length_penalty must lie between -10 and 10, got 11"),
        (
            {"source_lengths": [4]},
            ValueError,
            "source_lengths must lie between 0 and the 3 ids",
        ),
        ({"source_ids": [23]}, IndexError, r"source_ids must lie in \[0, 23\), got 23"),
        ({"return_weights": (2,)}, IndexError, r"layers of return_weights must lie in \[-2, 1\], got 2"),
    ],
)
def test_arguments_of_generate_that_do_not_fit_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        make().generate(**{"source_ids": [1, 2, 3], "max_new_tokens": 4} | arguments)


def test_weights_that_have_diverged_are_an_error():
    model = make()
    with model.edit() as parameters:
        parameters["transformer.decoder.norm.bias"][0] = np.nan
    with pytest.raises(ValueError, match="logits must be numbers with a finite maximum"):
        model.generate([1, 2, 3], 4, beams=2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bos_id": 19}, ValueError, r"bos_id must lie in \[0, 19\), got 19"),
        ({"eos_id": -1}, ValueError, r"eos_id must lie in \[0, 19\), got -1"),
        ({"source_vocab_size": 0}, ValueError, "source_vocab_size must be positive, got 0"),
        (
            {"shared": True},
            ValueError,
            "source_vocab_size must be target_vocab_size = 19 where the embedding",
        ),
        ({"num_decoder_layers": 0}, ValueError, "num_decoder_layers must be positive, got 0"),
        ({"nhead": 5}, ValueError, "d_model must be a multiple of nhead = 5, got 24"),
        ({"positions": "rotary"}, ValueError, 'positions must be "sinusoidal" or "learned", got "rotary"'),
        ({"d_model": 9, "nhead": 3}, ValueError, "d_model must be positive and even, got 9"),
    ],
)
def test_sizes_that_make_no_model_are_named(change, error, text):
    with pytest.raises(error, match=text):
        make(**change)

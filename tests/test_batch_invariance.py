"""blasformer.batch_invariant: what a sequence gives has the same bits whatever it shares a call with."""

import asyncio
import copy
import threading

import blasformer
import numpy as np
import pytest
import tokenizers
from blasformer import batch_invariant, lora, models, nn
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import ATTENDING, DECODING, LAYERS, lively, normal, same_bits, shaken

DTYPES = [np.float32, np.float64]
# Lengths that cross the edges of tiles and of blocks of keys.
LENGTHS = [1, 2, 3, 4, 5, 15, 17, 31, 33, 64, 127, 129, 140]


def compositions(count, random, times=4):
    """Groups of rows that calls might be made of: each alone, all, and some in any order."""
    yield from ([i] for i in random.permutation(count)[:times])
    yield list(range(count))
    for size in [2, 3, 4, *random.integers(1, count + 1, times)]:
        yield list(random.permutation(count)[:size])


def padded(arrays, extra=0):
    """Rows of (length, ...) as (batch, longest + extra, ...), rubbish behind them, and their lengths."""
    lengths = np.array([len(array) for array in arrays])
    shape = (len(arrays), max(lengths) + extra, *arrays[0].shape[1:])
    rubbish = 7 if arrays[0].dtype.kind == "i" else np.nan
    result = np.full(shape, rubbish, arrays[0].dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result, lengths


# ------------------------------------------------------------------------------------------------------------
# Functions
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
@pytest.mark.parametrize("shape", [(1, 1), (33, 7), (67, 24), (130, 97), (601, 45), (1100, 33)])
def test_rows_of_products(shape, dtype, product_isa):
    in_features, out_features = shape
    random = np.random.default_rng(0)
    x, weight = normal((61, in_features), dtype, 1), normal((out_features, in_features), dtype, 2)
    bias, d_output = normal(out_features, dtype, 3), normal((61, out_features), dtype, 4)
    with batch_invariant():
        y = blasformer.linear(x, weight, bias)
        d_x = blasformer.linear_backward(x, d_output, weight).x
        for rows in compositions(len(x), random):
            assert same_bits(blasformer.linear(x[rows], weight, bias), y[rows])
            assert same_bits(blasformer.linear_backward(x[rows], d_output[rows], weight).x, d_x[rows])


@pytest.mark.parametrize("mode", ["high", "medium", "ieee"])
def test_rows_of_products_at_other_precisions(mode, product_isa):
    random = np.random.default_rng(0)
    x, weight = normal((61, 190), seed=1), normal((77, 190), seed=2)
    with batch_invariant(), blasformer.precision(mode):
        y = blasformer.linear(x, weight)
        for rows in compositions(len(x), random):
            assert same_bits(blasformer.linear(x[rows], weight), y[rows])


def test_rows_of_products_of_extreme_numbers(product_isa):
    random = np.random.default_rng(0)
    x, weight = normal((61, 190), seed=1), normal((77, 190), seed=2)
    x[::7] *= np.float32(1e-30)
    x[3::11] *= np.float32(1e36)
    x[5, 8] = np.inf
    weight[::5] *= np.float32(1e-12)
    weight[2::13] *= np.float32(1e30)
    with batch_invariant():
        y = blasformer.linear(x, weight)
        for rows in compositions(len(x), random, 9):
            np.testing.assert_array_equal(blasformer.linear(x[rows], weight), y[rows])


ATTENTION = {
    "nothing": {},
    "causal": {"causal": True},
    "window": {"window": (9, 3)},
    "causal window": {"causal": True, "window": (70, None)},
    "softcap": {"softcap": 3.0},
    "sinks, causal": {"sinks": "per head", "causal": True},
    "slopes": {"alibi_slopes": "per head", "causal": True},
}


def attention_case(kind, heads, dtype):
    """The arguments of a case of ATTENTION."""
    per_head = normal(heads, np.float64, 9) / 4
    return {
        name: np.abs(per_head) if name == "alibi_slopes" else per_head.astype(dtype) if name == "sinks" else x
        for name, x in ATTENTION[kind].items()
    }


@st.composite
def sequences(draw, most=5):
    """Lengths of some sequences, and of the padding behind them."""
    lengths = draw(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=most))
    return lengths, draw(st.integers(0, 30))


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
@given(data=st.data())
def test_sequences_of_attention_and_their_gradients(dtype, product_isa, data):
    kind, (lengths, extra) = data.draw(st.sampled_from(list(ATTENTION))), data.draw(sequences())
    key_heads, group = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([1, 2, 3, 5]))
    dim, value_dim = data.draw(st.sampled_from([(5, 3), (17, 33), (64, 64), (70, 80)]))
    heads = key_heads * group
    arguments = attention_case(kind, heads, dtype)
    shapes = [(heads, dim), (key_heads, dim), (key_heads, value_dim), (heads, value_dim)]
    alone = [
        [normal((length, *shape), dtype, 4 * i + j) for j, shape in enumerate(shapes)]
        for i, length in enumerate(lengths)
    ]
    with batch_invariant():
        together = [padded(arrays, extra)[0].swapaxes(1, 2) for arrays in zip(*alone, strict=True)]
        output, saved = blasformer.attention_forward(
            *together[:3], **arguments, query_lengths=lengths, key_lengths=lengths
        )
        grads = blasformer.attention_backward(saved, together[3])
        for i, length in enumerate(lengths):
            *operands, d_output = (array.swapaxes(0, 1)[None] for array in alone[i])
            own, own_saved = blasformer.attention_forward(*operands, **arguments)
            own_grads = blasformer.attention_backward(own_saved, d_output)
            assert same_bits(own[0], output[i, :, :length])
            for name in ("query", "key", "value"):
                assert same_bits(getattr(own_grads, name)[0], getattr(grads, name)[i, :, :length]), name


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
@pytest.mark.parametrize("group", [1, 4, 5])
@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if "causal" in ATTENTION[kind]])
def test_a_query_alone_is_that_query_among_all(kind, group, dtype, product_isa, threads):
    length, key_heads, dim = 2200, 2, 20  # more keys than are one part of a step of decoding
    arguments = attention_case(kind, key_heads * group, dtype)
    query = normal((1, key_heads * group, length, dim), dtype, 1)
    key, value = (normal((1, key_heads, length, dim), dtype, seed) for seed in (2, 3))
    rows = [0, 5, 129, 2047, length - 1]
    with batch_invariant():
        whole = blasformer.scaled_dot_product_attention(
            query, key, value, **arguments, return_weights=blasformer.WeightSelection(rows=rows)
        )
        for place, row in enumerate(rows):
            result = blasformer.scaled_dot_product_attention(
                query[:, :, row : row + 1],
                key[:, :, : row + 1],
                value[:, :, : row + 1],
                **arguments,
                query_offset=row,
                return_weights=True,
            )
            assert same_bits(result.output, whole.output[:, :, row : row + 1])
            assert same_bits(result.weights[:, :, 0], whole.weights[:, :, place, : row + 1])


# ------------------------------------------------------------------------------------------------------------
# Layers
# ------------------------------------------------------------------------------------------------------------


def adapted(layer):
    """The same with adapters in all of its products."""
    lora.add(layer, ["*"], rank=5, alpha=8, rng=3)
    with layer.edit() as parameters:
        for name, array in parameters.items():
            if "lora_B" in name:
                array += normal(array.shape, array.dtype, 4) / 5
    return layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ATTENDING and name != "dropout"])
def test_rows_of_layers(name, dtype, product_isa):
    layer, shape = lively(LAYERS[name], dtype), LAYERS[name].shape
    random = np.random.default_rng(0)
    x = normal((50, *shape[1:]), dtype, 5)
    with batch_invariant():
        y, saved = layer.forward(x)
        d_y = normal(y.shape, dtype, 6)
        d_x, _ = layer.backward(saved, d_y)
        for rows in compositions(len(x), random, 2):
            assert same_bits(layer(x[rows]), y[rows]), "inference is as training"
            own, saved = layer.forward(x[rows])
            assert same_bits(own, y[rows])
            assert same_bits(layer.backward(saved, d_y[rows])[0], d_x[rows])


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ATTENDING)
def test_sequences_of_layers(name, dtype, adapters, product_isa):
    layer = lively(ATTENDING[name], dtype)
    if adapters:
        adapted(layer)
    width = ATTENDING[name].shape[-1]
    lengths = [1, 33, 3, 140, 17, 2]
    xs = [normal((length, width), dtype, seed) for seed, length in enumerate(lengths)]
    d_ys = [normal((length, width), dtype, 10 + seed) for seed, length in enumerate(lengths)]
    random = np.random.default_rng(0)
    causal = "rotary" in name
    with batch_invariant():
        alone = []
        for x, d_y in zip(xs, d_ys, strict=True):
            y, saved = layer.forward(x[None], causal=causal)
            alone.append((y[0], layer.backward(saved, d_y[None])[0]))
            assert same_bits(layer(x[None], causal=causal), y), "inference is as training"
        for rows in compositions(len(xs), random, 2):
            x, own_lengths = padded([xs[i] for i in rows], 3)
            d_y, _ = padded([d_ys[i] for i in rows], 3)
            x, d_y = np.nan_to_num(x), np.nan_to_num(d_y)
            y, saved = layer.forward(x, key_lengths=own_lengths, causal=causal)
            d_x, _ = layer.backward(saved, d_y)
            d_x = d_x[0] if isinstance(d_x, tuple) else d_x
            for place, i in enumerate(rows):
                assert same_bits(y[place, : lengths[i]], alone[i][0])
                d_alone = alone[i][1][0] if isinstance(alone[i][1], tuple) else alone[i][1]
                assert same_bits(d_x[place, : lengths[i]], d_alone[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DECODING)
def test_sequences_of_decoders(name, dtype, product_isa):
    layer, width = lively(DECODING[name], dtype), DECODING[name].shapes[0][-1]
    lengths, memory_lengths = np.array([3, 33, 1, 18]), np.array([35, 1, 131, 4])
    targets = [normal((length, width), dtype, seed) for seed, length in enumerate(lengths)]
    memories = [normal((length, width), dtype, 5 + seed) for seed, length in enumerate(memory_lengths)]
    random = np.random.default_rng(0)
    with batch_invariant():
        alone = [layer(x[None], m[None], causal=True)[0] for x, m in zip(targets, memories, strict=True)]
        for rows in compositions(len(lengths), random, 2):
            target, _ = padded([targets[i] for i in rows], 3)
            memory, _ = padded([memories[i] for i in rows], 3)
            y = layer(
                np.nan_to_num(target),
                np.nan_to_num(memory),
                causal=True,
                key_lengths=lengths[rows],
                memory_key_lengths=memory_lengths[rows],
            )
            for place, i in enumerate(rows):
                assert same_bits(y[place, : lengths[i]], alone[i])


# ------------------------------------------------------------------------------------------------------------
# Models
# ------------------------------------------------------------------------------------------------------------


def bert(dtype):
    config = models.BertConfig(
        vocab_size=67,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=75,
        max_position_embeddings=150,
    )
    return shaken(models.BertModel(config, dtype=dtype, rng=0), 0.2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_of_bert(dtype, product_isa, threads):
    model, random = bert(dtype), np.random.default_rng(0)
    lengths = [1, 9, 140, 33, 2, 17, 64, 128, 3, 5, 31, 80, 7]
    texts = [random.integers(0, 67, length) for length in lengths]
    with batch_invariant():
        alone = [model(text) for text in texts]
        for rows in compositions(len(texts), random):
            ids, own_lengths = padded([texts[i] for i in rows], 2)
            out = model(ids, lengths=own_lengths)
            for place, i in enumerate(rows):
                assert same_bits(out.last_hidden_state[place, : lengths[i]], alone[i].last_hidden_state)
                assert same_bits(out.pooler_output[place], alone[i].pooler_output)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sentences(dtype, pooling, product_isa):
    words = [f"w{i}" for i in range(67)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    encoder = models.SentenceEncoder(bert(dtype), tokenizer, pooling=pooling, normalize=True)
    random = np.random.default_rng(0)
    sentences = [" ".join(random.choice(words, length)) for length in random.integers(0, 60, 60)]
    with batch_invariant():
        vectors = encoder.encode(sentences)
        assert same_bits(encoder.encode(sentences, batch_size=7), vectors)
        for rows in compositions(len(sentences), random, 6):
            assert same_bits(encoder.encode([sentences[i] for i in rows]), vectors[rows])
        assert same_bits(encoder.encode(sentences[5]), vectors[5])


LANGUAGE_MODELS = {
    "GPT-2": lambda dtype: models.LanguageModel(67, 300, 48, 4, 2, dtype=dtype, rng=0),
    "untied": lambda dtype: models.LanguageModel(67, 300, 48, 4, 2, tied=False, dtype=dtype, rng=0),
    "Llama": lambda dtype: models.Llama(67, 300, 48, 4, 2, num_kv_heads=2, dtype=dtype, rng=0),
    "many queries": lambda dtype: models.Llama(67, 300, 48, 6, 1, num_kv_heads=1, dtype=dtype, rng=0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_texts_of_language_models_in_one_pass_and_token_by_token(name, dtype, product_isa):
    model, random = shaken(LANGUAGE_MODELS[name](dtype), 0.2), np.random.default_rng(0)
    lengths = np.array([1, 140, 9, 33, 128])
    texts = [random.integers(0, 67, length) for length in lengths + 12]
    with batch_invariant():
        alone = [model(text[None])[0] for text in texts]
        for rows in compositions(len(texts), random, 2):
            ids, whole = padded([texts[i] for i in rows], 1)
            logits = model(ids, lengths=whole)
            for place, i in enumerate(rows):
                assert same_bits(logits[place, : len(texts[i])], alone[i])
            # A part of each text at once, then tokens one by one, some sequences having left.
            prompts, seen = padded([texts[i][: lengths[i]] for i in rows])
            cache = model._held.new_cache(len(rows), 300)
            last = cache.add(prompts, seen)
            active = list(rows)
            for step in range(12):
                for place, i in enumerate(active):
                    assert same_bits(last[place], alone[i][lengths[i] + step - 1])
                if step == 5 and len(active) > 1:
                    cache.choose(list(range(1, len(active))))
                    del active[0]
                tokens = np.array([[texts[i][lengths[i] + step]] for i in active])
                last = cache.add(tokens, np.ones(len(active), np.int64))


def test_generated_texts(product_isa):
    model, random = shaken(LANGUAGE_MODELS["Llama"](np.float32), 0.2), np.random.default_rng(0)
    prompts = [random.integers(0, 67, length) for length in (3, 40, 17, 1)]
    with batch_invariant():
        together = model.generate(prompts, 20)
        for prompt, text in zip(prompts, together, strict=True):
            assert same_bits(model.generate(prompt, 20), text)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_sequences_of_classifiers(pooling, dtype, product_isa):
    random = np.random.default_rng(0)
    model = models.Classifier(
        5, 150, vocab_size=67, d_model=48, nhead=4, num_layers=2, pooling=pooling, dtype=dtype, rng=0
    )
    lengths = [1, 140, 9, 33]
    texts = [random.integers(0, 67, length) for length in lengths]
    with batch_invariant():
        alone = [model(text[None])[0] for text in texts]
        for rows in compositions(len(texts), random, 2):
            ids, own_lengths = padded([texts[i] for i in rows], 2)
            for place, i in enumerate(rows):
                assert same_bits(model(ids, lengths=own_lengths)[place], alone[i])


@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_of_sequence_to_sequence_models(dtype, product_isa):
    random = np.random.default_rng(0)
    model = models.Seq2Seq(
        67,
        61,
        bos_id=59,
        eos_id=60,
        d_model=48,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=2,
        dim_feedforward=75,
        dtype=dtype,
        rng=0,
    )
    sources = [random.integers(0, 67, length) for length in (1, 40, 9, 33)]
    targets = [random.integers(0, 59, length) for length in (4, 1, 33, 9)]
    with batch_invariant():
        alone = [model(s[None], t[None])[0] for s, t in zip(sources, targets, strict=True)]
        for rows in compositions(len(sources), random, 2):
            source, source_lengths = padded([sources[i] for i in rows], 2)
            target, target_lengths = padded([targets[i] for i in rows], 2)
            logits = model(source, target, source_lengths=source_lengths, target_lengths=target_lengths)
            for place, i in enumerate(rows):
                assert same_bits(logits[place, : len(alone[i])], alone[i])
        together = model.generate(sources, 12, beams=3)
        for source, found in zip(sources, together, strict=True):
            assert same_bits(model.generate(source, 12, beams=3), found)


# ------------------------------------------------------------------------------------------------------------
# The mode
# ------------------------------------------------------------------------------------------------------------


def linear_varies(x, weight):
    return not same_bits(blasformer.linear(x[:1], weight), blasformer.linear(x, weight)[:1])


def attention_varies(x, **arguments):
    whole = blasformer.scaled_dot_product_attention(x, x, x, **arguments)
    last = blasformer.scaled_dot_product_attention(x[:, :, -1:], x, x, **arguments)
    return not same_bits(last, whole[:, :, -1:])


def test_without_the_mode_rows_differ(isa):
    x, weight = normal((61, 190), seed=1), normal((77, 190), seed=2)
    assert linear_varies(x, weight)
    with batch_invariant():
        assert not linear_varies(x, weight)
        with batch_invariant(False):
            assert linear_varies(x, weight)
        assert not linear_varies(x, weight)
    assert linear_varies(x, weight)
    operand = normal((1, 1, 67, 64), seed=3)
    assert attention_varies(operand)
    with batch_invariant():
        assert not attention_varies(operand)


def test_the_argument_goes_before_the_context():
    x = normal((1, 1, 67, 64), seed=3)
    assert not attention_varies(x, batch_invariant=True)
    assert attention_varies(x, batch_invariant=None)
    with batch_invariant():
        assert attention_varies(x, batch_invariant=False)
        assert not attention_varies(x, batch_invariant=None)


def test_backward_is_computed_as_forward_was():
    x = normal((1, 3, 2, 64), np.float32, 3)
    results = []
    for invariant in (True, False):
        _, saved = blasformer.attention_forward(x, x, x, batch_invariant=True)
        with batch_invariant(invariant):
            results.append(blasformer.attention_backward(saved, x))
    assert all(same_bits(a, b) for a, b in zip(results[0][:3], results[1][:3], strict=True))


def test_the_mode_belongs_to_the_context():
    x, weight = normal((61, 190), seed=1), normal((77, 190), seed=2)
    seen = {}

    def look(name):
        seen[name] = linear_varies(x, weight)

    async def within():
        with batch_invariant():
            await asyncio.sleep(0.01)
            look("task within")

    async def without():
        await asyncio.sleep(0.005)
        look("task beside")

    async def both():
        await asyncio.gather(within(), without())

    asyncio.run(both())
    with batch_invariant():
        thread = threading.Thread(target=look, args=("thread",))
        thread.start()
        thread.join()
    assert seen["thread"] == seen["task beside"] != seen["task within"]


def test_packed_weights_serve_both_modes(product_isa):
    layer = nn.Linear(190, 77, rng=0)
    x = normal((61, 190), seed=1)
    expected = layer(x), layer(x[:3])
    with batch_invariant():
        own = layer(x), layer(x[:3])
        assert same_bits(own[0][:3], own[1])
    assert same_bits(layer(x), expected[0]), "nothing changes without"
    assert same_bits(layer(x[:3]), expected[1])
    with batch_invariant():
        assert same_bits(layer(x), own[0])
        assert same_bits(copy.deepcopy(layer)(x), own[0])


@pytest.mark.parametrize("wrong", [1, "yes", None, np.True_])
def test_the_mode_is_a_bool(wrong):
    with pytest.raises(TypeError, match=f"invariant must be a bool, got {type(wrong).__name__}"):
        batch_invariant(wrong)
    x = normal((1, 1, 3, 4))
    if wrong is not None:
        message = f"batch_invariant must be a bool or None, got {type(wrong).__name__}"
        with pytest.raises(TypeError, match=message):
            blasformer.scaled_dot_product_attention(x, x, x, batch_invariant=wrong)
        with pytest.raises(TypeError, match=message):
            blasformer.attention_forward(x, x, x, batch_invariant=wrong)

"""What transformers and PEFT write is read here, and what is written here they read: the same numbers.

Needs torch, transformers and peft, and is skipped without them; the tests of each model compare it with its
formula in NumPy. All models are small and random.
"""

import numpy as np
import pytest
from blasformer import lora, models, optim

torch = pytest.importorskip("torch", reason="torch, transformers and peft are the other side")
transformers = pytest.importorskip("transformers", reason="torch, transformers and peft are the other side")
peft = pytest.importorskip("peft", reason="torch, transformers and peft are the other side")

# What they say to each other of what is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:fan_in_fan_out is set to False")

VOCABULARY, LENGTH = 31, 17
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 40, "n_embd": 24, "n_head": 3, "n_layer": 2}
GPT2 |= {"bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
BERT = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 37,
    "initializer_range": 0.3,
}
ROBERTA = BERT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # relative to the largest number


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def random_ids(*shape, lowest=0):
    return np.random.default_rng(0).integers(lowest, VOCABULARY, shape)


def published(folder, kind, config, dtype):
    """A model with weights that are neither 0 nor 1, as transformers saves it."""
    model = getattr(transformers, kind)(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def opened(folder, kind, dtype):
    """What transformers reads: all of it, and nothing besides."""
    model, report = getattr(transformers, kind).from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(report.values())
    return model.eval()


def assert_same(ours, theirs, dtype):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == dtype
    assert np.abs(ours - theirs).max() <= TOLERANCE[dtype] * np.abs(theirs).max()


def assert_same_gradients(grads, model, name_of, dtype):
    """name_of: what transformers calls a parameter, and whether it has it transposed."""
    theirs = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(gradient.abs().max().item() for gradient in theirs.values() if gradient is not None)
    for name, gradient in grads.items():
        stored, transposed = name_of(name)
        other = theirs[stored].numpy()
        difference = gradient - (other.T if transposed else other)
        assert np.abs(difference).max() <= TOLERANCE[dtype] * largest, name


def trained(model, *batch):
    """After a few steps nothing is what it was."""
    optimizer = optim.AdamW(model, lr=1e-2)
    for _ in range(3):
        optimizer.step(model.loss_and_gradients(*batch)[1])
    return model


# ----------------------------------------------------------------------------------------------------------
# GPT-2
# ----------------------------------------------------------------------------------------------------------


def next_token_loss(model, ids):
    """In the model's dtype: transformers computes it in float32."""
    logits, targets = model(torch.tensor(ids)).logits[:, :-1], torch.tensor(ids)[:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gpt2_name(name):
    return f"transformer.{name}", name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


GPT2_VARIANTS = {
    "as published": {},
    "another width and activation": {"n_inner": 37, "activation_function": "relu"},
    "untied": {"tie_word_embeddings": False},
}


def test_the_order_in_which_attention_multiplies_is_no_matter(tmp_path):
    config = transformers.GPT2Config(**GPT2, reorder_and_upcast_attn=True)
    theirs = published(tmp_path, "GPT2LMHeadModel", config, "float32")
    ours, ids = models.LanguageModel.from_pretrained(tmp_path), random_ids(2, LENGTH)
    assert_same(ours(ids), theirs(torch.tensor(ids)).logits, "float32")


@pytest.mark.parametrize("variant", GPT2_VARIANTS)
def test_gpt2_computes_what_transformers_computes(tmp_path, variant, dtype):
    config = transformers.GPT2Config(**GPT2 | GPT2_VARIANTS[variant])
    theirs = published(tmp_path, "GPT2LMHeadModel", config, dtype)
    ours, ids = models.LanguageModel.from_pretrained(tmp_path), random_ids(2, LENGTH)
    assert_same(ours(ids), theirs(torch.tensor(ids)).logits, dtype)
    assert_same(ours(ids, return_weights=True)[1][1], weights_of(theirs, ids, 1), dtype)


def weights_of(model, ids, layer):
    model.set_attn_implementation("eager")
    return model(torch.tensor(ids), output_attentions=True).attentions[layer]


def test_gpt2_has_the_gradients_of_transformers(tmp_path, dtype):
    config = transformers.GPT2Config(**GPT2 | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    theirs = published(tmp_path, "GPT2LMHeadModel", config, dtype)
    ours, ids = models.LanguageModel.from_pretrained(tmp_path), random_ids(2, LENGTH)
    loss, grads = ours.loss_and_gradients(ids)
    expected = next_token_loss(theirs, ids)
    expected.backward()
    assert abs(loss - expected.item()) <= TOLERANCE[dtype] * abs(loss)
    assert_same_gradients(grads, theirs, gpt2_name, dtype)


def test_gpt2_generates_what_transformers_generates(tmp_path):
    theirs = published(tmp_path, "GPT2LMHeadModel", transformers.GPT2Config(**GPT2), "float64")
    ours, ids = models.LanguageModel.from_pretrained(tmp_path), random_ids(1, 5)
    expected = theirs.generate(torch.tensor(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert ours.generate(ids[0], 20).tolist() == expected[0, 5:].tolist()


@pytest.mark.parametrize("variant", GPT2_VARIANTS)
def test_transformers_reads_the_gpt2_that_was_trained_here(tmp_path, variant, dtype):
    config = transformers.GPT2Config(**GPT2 | GPT2_VARIANTS[variant])
    published(tmp_path / "theirs", "GPT2LMHeadModel", config, dtype)
    ids = random_ids(2, LENGTH)
    ours = trained(models.LanguageModel.from_pretrained(tmp_path / "theirs"), ids)
    ours.save(tmp_path / "ours")
    assert_same(
        ours(ids), opened(tmp_path / "ours", "GPT2LMHeadModel", dtype)(torch.tensor(ids)).logits, dtype
    )


def test_shards_and_narrow_weights_of_transformers_are_read(tmp_path):
    theirs = published(tmp_path / "whole", "GPT2LMHeadModel", transformers.GPT2Config(**GPT2), "float32")
    theirs.bfloat16().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    ids = random_ids(2, LENGTH)
    ours = models.LanguageModel.from_pretrained(tmp_path / "shards")
    assert_same(ours(ids), theirs.float()(torch.tensor(ids)).logits, "float32")


# ----------------------------------------------------------------------------------------------------------
# Llama
# ----------------------------------------------------------------------------------------------------------

LLAMA = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 37,
    "initializer_range": 0.3,
    "sliding_window": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMAS = {
    "Llama": {},
    "Mistral": {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}},
    "Qwen2": {"tie_word_embeddings": True},
}


def llama_config(family):
    return getattr(transformers, f"{family}Config")(**LLAMA | LLAMAS[family])


# Its norms and angles transformers computes in float32 whatever the dtype: float64 has no more to be compared
# with, and the tests of the model compare it with its formula.
@pytest.mark.parametrize("family", LLAMAS)
def test_a_llama_computes_what_transformers_computes(tmp_path, family):
    theirs = published(tmp_path, f"{family}ForCausalLM", llama_config(family), "float32")
    ours, ids = models.LanguageModel.from_pretrained(tmp_path), random_ids(2, LENGTH)
    assert_same(ours(ids), theirs(torch.tensor(ids)).logits, "float32")
    assert_same(ours(ids, return_weights=True)[1][1], weights_of(theirs, ids, 1), "float32")
    loss, grads = ours.loss_and_gradients(ids)
    expected = next_token_loss(theirs, ids)
    expected.backward()
    assert abs(loss - expected.item()) <= 1e-5 * abs(loss)

    def name_of(name):
        return (name if name.startswith("lm_head.") else f"model.{name}"), False

    assert_same_gradients(grads, theirs, name_of, "float32")


@pytest.mark.parametrize("family", LLAMAS)
def test_a_llama_generates_what_transformers_generates(tmp_path, family):
    theirs = published(tmp_path, f"{family}ForCausalLM", llama_config(family), "float64")
    ours, ids = models.LanguageModel.from_pretrained(tmp_path), random_ids(1, 5)
    expected = theirs.generate(torch.tensor(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert ours.generate(ids[0], 20).tolist() == expected[0, 5:].tolist()


@pytest.mark.parametrize("family", LLAMAS)
def test_transformers_reads_the_llama_that_was_trained_here(tmp_path, family):
    published(tmp_path / "theirs", f"{family}ForCausalLM", llama_config(family), "float32")
    ids = random_ids(2, LENGTH)
    ours = trained(models.LanguageModel.from_pretrained(tmp_path / "theirs"), ids)
    ours.save(tmp_path / "ours")
    again = opened(tmp_path / "ours", "AutoModelForCausalLM", "float32")
    assert_same(ours(ids), again(torch.tensor(ids)).logits, "float32")


def test_adapters_of_llama_go_both_ways(tmp_path):
    published(tmp_path / "base", "LlamaForCausalLM", llama_config("Llama"), "float32")
    base = opened(tmp_path / "base", "LlamaForCausalLM", "float32")
    theirs = with_adapters(base, target_modules=["q_proj", "v_proj", "down_proj"])
    theirs.save_pretrained(tmp_path / "theirs")
    ours, ids = models.LanguageModel.from_pretrained(tmp_path / "base"), random_ids(2, LENGTH)
    lora.load(ours, tmp_path / "theirs")
    assert_same(ours(ids), theirs(torch.tensor(ids)).logits, "float32")
    lora.save(trained(ours, ids), tmp_path / "ours")
    base = opened(tmp_path / "base", "LlamaForCausalLM", "float32")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert_same(ours(ids), again(torch.tensor(ids)).logits, "float32")


# ----------------------------------------------------------------------------------------------------------
# BERT and RoBERTa
# ----------------------------------------------------------------------------------------------------------

FAMILIES = {"Bert": BERT, "Roberta": ROBERTA, "XLMRoberta": ROBERTA, "Camembert": ROBERTA}


def family_config(family, **changes):
    return getattr(transformers, f"{family}Config")(**FAMILIES[family] | changes)


def padded_batch():
    """ids as tokenizers pad them, and their mask."""
    ids, is_token = random_ids(3, LENGTH, lowest=2), np.arange(LENGTH) < np.array([[LENGTH], [5], [11]])
    return np.where(is_token, ids, 1), is_token


def tensors_of(ids, is_token):
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(is_token.astype(int))}


@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM", "ForSequenceClassification"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_computes_what_transformers_computes(tmp_path, family, kind, dtype):
    theirs = published(tmp_path, family + kind, family_config(family), dtype)
    theirs = theirs.base_model
    ours, (ids, is_token) = models.BertModel.from_pretrained(tmp_path), padded_batch()
    found, expected = ours(ids, attention_mask=is_token), theirs(**tensors_of(ids, is_token))
    assert_same(found.last_hidden_state[is_token], expected.last_hidden_state[torch.tensor(is_token)], dtype)
    assert ours.with_pooler == (theirs.pooler is not None)
    if ours.with_pooler:
        assert_same(found.pooler_output, expected.pooler_output, dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_has_the_gradients_of_transformers(tmp_path, family, dtype):
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs = published(tmp_path, f"{family}Model", family_config(family, **changes), dtype)
    ours, (ids, is_token) = models.BertModel.from_pretrained(tmp_path), padded_batch()
    output, saved = ours.forward(ids, attention_mask=is_token)
    direction = np.random.default_rng(1).standard_normal(output.pooler_output.shape).astype(dtype)
    _, grads = ours.backward(saved, d_pooler_output=direction)
    pooled = theirs(**tensors_of(ids, is_token)).pooler_output
    (pooled * torch.tensor(direction)).sum().backward()
    assert_same_gradients(grads, theirs, lambda name: (name, False), dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_encoder_that_was_saved_here(tmp_path, family, dtype):
    theirs = published(tmp_path / "theirs", f"{family}Model", family_config(family), dtype)
    models.BertModel.from_pretrained(tmp_path / "theirs").save(tmp_path / "ours")
    ids, is_token = padded_batch()
    expected = theirs(**tensors_of(ids, is_token)).pooler_output
    again = opened(tmp_path / "ours", f"{family}Model", dtype)(**tensors_of(ids, is_token)).pooler_output
    assert torch.equal(again, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_is_the_same_before_and_after_training_here(tmp_path, family, dtype):
    names = ["one", "two", "three", "four"]
    config = family_config(family, id2label=dict(enumerate(names)))
    kind = f"{family}ForSequenceClassification"
    theirs, (ids, is_token) = published(tmp_path / "theirs", kind, config, dtype), padded_batch()
    ours = models.BertForSequenceClassification.from_pretrained(tmp_path / "theirs")
    lengths = is_token.sum(-1)
    assert_same(ours(ids, lengths=lengths), theirs(**tensors_of(ids, is_token)).logits, dtype)
    trained(ours, ids, [3, 0, 1]).save(tmp_path / "ours")
    again = opened(tmp_path / "ours", kind, dtype)
    assert_same(ours(ids, lengths=lengths), again(**tensors_of(ids, is_token)).logits, dtype)
    assert list(ours.labels) == [again.config.id2label[i] for i in range(4)] == names


@pytest.mark.parametrize("family", FAMILIES)
def test_a_question_answerer_is_the_same_before_and_after_training_here(tmp_path, family, dtype):
    kind = f"{family}ForQuestionAnswering"
    theirs, (ids, is_token) = (
        published(tmp_path / "theirs", kind, family_config(family), dtype),
        padded_batch(),
    )
    ours = models.BertForQuestionAnswering.from_pretrained(tmp_path / "theirs")

    def assert_same_logits(other):
        found, expected = ours(ids, attention_mask=is_token), other(**tensors_of(ids, is_token))
        for column, logits in enumerate((expected.start_logits, expected.end_logits)):
            assert_same(found[:, column][is_token], logits[torch.tensor(is_token)], dtype)

    assert_same_logits(theirs)
    trained(ours, ids, [3, 0, 1], [4, 2, 1]).save(tmp_path / "ours")
    assert_same_logits(opened(tmp_path / "ours", kind, dtype))


def test_a_question_answerer_has_the_loss_and_gradients_of_transformers(tmp_path, dtype):
    changes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs = published(tmp_path, "BertForQuestionAnswering", family_config("Bert", **changes), dtype)
    ours, ids = models.BertForQuestionAnswering.from_pretrained(tmp_path), random_ids(3, LENGTH, lowest=1)
    starts, ends = [3, 0, 1], [4, 2, 1]
    loss, grads = ours.loss_and_gradients(ids, starts, ends)
    output = theirs(torch.tensor(ids), start_positions=torch.tensor(starts), end_positions=torch.tensor(ends))
    assert loss == pytest.approx(output.loss.item(), rel=TOLERANCE[dtype])
    output.loss.backward()
    assert_same_gradients(grads, theirs, lambda name: (name, False), dtype)


# ----------------------------------------------------------------------------------------------------------
# Adapters
# ----------------------------------------------------------------------------------------------------------


def with_adapters(model, **settings):
    """The model with adapters of PEFT that do something."""
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=7, **settings)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    return adapted


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM"},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*h\.1\..*c_proj", "modules_to_save": ["ln_f", "mlp.c_fc"]},
    ],
    ids=["c_attn", "all linear layers", "pattern"],
)
def test_adapters_of_gpt2_go_both_ways(tmp_path, settings):
    published(tmp_path / "base", "GPT2LMHeadModel", transformers.GPT2Config(**GPT2), "float32")
    theirs = with_adapters(opened(tmp_path / "base", "GPT2LMHeadModel", "float32"), **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, ids = models.LanguageModel.from_pretrained(tmp_path / "base"), random_ids(2, LENGTH)
    lora.load(ours, tmp_path / "theirs")
    assert_same(ours(ids), theirs(torch.tensor(ids)).logits, "float32")

    lora.save(trained(ours, ids), tmp_path / "ours")
    base = opened(tmp_path / "base", "GPT2LMHeadModel", "float32")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert_same(ours(ids), again(torch.tensor(ids)).logits, "float32")


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "value"]},
        {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"},  # trains the classifier as well
        {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
    ],
    ids=["query and value", "with a classifier", "all linear layers"],
)
def test_adapters_of_a_classifier_go_both_ways(tmp_path, family, settings):
    kind = f"{family}ForSequenceClassification"
    published(tmp_path / "base", kind, family_config(family), "float32")
    theirs = with_adapters(opened(tmp_path / "base", kind, "float32"), **settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = models.BertForSequenceClassification.from_pretrained(tmp_path / "base")
    lora.load(ours, tmp_path / "theirs")
    ids, is_token = padded_batch()
    lengths = is_token.sum(-1)
    assert_same(ours(ids, lengths=lengths), theirs(**tensors_of(ids, is_token)).logits, "float32")

    lora.save(trained(ours, ids, [1, 0, 1]), tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(
        opened(tmp_path / "base", kind, "float32"), tmp_path / "ours"
    ).eval()
    assert_same(ours(ids, lengths=lengths), again(**tensors_of(ids, is_token)).logits, "float32")

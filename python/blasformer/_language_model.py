"""Decoder-only language models on NumPy arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import (
    checked_epsilon,
    checked_flag,
    checked_integer,
    checked_integer_or_none,
    checked_layers,
    checked_loss_numbers,
    checked_name,
    checked_number,
    checked_number_or_none,
    configured_flag,
    require_supported,
)
from ._attention import Array, LayerWeights, choose_layers
from ._dtypes import float_dtype
from ._generation import TokenSampler, padded, sequences_of, token_ids
from ._model import Model
from ._progress import progress_bar
from ._random import Rng, initial_seed, seed_or_none
from .io import Checkpoint

# What config.json may ask for besides, and what it says if it does not.
GPT2_SUPPORTED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# What config.json calls an activation, and what it is called here.
GPT2_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu": "relu",
    "silu": "silu",
}
# GPT-2's matrices that are stored (in_features, out_features).
GPT2_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


class LanguageModel(Model):
    """A decoder-only Transformer that predicts the next token: GPT-2. (`Llama` is the other family.)

        x = dropout(wte[ids] + wpe[positions])
        x = x + attention(ln_1(x));  x = x + feed_forward(ln_2(x))      in each block; tokens see earlier ones
        logits = ln_f(x) @ wte.T

    Parameters
    ----------
    vocab_size : ids are in [0, vocab_size)
    max_length : the longest sequence, which has learned positions
    d_model : features, a multiple of nhead
    nhead, num_layers : positive ints
    dim_feedforward : width of the hidden layer; 4 * d_model by default
    dropout : probability with which embeddings, attention weights and what joins the residual stream are
        dropped in training with an rng
    embedding_dropout, attention_dropout : those of embeddings and of attention weights, if they differ
    activation : "gelu_tanh" as in GPT-2, "gelu", "gelu_sigmoid", "relu" or "silu"
    layer_norm_eps : added to the variance by the layer norms
    tied : whether logits are computed with the weights of the embedding; otherwise with lm_head.weight
    recompute : whether training keeps only the input of each block and computes the rest again: a fraction of
        the memory for about a third more time
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, as in GPT-2; a fresh one by
        default

    State, under GPT-2's names: wte.weight (vocab_size, d_model), wpe.weight (max_length, d_model); for each
    block h.0, h.1, ...: ln_1.*, attn.c_attn.* (3 * d_model, d_model), attn.c_proj.*, ln_2.*, mlp.c_fc.*,
    mlp.c_proj.*; ln_f.*; lm_head.weight if not tied. Matrices are (out_features, in_features), as everywhere
    here; in the files of `save` they are transposed where GPT-2's are, so that `from_pretrained` reads what
    transformers publishes, and transformers what `save` writes.

    Calling it
    ----------
    ids : (batch, length) or (length,) integers
    lengths : (batch,) integers: how many ids, from the left, each sequence has; what follows is not looked at
    segments : like ids, integers: several sequences in one row, runs of equal numbers, that do not see each
        other and whose positions count from 0
    return_weights : which attention weights to return: True for those of all blocks, the indices of blocks,
        as (0, -1), or a WeightSelection for each, as {0: WeightSelection(heads=[3]), -1: True}

    Returns the logits of the token after each, (batch, length, vocab_size) or (length, vocab_size), or
    (logits, weights) with weights a dict from the index of a block, as it was given, to its
    (batch, nhead, length, length) array. What stands beyond a sequence's length holds no meaning.

    Raises
    ------
    IndexError for ids outside the vocabulary, ValueError for shapes that do not fit and sequences longer than
    max_length, TypeError for what is not integer.

    References
    ----------
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

    `from_pretrained` also reads folders of Llama, Mistral and Qwen2: it returns a `Llama` then.

    Examples
    --------
    >>> from blasformer import optim
    >>> model = LanguageModel(5, max_length=8, d_model=16, nhead=2, num_layers=1, dropout=0.0, rng=0)
    >>> optimizer = optim.AdamW(model, lr=1e-2)
    >>> ids = np.array([[0, 1, 2, 3, 4, 0, 1, 2]])
    >>> for step in range(60):
    ...     loss, grads = model.loss_and_gradients(ids)
    ...     norm = optimizer.step(grads)
    >>> loss < 0.1, model(ids[0, :4]).argmax(-1)
    (True, array([1, 2, 3, 4]))
    """

    _held: _core.LanguageModel
    _model_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    _is_llama: ClassVar[bool] = False
    _prefix: ClassVar[str] = "transformer."  # of the names in files
    _buffers: ClassVar[tuple[str, ...]] = (".attn.bias", ".attn.masked_bias")  # causal masks, in older files

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.1,
        activation: str = "gelu_tanh",
        layer_norm_eps: float = 1e-5,
        *,
        embedding_dropout: float | None = None,
        attention_dropout: float | None = None,
        tied: bool = True,
        recompute: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        arguments = {
            "vocab_size": checked_integer("vocab_size", vocab_size),
            "max_length": checked_integer("max_length", max_length),
            "d_model": checked_integer("d_model", d_model),
            "nhead": checked_integer("nhead", nhead),
            "num_layers": checked_layers("num_layers", num_layers),
            "dim_feedforward": checked_integer_or_none("dim_feedforward", dim_feedforward),
            "dropout": checked_number("dropout", dropout),
            "activation": checked_name("activation", activation),
            "layer_norm_eps": checked_epsilon("layer_norm_eps", layer_norm_eps),
            "embedding_dropout": checked_number_or_none("embedding_dropout", embedding_dropout),
            "attention_dropout": checked_number_or_none("attention_dropout", attention_dropout),
            "tied": checked_flag("tied", tied),
            "recompute": checked_flag("recompute", recompute),
            "dtype": float_dtype(dtype).name,
        }
        self._allocate(arguments, initial_seed(rng))

    def _allocate(self, arguments: dict[str, Any], seed: int | None) -> None:
        self._arguments = arguments
        sizes = self._sizes()
        self._held = _core.language_model(arguments["dtype"], self._is_llama, sizes, seed)

    def _sizes(self) -> dict[str, Any]:
        """What the model in C++ is made from."""
        arguments = self._arguments
        width, dropout = arguments["dim_feedforward"], arguments["dropout"]
        return arguments | {
            "dim_feedforward": checked_integer("dim_feedforward", 4 * arguments["d_model"])
            if width is None
            else width,
            **{
                name: dropout if arguments[name] is None else arguments[name]
                for name in ("embedding_dropout", "attention_dropout")
            },
            "num_kv_heads": arguments["nhead"],
            "rotary_base": 0.0,
            "projection_bias": False,
        }

    def __call__(
        self,
        ids: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        return_weights: LayerWeights = False,
    ) -> Any:
        if return_weights is False:
            return self._held.call(ids, lengths, segments, [])[0]
        length = np.shape(ids)[-1] if np.ndim(ids) else 0
        asked = choose_layers(return_weights, self._arguments["num_layers"], self._arguments["nhead"], length)
        logits, weights = self._held.call(ids, lengths, segments, list(asked.values()))
        return logits, {name: weights[index] for name, (index, _) in asked.items()}

    def forward(
        self,
        ids: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The logits and what their gradient needs. Dropout acts if there is an rng.

        For training by the loss of the next token `loss_and_gradients` does all of it in one call, and never
        holds the logits of all tokens.
        """
        return self._held.forward(ids, lengths, segments, seed_or_none(rng))

    def loss(
        self,
        ids: ArrayLike,
        targets: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> float:
        """The mean cross-entropy of the targets, without dropout. Arguments as for `loss_and_gradients`.

        >>> model = LanguageModel(vocab_size=7, max_length=8, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> bool(abs(model.loss([[0, 1, 2, 3]]) - np.log(7)) < 0.1)  # at first all tokens are about as likely
        True
        """
        return self._held.loss(
            ids, targets, lengths, segments, divisor, *checked_loss_numbers(label_smoothing, ignore_index)
        )

    def loss_and_gradients(
        self,
        ids: ArrayLike,
        targets: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        rng: Rng | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The forward and backward pass of a step: (loss, {name: gradient} of what is not frozen).

        ids: (batch, length) or (length,) integers
        targets: like ids, the token that each is to predict, or ignore_index where it does not count. By
            default the next one: then all ids but the last are inputs and all but the first are targets,
            except across a border of segments.
        lengths, segments: as for calling the model; they are those of `ids`
        rng: numpy.random.Generator or int that dropout is drawn from; without it nothing is dropped
        divisor: what the sum of the losses is divided by: the number of targets that count by default, which
            makes it their mean. For one step of several calls give each of them the number of all
            (`target_count`), and add up with accumulate.
        label_smoothing: share of the target's probability that is spread over all tokens
        accumulate: gradients of an earlier call, which those of this one are added to, in place

        Only what the gradient needs is kept, the logits exist for some rows at a time, and frozen blocks
        below the last trained parameter are not kept or gone through at all. If no target counts the loss is
        0.0 and the gradients are 0.

        Raises IndexError, ValueError or TypeError for what does not fit; nothing is changed then.

        >>> model = LanguageModel(vocab_size=7, max_length=8, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> loss, grads = model.loss_and_gradients([[0, 1, 2, 3], [4, 5, 0, 0]], lengths=[4, 2], rng=1)
        >>> grads["wpe.weight"].shape
        (8, 16)
        """
        seed = seed_or_none(rng)

        def compute(arrays: dict[str, Array] | None) -> tuple[float, dict[str, Array]]:
            return self._held.loss_and_gradients(
                ids,
                targets,
                lengths,
                segments,
                divisor,
                *checked_loss_numbers(label_smoothing, ignore_index),
                seed,
                arrays,
            )

        return self._accumulated(compute, accumulate)

    def target_count(
        self,
        ids: ArrayLike,
        targets: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        segments: ArrayLike | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> int:
        """How many targets count: what `loss` divides by. Arguments as for `loss_and_gradients`, of which
        label_smoothing changes nothing.

        >>> model = LanguageModel(vocab_size=7, max_length=8, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> model.target_count([[0, 1, 2, 3], [4, 5, 0, 0]], lengths=[4, 2])
        4
        """
        return int(
            self._held.target_count(
                ids, targets, lengths, segments, checked_integer("ignore_index", ignore_index)
            )
        )

    def generate(
        self,
        prompt_ids: ArrayLike | Sequence[ArrayLike],
        max_new_tokens: int,
        *,
        lengths: ArrayLike | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        rng: Rng | None = None,
        stop_ids: int | Collection[int] = (),
        progress: bool | None = None,
    ) -> Any:
        """Continue sequences, token by token.

        prompt_ids: (length,) or (batch, length) integers, or a list of sequences of different lengths, each
            of at least one token
        max_new_tokens: how many tokens to add at most
        lengths: (batch,) integers: how many ids, from the left, each prompt has
        temperature: 0 takes the most probable token; otherwise tokens are drawn from
            softmax(logits / temperature)
        top_k: draw from the k most probable only
        top_p: draw from the fewest most probable tokens (of the top_k) that together have this probability
        rng: numpy.random.Generator or int that tokens are drawn from; needed for temperature > 0
        stop_ids: tokens that end a sequence
        progress: whether to show a bar; None does in terminals and notebooks if it takes longer than 2
            seconds

        Returns the new tokens, int64, without the prompt and with the stop token if there was one: an array
        for one sequence, a list of arrays for several.

        Keys and values of earlier tokens are kept, so that a token costs one position; sequences of different
        lengths do not influence each other. A sequence that has grown to max_length goes on with its latter
        half as all the context there is.

        Raises IndexError, ValueError or TypeError for what does not fit, and ValueError if logits are NaN.

        >>> model = LanguageModel(vocab_size=7, max_length=8, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> tokens = model.generate([1, 2, 3], 4, temperature=0.8, top_k=5, rng=0)
        >>> [len(new) for new in model.generate([[1, 2, 3], [4]], max_new_tokens=20)]
        [20, 20]
        """
        vocab_size, max_length = self._arguments["vocab_size"], self._arguments["max_length"]
        prompts, single = sequences_of("prompt_ids", prompt_ids, lengths, vocab_size)
        if any(len(prompt) == 0 for prompt in prompts):
            raise ValueError("prompt_ids must have at least one token each, got an empty sequence")
        count = checked_integer("max_new_tokens", max_new_tokens)
        if count < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {count}")
        stops = token_ids("stop_ids", stop_ids, vocab_size)
        sampler = TokenSampler(temperature, top_k, top_p, rng)

        texts = [list(prompt[-max_length:]) for prompt in prompts]
        new: list[list[int]] = [[] for _ in prompts]
        active = list(range(len(prompts)))
        cache: _core.TokenCache | None = None
        with progress_bar(
            count, progress, argument="progress", description="Generating", unit="token"
        ) as advance:
            while active and len(new[active[0]]) < count:
                if cache is None or max(len(texts[i]) for i in active) > max_length:
                    logits, cache = self._begin(active, texts, count - len(new[active[0]]))
                else:
                    last = np.array([[texts[i][-1]] for i in active], np.int64)
                    logits = cache.add(last, np.ones(len(active), np.int64))
                for i, token in zip(active, sampler(logits, active, len(prompts)).tolist(), strict=True):
                    texts[i].append(token)
                    new[i].append(token)
                going = [k for k, i in enumerate(active) if new[i][-1] not in stops]
                if len(going) < len(active):
                    active = [active[k] for k in going]
                    cache.choose(going)
                advance(1)
        results = [np.array(tokens, np.int64) for tokens in new]
        return results[0] if single else results

    def _begin(
        self, active: list[int], texts: list[list[int]], remaining: int
    ) -> tuple[Array, _core.TokenCache]:
        """The logits after the texts that are active, and a cache of them with room for what follows."""
        max_length = self._arguments["max_length"]
        for i in active:
            if len(texts[i]) > max_length:
                texts[i] = texts[i][-max(max_length // 2, 1) :]
        ids, lengths = padded([np.array(texts[i], np.int64) for i in active])
        capacity = min(max_length, ids.shape[1] + remaining)
        cache = self._held.new_cache(len(active), capacity)
        return cache.add(ids, lengths), cache

    # ---- Folders, as transformers has them

    def _config(self) -> dict[str, Any]:
        arguments, sizes = self._arguments, self._sizes()
        # What transformers takes for the end of a text unless it is told.
        end = {} if arguments["vocab_size"] > 50256 else {"bos_token_id": None, "eos_token_id": None}
        activations = {ours: published for published, ours in reversed(GPT2_ACTIVATIONS.items())}
        return {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": arguments["vocab_size"],
            "n_positions": arguments["max_length"],
            "n_embd": arguments["d_model"],
            "n_head": arguments["nhead"],
            "n_layer": arguments["num_layers"],
            "n_inner": arguments["dim_feedforward"],
            "activation_function": activations[arguments["activation"]],
            "layer_norm_epsilon": arguments["layer_norm_eps"],
            "embd_pdrop": sizes["embedding_dropout"],
            "attn_pdrop": sizes["attention_dropout"],
            "resid_pdrop": sizes["dropout"],
            "tie_word_embeddings": arguments["tied"],
            "torch_dtype": arguments["dtype"],
            **end,
        }

    @classmethod
    def _arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        require_supported(config, GPT2_SUPPORTED)
        activation = config.get("activation_function", "gelu_new")
        if not isinstance(activation, str) or activation not in GPT2_ACTIVATIONS:
            raise ValueError(
                f"activation_function must be one of {', '.join(GPT2_ACTIVATIONS)}, got {activation!r}"
            )
        dropout = checked_number("resid_pdrop", config.get("resid_pdrop", 0.1))
        embedding, attention = (
            checked_number(name, config.get(name, 0.1)) for name in ("embd_pdrop", "attn_pdrop")
        )
        return {
            "vocab_size": checked_integer("vocab_size", config["vocab_size"]),
            "max_length": checked_integer("n_positions", config["n_positions"]),
            "d_model": checked_integer("n_embd", config["n_embd"]),
            "nhead": checked_integer("n_head", config["n_head"]),
            "num_layers": checked_layers("n_layer", config["n_layer"]),
            "dim_feedforward": checked_integer_or_none("n_inner", config.get("n_inner")),
            "dropout": dropout,
            "embedding_dropout": None if embedding == dropout else embedding,
            "attention_dropout": None if attention == dropout else attention,
            "activation": GPT2_ACTIVATIONS[activation],
            "layer_norm_eps": checked_epsilon("layer_norm_epsilon", config.get("layer_norm_epsilon", 1e-5)),
            "tied": configured_flag(config, "tie_word_embeddings", True),
            "recompute": False,
        }

    def _stored_name(self, name: str) -> str:
        return name if name.startswith("lm_head.") else self._prefix + name

    def _is_stored_transposed(self, name: str) -> bool:
        return name.endswith(GPT2_TRANSPOSED)

    def _names_in(self, checkpoint: Checkpoint, names: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for stored in checkpoint.shapes:
            name = stored.removeprefix(self._prefix)
            if name in found:
                raise ValueError(f"{checkpoint.path} holds {name} twice: as {found[name]} and as {stored}")
            tied_again = name == "lm_head.weight" and name not in names
            if not name.endswith(self._buffers) and not tied_again:
                found[name] = stored
        return found

"""Sentences to vectors, as sentence-transformers folders describe it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import checked_integer, configured_flag
from ._attention import Array
from ._bert import BertModel, _packed
from ._generation import padded
from ._optional import require_package
from ._progress import progress_bar
from .io import PathLike, existing_folder, path_inside, read_json, require_regular_file

POOLINGS = ("cls", "mean", "max")
# The switches of older pooling configurations, and the modes they stand for.
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class SentenceEncoder:
    """Sentences to vectors, as a sentence-transformers folder describes it (Reimers and Gurevych 2019).

    Made by `from_pretrained`, or of its parts. Tokenizer, BertModel, pooling over the tokens ("mean", "max",
    or "cls", the first of them), and length 1 if the folder says so.

    `bert` is the BertModel, `tokenizer` the tokenizers.Tokenizer, `embedding_dim` the length of a vector,
    `max_seq_length` how many tokens of a sentence are read. Needs `pip install "blasformer[text]"`.

    Raises TypeError or ValueError for parts that do not fit each other.

    >>> encoder = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")  # the path of a folder
    >>> vectors = encoder.encode(["The economy grew.", "A feline rests.", "GDP is rising."])
    >>> vectors.shape, (vectors @ encoder.encode("A cat sits on the mat.")).argmax()
    ((3, 384), np.int64(1))
    """

    def __init__(
        self,
        bert: BertModel,
        tokenizer: Any,
        *,
        pooling: str = "mean",
        normalize: bool = False,
        max_seq_length: int | None = None,
        lower_case: bool = False,
        prompt: str = "",
    ) -> None:
        if not isinstance(bert, BertModel):
            raise TypeError(f"bert must be a BertModel, got {type(bert).__name__}")
        if not hasattr(tokenizer, "encode_batch_fast"):
            raise TypeError(f"tokenizer must be a tokenizers.Tokenizer, got {type(tokenizer).__name__}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        longest = bert.config.max_length
        specials = tokenizer.num_special_tokens_to_add(False)
        self.max_seq_length = longest if max_seq_length is None else min(max_seq_length, longest)
        if self.max_seq_length <= specials:
            raise ValueError(
                f"max_seq_length must be more than the {specials} special tokens, got {self.max_seq_length}"
            )
        if tokenizer.get_vocab_size() > bert.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens, "
                f"more than the {bert.config.vocab_size} of the model"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_seq_length)
        self.bert = bert
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self.lower_case = lower_case
        self.prompt = prompt

    def __repr__(self) -> str:
        return (
            f"SentenceEncoder({self.bert}, pooling={self.pooling!r}, normalize={self.normalize}, "
            f"max_seq_length={self.max_seq_length})"
        )

    @property
    def embedding_dim(self) -> int:
        """The length of a vector."""
        return self.bert.config.hidden_size

    @classmethod
    def from_pretrained(
        cls,
        folder: PathLike,
        *,
        dtype: npt.DTypeLike | None = None,
        weights_dtype: npt.DTypeLike | None = None,
        strict: bool = True,
    ) -> SentenceEncoder:
        """The encoder in a folder as sentence-transformers publishes it.

        Read are modules.json and the configurations it names (pooling "cls", "mean" or "max"; Normalize),
        sentence_bert_config.json (max_seq_length), config_sentence_transformers.json (a default prompt),
        tokenizer.json, and the model. dtype, weights_dtype, strict: as in BertModel.from_pretrained.

        Raises FileNotFoundError for a missing file and ValueError for one that is damaged or describes what
        is not supported (other poolings, modules and models), naming the file.
        """
        folder = existing_folder(folder)
        modules = _sentence_modules(folder)
        settings_file = modules["Transformer"] / "sentence_bert_config.json"
        settings = read_json(settings_file, dict) if settings_file.exists() else {}
        max_seq_length = settings.get("max_seq_length")
        if max_seq_length is not None and (type(max_seq_length) is not int or max_seq_length < 1):
            raise ValueError(
                f"{settings_file}: max_seq_length must be a positive integer, got {max_seq_length!r}"
            )
        bert = BertModel.from_pretrained(
            modules["Transformer"], dtype=dtype, weights_dtype=weights_dtype, strict=strict
        )
        prompt = _default_prompt(folder / "config_sentence_transformers.json")
        return cls(
            bert,
            _load_tokenizer(modules["Transformer"] / "tokenizer.json"),
            pooling=_pooling(modules["Pooling"] / "config.json", bert.config.hidden_size, prompt),
            normalize="Normalize" in modules,
            max_seq_length=max_seq_length,
            lower_case=_flag(settings_file, settings, "do_lower_case", False),
            prompt=prompt,
        )

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
    ) -> Array:
        """A vector for each sentence: (n, embedding_dim) in the given order, or (embedding_dim,) for one str.

        batch_size: sentences per call of the model; they are sorted by length inside. It bounds memory and
            changes no result.
        show_progress_bar: None shows one in terminals and notebooks when the work takes longer than 2 seconds
            (and tqdm is installed)
        normalize_embeddings: True for vectors of length 1, False for vectors as pooled; None does what the
            folder says

        What is longer than max_seq_length tokens is cut off. An empty string is a sentence like any other.
        """
        texts = [self.prompt + text for text in _texts(sentences)]
        if self.lower_case:
            texts = [text.lower() for text in texts]
        size = checked_integer("batch_size", batch_size, least=1)
        embeddings = np.empty((len(texts), self.embedding_dim), self.bert.dtype)
        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        with progress_bar(
            len(texts),
            show_progress_bar,
            argument="show_progress_bar",
            description="Encoding",
            unit="sentence",
        ) as progress:
            for start in range(0, len(texts), size):
                batch = longest_first[start : start + size]
                embeddings[batch] = self._embed([texts[i] for i in batch])
                progress(len(batch))
        normalize = self.normalize if normalize_embeddings is None else normalize_embeddings
        if normalize:
            embeddings = _unit_length(embeddings)
        return embeddings[0] if isinstance(sentences, str) else embeddings

    def _embed(self, texts: list[str]) -> Array:
        """The pooled vectors of one batch, (n, embedding_dim)."""
        encodings = self.tokenizer.encode_batch_fast(texts)
        ids, lengths = padded([np.array(encoding.ids, np.int64) for encoding in encodings])
        types, _ = padded([np.array(encoding.type_ids, np.int64) for encoding in encodings])
        tokens = _packed(self.bert.config, ids, lengths, None, types)
        hidden, _, _ = self.bert._held.call(*tokens.arguments, [], False)
        return _pooled(self.pooling, hidden, lengths)


def _texts(sentences: str | Iterable[str]) -> list[str]:
    """The sentences as a list, all of which are text."""
    if isinstance(sentences, str):
        sentences = [sentences]
    if isinstance(sentences, (bytes, bytearray)) or not isinstance(sentences, Iterable):
        raise TypeError(f"sentences must be a str or several of them, got {type(sentences).__name__}")
    texts = list(sentences)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"sentences[{i}] must be a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"sentences[{i}] must be valid Unicode, got {error.object[error.start]!r}"
            ) from error
    return texts


def _pooled(pooling: str, hidden: Array, lengths: Array) -> Array:
    """(total, features) -> (sequences, features); zeros for a sequence without tokens."""
    result = np.zeros((len(lengths), hidden.shape[-1]), hidden.dtype)
    occupied = lengths > 0
    starts = (np.cumsum(lengths) - lengths)[occupied]
    if pooling == "cls":
        result[occupied] = hidden[starts]
    elif pooling == "max":
        result[occupied] = np.maximum.reduceat(hidden, starts) if len(starts) else 0
    else:
        sums = np.add.reduceat(hidden, starts, dtype=np.float64) if len(starts) else 0
        result[occupied] = sums / lengths[occupied, None]
    return result


def _unit_length(vectors: Array) -> Array:
    """Rows of Euclidean length 1; a row of zeros stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    return (vectors / np.where(norms > 0, norms, 1)).astype(vectors.dtype)


def _sentence_modules(folder: Path) -> dict[str, Path]:
    """Where modules.json says that the Transformer, the Pooling and the Normalize module lie."""
    file = folder / "modules.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no modules.json, which would name the pooling. Of a plain BERT folder, make "
            "SentenceEncoder(BertModel.from_pretrained(folder), tokenizer, pooling=...)"
        )
    modules: dict[str, Path] = {}
    for module in read_json(file, list):
        if not isinstance(module, dict) or not all(
            isinstance(module.get(key), str) for key in ("type", "path")
        ):
            raise ValueError(f"{file}: each module must have a type and a path, got {module!r}")
        kind = module["type"].rpartition(".")[2]
        # Normalize has nothing to store: its folder is often missing.
        modules[kind] = path_inside(folder, module["path"], file) if kind != "Normalize" else folder
    if list(modules) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{file}: modules must be Transformer, Pooling and perhaps Normalize, got {', '.join(modules)}"
        )
    return modules


def _pooling(file: Path, hidden_size: int, prompt: str) -> str:
    """The one pooling that a configuration asks for."""
    config = read_json(file, dict)
    modes = config.get("pooling_mode")
    if modes is None:
        switched_on = [switch for switch in POOLING_SWITCHES if _flag(file, config, switch, False)]
        modes = [POOLING_SWITCHES[switch] for switch in switched_on] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{file}: the pooling must be one of {', '.join(POOLINGS)}, got {modes!r}")
    size = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if type(size) is not int or size != hidden_size:
        raise ValueError(f"{file}: the dimension must be the model's hidden_size {hidden_size}, got {size!r}")
    if not _flag(file, config, "include_prompt", True) and prompt:
        raise ValueError(f"{file}: include_prompt must be true for a model with a default prompt, got false")
    return str(modes[0])


def _default_prompt(file: Path) -> str:
    """What is put before each sentence: mostly nothing."""
    config = read_json(file, dict) if file.exists() else {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    if not isinstance(name, str) or not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"{file}: default_prompt_name must be one of its prompts, got {name!r}")
    return str(prompts[name])


def _flag(file: Path, config: Mapping[str, Any], name: str, default: bool) -> bool:
    try:
        return configured_flag(config, name, default)
    except TypeError as error:
        raise ValueError(f"{file}: {error}") from error


def _load_tokenizer(file: Path) -> Any:
    require_regular_file(file)
    tokenizers = require_package("tokenizers", extra="text", purpose="SentenceEncoder")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more specific
        raise ValueError(f"{file} is not a valid tokenizer: {error}") from error

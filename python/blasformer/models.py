"""Models on NumPy arrays: published ones, and ones to train.

No PyTorch, no network, no conversion step: `BertModel` (BERT, RoBERTa, XLM-RoBERTa, CamemBERT) and
`LanguageModel` (GPT-2, Llama, Mistral, Qwen2) read config.json and model.safetensors as they are published,
and `SentenceEncoder` also the tokenizer and the pooling that a sentence-transformers folder names. Models
that are trained here are layers (see `blasformer.nn`) with `loss_and_gradients`, one call for a forward and a
backward pass, and are saved in such folders, which transformers reads.
"""

from ._bert import BertConfig, BertModel, BertOutput
from ._bert_classifier import BertForSequenceClassification
from ._bert_question_answering import Answers, BertForQuestionAnswering
from ._classifier import Classifier, image_patches
from ._language_model import LanguageModel
from ._llama import Llama
from ._sentences import SentenceEncoder
from ._seq2seq import Seq2Seq

__all__ = [
    "Answers",
    "BertConfig",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertModel",
    "BertOutput",
    "Classifier",
    "LanguageModel",
    "Llama",
    "SentenceEncoder",
    "Seq2Seq",
    "image_patches",
]

"""The text side: encoders and tokenizers, a thin layer over `transformers`; BERT is the original programs' encoder."""
from bert.adapters import add_adapters, is_adapter
from bert.encoder import BertConfig, TextEncoder, load_text_config, load_text_weights
from bert.encoders import (
    config_from_flags,
    make_text_encoder,
    plain_config,
    positions,
    stored_tokenizer,
    text_config,
    tokenizer_from_flags,
)
from bert.phrases import PhraseMarker
from bert.tokenizer import layout_of, load_tokenizer, reading_problems, tokenize, tokenizer_from_text, words_needed

__all__ = ["BertConfig", "PhraseMarker", "TextEncoder", "add_adapters", "config_from_flags",
           "is_adapter", "layout_of", "load_text_config", "load_text_weights", "load_tokenizer",
           "make_text_encoder", "plain_config", "positions", "reading_problems", "stored_tokenizer", "text_config",
           "tokenize", "tokenizer_from_flags", "tokenizer_from_text", "words_needed"]

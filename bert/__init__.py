"""The text side: BERT's encoder and tokenizer, a thin layer over `transformers`."""
from bert.encoder import BertConfig, TextEncoder, load_text_config, load_text_weights, text_config
from bert.phrases import PhraseMarker
from bert.tokenizer import load_tokenizer, reading_problems, tokenize, tokenizer_from_text, words_needed

__all__ = ["BertConfig", "PhraseMarker", "TextEncoder", "load_text_config", "load_text_weights", "load_tokenizer",
           "reading_problems", "text_config", "tokenize", "tokenizer_from_text", "words_needed"]

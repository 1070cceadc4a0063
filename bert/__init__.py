"""The text side: BERT's encoder and tokenizer, thin over `transformers`."""
from bert.encoder import BertConfig, TextEncoder, load_text_config, load_text_weights
from bert.tokenizer import load_tokenizer, reading_problems, tokenize, tokenizer_from_text

__all__ = ["BertConfig", "TextEncoder", "load_text_config", "load_text_weights", "load_tokenizer",
           "reading_problems", "tokenize", "tokenizer_from_text"]

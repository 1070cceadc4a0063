"""A small BERT without weights, for training from scratch: its configuration and a vocabulary of given words."""
import json
from collections.abc import Iterable
from pathlib import Path
from string import ascii_lowercase

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def words_of(sentences: Iterable[str]) -> set[str]:
    """The words and punctuation marks of some sentences, lower-cased, as BERT's tokenizer tells them apart."""
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    return {word for sentence in sentences
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence))}


def vocabulary(words: Iterable[str]) -> list[str]:
    """A WordPiece vocabulary: special tokens, `words`, and the letters that spell any other word."""
    return [*SPECIAL, *ascii_lowercase, *(f"##{letter}" for letter in ascii_lowercase),
            *sorted(set(words) - set(ascii_lowercase))]


def write_text_encoder(folder: Path, words: Iterable[str]) -> None:
    """Writes a tokenizer and the configuration of 2 layers of 128 channels, without weights, to the new `folder`.

    The folder serves as `--ck_bert` and as `--bert_tokenizer`.
    """
    folder.mkdir(parents=True)
    tokens = vocabulary(words)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(tokens), "hidden_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "hidden_act": "gelu",
        "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        "pad_token_id": 0}
    tokenizer = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64,
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]"}
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

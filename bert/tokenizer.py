"""Sentences to BERT's WordPiece tokens, all of a data set at once."""
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from bert.encoder import not_loadable
from utils import UserError

MAX_TOKENS = 20  # of a sentence, [CLS] and [SEP] included


def load_tokenizer(source: str) -> Tokenizer:
    """The WordPiece tokenizer named by `--bert_tokenizer`: a folder with vocab.txt or tokenizer.json, or a hub name.

    Raises `UserError` when it is neither.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise UserError(f"--bert_tokenizer {source}: the folder has neither vocab.txt nor tokenizer.json")
    try:
        if (folder / "tokenizer.json").is_file():
            return tokenizer_from_text((folder / "tokenizer.json").read_text(encoding="utf-8"))
        kind = BertTokenizer if folder.is_dir() else AutoTokenizer
        return tokenizer_from_text(kind.from_pretrained(source).backend_tokenizer.to_str())
    except (OSError, ValueError) as error:
        raise UserError(not_loadable("--bert_tokenizer", source)) from error


def tokenizer_from_text(text: str) -> Tokenizer:
    """A tokenizer from the JSON text that `Tokenizer.to_str` made (a checkpoint carries it)."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize(tokenizer: Tokenizer, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] words [SEP], cut to `MAX_TOKENS` and padded with zeros.

    A longer sentence loses its end and its [SEP], as in the published systems. Returns token ids and mask
    (1 for real tokens), both (sentences, MAX_TOKENS) int64.
    """
    token_ids = np.zeros((len(sentences), MAX_TOKENS), dtype=np.int64)
    token_mask = np.zeros_like(token_ids)
    for row, encoding in enumerate(tokenizer.encode_batch(sentences)):
        kept = encoding.ids[:MAX_TOKENS]
        token_ids[row, :len(kept)] = kept
        token_mask[row, :len(kept)] = 1
    return token_ids, token_mask

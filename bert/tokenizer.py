"""Turns sentences into BERT's WordPiece tokens, those of a whole data set at once."""
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from bert.phrases import PhraseMarker
from schema import is_unicode
from utils import UserError, hub

MAX_TOKENS = 20  # of a sentence, [CLS] and [SEP] included, unless a data set or --max_tokens says otherwise
AT_ONCE = 4096  # sentences per call of the tokenizer; its result takes a kilobyte for each


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
        return tokenizer_from_text(hub.load("--bert_tokenizer", source, lambda local: kind.from_pretrained(
            source, local_files_only=local).backend_tokenizer.to_str()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--bert_tokenizer {source} cannot be read: {error}") from error


def tokenizer_from_text(text: str) -> Tokenizer:
    """A tokenizer from the JSON text that `Tokenizer.to_str` made (a checkpoint carries it).

    Raises `UserError` for other or damaged text.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:   # Rust's panics are no `Exception`
        raise UserError(f"the tokenizer's text is damaged: {str(error)[:200]}") from error


def words_needed(tokenizer: Tokenizer) -> int:
    """The size that the text encoder's vocabulary must have at least: the largest token id plus 1."""
    framed = tokenizer.encode("")   # the ids of [CLS] and [SEP] need not be those in the tokenizer's vocabulary
    return 1 + max([*tokenizer.get_vocab(with_added_tokens=True).values(), *framed.ids], default=0)


def refuse_odd_text(sentences: Iterable[str]) -> None:
    """Raises `UserError` for the first sentence that is not valid Unicode, which the tokenizer would not accept."""
    for sentence in sentences:
        if not is_unicode(sentence):
            raise UserError(f"the sentence {sentence!r} is not valid Unicode: it must be UTF-8 without lone surrogates")


def reading_problems(tokenizer: Tokenizer, sentence: str, max_tokens: int = MAX_TOKENS) -> list[str]:
    """The words of a sentence that a network cannot read: a line on those not in the vocabulary, a line on those cut.

    Raises `UserError` for a sentence that is not Unicode.
    """
    refuse_odd_text([sentence])
    encoding = tokenizer.encode(sentence)
    offsets, names = encoding.offsets, encoding.tokens   # lists that are made anew at each access
    pieces: dict[int, list[int]] = {}   # the tokens of each word, punctuation left out
    for token, word in enumerate(encoding.word_ids):
        start, end = offsets[token]
        if word is not None and sentence[start:end].isalnum():
            pieces.setdefault(word, []).append(token)

    def text(tokens: list[int]) -> str:
        return sentence[offsets[tokens[0]][0]:offsets[tokens[-1]][1]]

    problems = []
    unknown = [f"'{text(tokens)}' (read as {' '.join(names[token] for token in tokens)})"
               for tokens in pieces.values() if len(tokens) > 1 or names[tokens[0]] == "[UNK]"]
    if unknown:
        problems.append(f"the vocabulary of {tokenizer.get_vocab_size()} tokens lacks {', '.join(unknown)}")
    cut = [tokens for tokens in pieces.values() if tokens[-1] >= max_tokens]
    if cut:
        count = f"the last {len(cut)} words were" if len(cut) > 1 else "the last word was"
        problems.append(f"{count} not read: '{text(cut[0] + cut[-1])}' (a sentence has at most {max_tokens} tokens)")
    return problems


def tokenize(tokenizer: Tokenizer, sentences: list[str], max_tokens: int = MAX_TOKENS,
             marker: PhraseMarker | None = None) -> tuple[np.ndarray, ...]:
    """The tokens [CLS] words [SEP] of each sentence, cut to `max_tokens` and padded with zeros.

    A longer sentence loses its end and its [SEP], as in the original programs. Returns token ids and mask
    (1 for real tokens), both (sentences, max_tokens) int64, and with a `marker` its phrase masks, too.
    """
    token_ids, lengths = tokenize_many(tokenizer, sentences, len(sentences), max_tokens)
    read = token_ids.astype(np.int64), (np.arange(max_tokens) < lengths[:, None]).astype(np.int64)
    return (*read, marker(sentences, read[1])) if marker else read


def tokenize_many(tokenizer: Tokenizer, sentences: Iterable[str], number: int,
                  max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises `number` sentences in little memory: -> ids (number, max_tokens), lengths in tokens (number,) int32.

    Ids have the smallest type that holds the vocabulary's ids. Raises `UserError` for a sentence that is not Unicode.
    """
    token_ids = np.zeros((number, max_tokens), dtype=np.min_scalar_type(tokenizer.get_vocab_size()))
    lengths = np.zeros(number, dtype=np.int32)
    rest = iter(sentences)
    for start in range(0, number, AT_ONCE):
        some = list(itertools.islice(rest, AT_ONCE))
        refuse_odd_text(some)
        for row, encoding in enumerate(tokenizer.encode_batch_fast(some), start):
            kept = encoding.ids[:max_tokens]
            token_ids[row, :len(kept)] = kept
            lengths[row] = len(kept)
    return token_ids, lengths

"""Turns sentences into tokens, those of a whole data set at once.

BERT's rows are those of the original programs: padded with zeros, and a longer sentence loses its end and its [SEP]. A
tokenizer with a declared padding (`bert.encoders` declares it for every other encoder) is padded as that says, and a
longer sentence keeps the special tokens at its end.
"""
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertTokenizer

from bert.phrases import PhraseMarker
from schema import is_unicode
from utils import UserError, hub

MAX_TOKENS = 20  # of a sentence, [CLS] and [SEP] included, unless a data set or --max_tokens says otherwise
# The parts that a tokenizer may have, of those that the library knows. Others can take any amount of memory or time, or
# end the process; so can regular expressions, of which only simple ones may be in Replace and Split.
PARTS = {
    "normalizer": {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Replace", "Sequence",
                   "Strip", "StripAccents"},
    "pre_tokenizer": {"BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Sequence", "Split",
                      "Whitespace", "WhitespaceSplit"},
    "post_processor": {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"},
    "model": {"BPE", "Unigram", "WordLevel", "WordPiece"}}
LONGEST_PATTERN, MOST_REPETITIONS = 300, 3   # CLIP's has a hundred characters and two repetitions
AT_ONCE = 4096  # sentences per call of the tokenizer; its result takes a kilobyte for each
UNKNOWN, MASKED = ("[UNK]", "<unk>"), ("[MASK]", "<mask>")   # what vocabularies call these tokens


def load_tokenizer(source: str, flag: str = "--bert_tokenizer") -> Tokenizer:
    """BERT's tokenizer named by `flag`: a folder with vocab.txt or tokenizer.json, or a hub name.

    Raises `UserError` when it is neither.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        raise UserError(f"{flag} {source}: the folder has neither vocab.txt nor tokenizer.json")
    try:
        if (folder / "tokenizer.json").is_file():
            return tokenizer_from_text((folder / "tokenizer.json").read_text(encoding="utf-8"))
        kind = BertTokenizer if folder.is_dir() else AutoTokenizer
        return tokenizer_from_text(hub.load(flag, source, lambda local: kind.from_pretrained(
            source, local_files_only=local).backend_tokenizer.to_str()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {source} cannot be read: {error}") from error


def tokenizer_from_text(text: str, padded: bool = False) -> Tokenizer:
    """A tokenizer from the JSON text that `Tokenizer.to_str` made (a checkpoint carries it).

    A padding that the text declares is kept if `padded`. Raises `UserError` for other or damaged text, and for a
    tokenizer with parts that are not in `PARTS` or with a pattern that is not simple.
    """
    refuse_odd_parts(text)
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        if not padded:
            tokenizer.no_padding()
        elif tokenizer.padding:   # its length would pad what `encode` returns
            tokenizer.enable_padding(**{**tokenizer.padding, "length": 0, "pad_to_multiple_of": None})
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:   # Rust's panics are no `Exception`
        raise UserError(f"the tokenizer's text is damaged: {str(error)[:200]}") from error


def refuse_odd_parts(text: str) -> None:
    """Raises `UserError` if a tokenizer's JSON text has a part that is not in `PARTS`; the library finds other faults.

    The decoder, which turns tokens into text, is never used.
    """
    try:
        content = json.loads(text)
        parts = {place: _parts_of(content.get(place)) for place in PARTS} if isinstance(content, dict) else {}
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the tokenizer's text is damaged: {str(error)[:200]}") from error
    for place, found in parts.items():
        known = PARTS[place]
        for part in found:
            kind = part.get("type", "WordPiece")   # old files name no kind of model
            if not isinstance(kind, str) or kind not in known:
                raise UserError(f"the tokenizer's text is damaged or of another kind: it has the {place} "
                                f"{str(kind)[:40]}, and may have {', '.join(sorted(known))}")
            pattern = part.get("pattern")
            if isinstance(pattern, dict) and "Regex" in pattern and not is_simple(pattern["Regex"]):
                raise UserError(f"the tokenizer's text is damaged or of another kind: the pattern of its {kind} is "
                                f"longer than {LONGEST_PATTERN} characters, has groups, or repeats too much")


def is_simple(pattern: object) -> bool:
    """Whether a regular expression has no groups and few repetitions, so that its time and memory are bounded."""
    if not isinstance(pattern, str) or len(pattern) > LONGEST_PATTERN:
        return False
    rest = re.sub(r"\\(p\{\w+\}|.)", "x", pattern, flags=re.DOTALL)   # escaped characters and classes of Unicode
    rest = re.sub(r"\[[^\]]*\]", "x", rest)   # sets of characters; what a nested set leaves only makes it less simple
    counts = re.findall(r"\{([\d,\s]*)\}", rest)
    return "(" not in rest and len(re.findall(r"[*+]", rest)) + len(counts) <= MOST_REPETITIONS and \
        all(len(number) <= 1 for count in counts for number in count.split(","))


def _parts_of(part: Any) -> list[dict[str, Any]]:
    """A part of a tokenizer and, if it is a sequence, all parts of that; [] if there is none."""
    if not isinstance(part, dict):
        return []
    below = [inner for value in part.values() if isinstance(value, list) and part.get("type") == "Sequence"
             for inner in value]
    return [part, *(found for inner in below for found in _parts_of(inner))]


def words_needed(tokenizer: Tokenizer) -> int:
    """The size that the text encoder's vocabulary must have at least: the largest token id plus 1."""
    # The ids of padding, [CLS] and [SEP] need not be those in the tokenizer's vocabulary.
    others = [layout_of(tokenizer).pad_id, *tokenizer.encode("").ids]
    return 1 + max(*tokenizer.get_vocab(with_added_tokens=True).values(), *others)


@dataclass(frozen=True)
class Layout:
    """How a tokenizer's sentences become rows: padding, and how many special tokens frame the words.

    `keeps_end` means that a sentence that is cut keeps the special tokens after its words.
    """

    pad_id: int
    pads_left: bool
    keeps_end: bool
    before: int
    after: int

    def cut(self, ids: list[int], max_tokens: int) -> list[int]:
        """A sentence's token ids, at most `max_tokens` of them."""
        if len(ids) <= max_tokens or not self.keeps_end or not self.after:
            return ids[:max_tokens]
        return ids[:max_tokens - self.after] + ids[-self.after:]

    def columns(self, length: int, max_tokens: int) -> slice:
        """The columns of a row of `max_tokens` that a sentence of so many tokens has."""
        return slice(max_tokens - length, max_tokens) if self.pads_left else slice(0, length)

    def words(self, length: int, max_tokens: int) -> slice:
        """The columns of a sentence's words, without the special tokens around them."""
        columns = self.columns(length, max_tokens)
        return slice(columns.start + self.before, columns.stop - self.after)


def layout_of(tokenizer: Tokenizer) -> Layout:
    """The layout of a tokenizer's rows: its declared padding, or that of the original programs for BERT."""
    masks = (tokenizer.encode(letter).special_tokens_mask for letter in ascii_lowercase)   # most know the first
    special = next((mask for mask in masks if 0 in mask), [])
    before = len(list(itertools.takewhile(bool, special)))
    after = len(list(itertools.takewhile(bool, special[before:][::-1])))
    padding = tokenizer.padding
    if padding is None:
        return Layout(0, False, False, before, after)
    return Layout(padding["pad_id"], padding["direction"] == "left", True, before, after)


def mask_token(tokenizer: Tokenizer) -> str | None:
    """The token that stands for a hidden word, as text; None in a vocabulary without one, such as CLIP's."""
    return next((name for name in MASKED if tokenizer.token_to_id(name) is not None), None)


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
        if word is not None and sentence[start:end].strip().isalnum():
            pieces.setdefault(word, []).append(token)

    def text(tokens: list[int]) -> str:
        return sentence[offsets[tokens[0]][0]:offsets[tokens[-1]][1]].strip()

    problems = []
    unknown = [f"'{text(tokens)}' (read as {' '.join(names[token] for token in tokens)})"
               for tokens in pieces.values() if len(tokens) > 1 or names[tokens[0]] in UNKNOWN]
    if unknown:
        problems.append(f"the vocabulary of {tokenizer.get_vocab_size()} tokens lacks {', '.join(unknown)}")
    layout = layout_of(tokenizer)
    room = max_tokens - layout.after if layout.keeps_end and len(names) > max_tokens else max_tokens
    cut = [tokens for tokens in pieces.values() if tokens[-1] >= room]
    if cut:
        count = f"the last {len(cut)} words were" if len(cut) > 1 else "the last word was"
        problems.append(f"{count} not read: '{text(cut[0] + cut[-1])}' (a sentence has at most {max_tokens} tokens)")
    return problems


def tokenize(tokenizer: Tokenizer, sentences: list[str], max_tokens: int = MAX_TOKENS,
             marker: PhraseMarker | None = None) -> tuple[np.ndarray, ...]:
    """The tokens of each sentence, such as [CLS] words [SEP], cut to `max_tokens` and padded (see `layout_of`).

    Returns token ids and mask (1 for real tokens), both (sentences, max_tokens) int64, and with a `marker` its phrase
    masks, too.
    """
    token_ids, lengths = tokenize_many(tokenizer, sentences, len(sentences), max_tokens)
    mask = real_tokens(lengths, max_tokens, layout_of(tokenizer).pads_left)
    read = token_ids.astype(np.int64), mask.astype(np.int64)
    return (*read, marker(sentences, read[1])) if marker else read


def real_tokens(lengths: np.ndarray, max_tokens: int, pads_left: bool = False) -> np.ndarray:
    """True where a row has a token and no padding: lengths (n,) -> (n, max_tokens) bool."""
    mask = np.arange(max_tokens) < lengths[:, None]
    return mask[:, ::-1] if pads_left else mask


def tokenize_many(tokenizer: Tokenizer, sentences: Iterable[str], number: int,
                  max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises `number` sentences in little memory: -> ids (number, max_tokens), lengths in tokens (number,) int32.

    Ids have the smallest type that holds the vocabulary's ids. Raises `UserError` for a sentence that is not Unicode.
    """
    layout = layout_of(tokenizer)
    kind = np.min_scalar_type(max(words_needed(tokenizer), layout.pad_id))
    token_ids = np.full((number, max_tokens), layout.pad_id, dtype=kind)
    lengths = np.zeros(number, dtype=np.int32)
    rest = iter(sentences)
    for start in range(0, number, AT_ONCE):
        some = list(itertools.islice(rest, AT_ONCE))
        refuse_odd_text(some)
        for row, encoding in enumerate(tokenizer.encode_batch_fast(some), start):
            kept = layout.cut(encoding.ids, max_tokens)
            token_ids[row, layout.columns(len(kept), max_tokens)] = kept
            lengths[row] = len(kept)
    return token_ids, lengths

"""What a tokenizer's text may contain: no part, and no pattern, that can take any amount of memory or time."""
import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers

from bert.tokenizer import is_simple, tokenizer_from_text
from utils import UserError

CLIPS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@pytest.mark.parametrize("pattern", [r"\s+", " {2,}", CLIPS, r"[!\"#$%&'\(\)\*\+,\-\./:;<=>\?@\[\\\]\^_`\{\|\}~]"])
def test_the_patterns_of_published_tokenizers_are_simple(pattern):
    assert is_simple(pattern)


@pytest.mark.parametrize("pattern", [
    "(a+)+", r"\[(a+)+]", "[[](a+)+]", "[^](a+)+]", "a*b*c*d*", "a{1000}", "a{9}{9}{9}{9}", "a" * 301, 3])
def test_patterns_with_groups_or_many_repetitions_are_not(pattern):
    assert not is_simple(pattern)


def test_a_tokenizer_with_another_part_or_such_a_pattern_is_refused():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.normalizer = normalizers.Replace(Regex("(a|b)*"), "")
    with pytest.raises(UserError, match="the pattern of its Replace is longer than 300 characters, has groups"):
        tokenizer_from_text(tokenizer.to_str())
    tokenizer.normalizer = normalizers.Replace("(a|b)*", "")   # plain text
    text = tokenizer_from_text(tokenizer.to_str()).to_str()
    changed = json.loads(text) | {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Nmt"}]}}
    with pytest.raises(UserError, match="it has the normalizer Nmt, and may have BertNormalizer"):
        tokenizer_from_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"it has the model \['a'\], and may have"):
        tokenizer_from_text(json.dumps(json.loads(text) | {"model": {"type": ["a"]}}))
    deep = '{"type": "Sequence", "normalizers": [' * 5000 + "]}" * 5000
    with pytest.raises(UserError, match="the tokenizer's text is damaged: maximum recursion depth"):
        tokenizer_from_text(text.replace('"normalizer":', f'"normalizer": {deep}, "other":', 1))

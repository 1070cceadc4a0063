"""FIANet's word masks by hand, with a tagger that knows a few words."""
import sys

import numpy as np
import pytest

from bert import tokenize
from bert.phrases import PhraseMarker
from refer.categories import CLASS_NAMES, class_names
from tests.nltk_stand_in import write_nltk_data
from utils import UserError

nltk = pytest.importorskip("nltk")
N = 10


@pytest.fixture(scope="module")
def marker(nltk_data):
    return PhraseMarker(CLASS_NAMES["rrsisd"])


def marks(marker: PhraseMarker, *sentences: str, real: int = N) -> list[list[list[int]]]:
    """The places of each sentence's marked tokens: [object, position]."""
    mask = (np.arange(N) < real).astype(np.int64)
    found = marker(list(sentences), np.stack([mask] * len(sentences)))
    assert found.shape == (len(sentences), 2, N) and found.dtype == np.int64
    return [[np.flatnonzero(kind).tolist() for kind in of_sentence] for of_sentence in found]


@pytest.mark.parametrize(("sentence", "objects", "position"), [
    # Word w is token w + 1:
    # 1   2      3  4   5
    ("The airplane on the right", [2], [3, 4, 5]),
    # a name of several words, and IN DT JJ NN
    ("The tennis court near the large ship", [2, 3, 7], [4, 5, 6, 7]),
    # a name within a longer word; its NNS ends no phrase, which leaves IN DT JJ
    ("The tennis court near the large ships", [2, 3, 7], [4, 5, 6]),
    ("The tennis court near the ships", [2, 3, 6], list(range(N))),
    # IN DT JJ JJ; and VBD, which needs an adjective before it that the second rule leaves
    ("The dam on the lower left", [2], [3, 4, 5, 6]),
    ("The dam near the larger colored", [2], [3, 4, 5, 6]),
    ("The dam near the large colored", [2], [3, 4, 5]),
    ("The dam near the colored", [2], list(range(N))),
    # phrases with "of" do not count, others of the sentence do
    ("The corner of the image", [], list(range(N))),
    ("The ship at the corner of the image", [2], [3, 4, 5]),
    # a phrase is marked where its first word occurs first, here "on the left" twice
    ("The ship on the left of the dam on the right", [2, 8], [3, 4, 5]),
    # the first word with the name's first word in it, here "storage" of another thing
    ("The storage near the storage tank", [2, 3], [3, 4, 5]),
    # capital letters are other letters
    ("Airplane on the right", [], [2, 3, 4]),
    ("", [], list(range(N))),
])
def test_masks_by_hand(marker, sentence, objects, position):
    assert marks(marker, sentence) == [[objects, position]]


def test_a_sentence_that_names_no_class_has_no_object(marker):
    assert marks(marker, "The car on the left") == [[[], [3, 4, 5]]]


def test_without_a_phrase_of_place_the_whole_sentence_is_the_position(marker):
    assert marks(marker, "The gray overpass", real=5) == [[[3], [0, 1, 2, 3, 4]]]


def test_what_is_beyond_the_tokens_is_cut(marker):
    long = "The gray gray gray gray gray gray tennis court on the left"    # tennis is token 8, court 9, on 10
    assert marks(marker, long) == [[[8, 9], []]]
    assert marks(marker, "The gray gray gray gray gray gray gray tennis court") == [[[9], list(range(N))]]


def test_sentences_are_marked_each_by_itself(marker):
    alone = [marks(marker, sentence)[0] for sentence in ("The ship", "A dam on the left")]
    assert marks(marker, "The ship", "A dam on the left") == alone


def test_words_are_counted_and_not_word_pieces(marker, tokenizer):
    """The original program's rule: behind a word of several pieces the marks are shifted."""
    sentence = "The zzz ship"
    ids, mask = tokenize(tokenizer, [sentence], N)
    assert [tokenizer.id_to_token(int(token)) for token in ids[0, :6]] == ["[CLS]", "the", "z", "##z", "##z", "ship"]
    assert np.flatnonzero(marker([sentence], mask)[0, 0]).tolist() == [3]
    together = tokenize(tokenizer, [sentence], N, marker)
    assert np.array_equal(together[2], marker([sentence], mask)) and np.array_equal(together[0], ids)


def test_the_names_of_classes():
    assert len(CLASS_NAMES["rrsisd"]) == 20 and "expressway service area" in CLASS_NAMES["rrsisd"]
    assert class_names("rrsisd", ["roof"]) == CLASS_NAMES["rrsisd"]
    assert class_names("refsegrs", [])[8] == "road marking" and "other" not in class_names("risbench", ["other"])
    assert class_names("refcoco", ["traffic light", "Person"]) == ("traffic light", "person")


@pytest.mark.parametrize("lacking", ["nltk", "punkt_tab", "averaged_perceptron_tagger_eng"])
def test_what_is_not_installed_is_one_line(nltk_data, lacking, monkeypatch, tmp_path):
    if lacking == "nltk":
        monkeypatch.setitem(sys.modules, "nltk", None)
    else:
        write_nltk_data(tmp_path, lacking)
        monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
        nltk.tokenize._get_punkt_tokenizer.cache_clear()
    with pytest.raises(UserError) as error:
        PhraseMarker(["ship"])
    assert "pip install nltk" in str(error.value) and "\n" not in str(error.value)
    assert "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng" in str(error.value)

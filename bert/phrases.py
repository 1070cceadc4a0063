"""Which words of a sentence name an object and which say where it is: FIANet's word masks (Lei et al., TGRS 2024).

nltk finds words and their parts of speech. It and its data are an optional installation, and are imported when the
first marker is made. Shapes: n sentences, N tokens.
"""
from collections.abc import Iterable, Sequence
from importlib import import_module

import numpy as np

from utils import UserError

INSTALLATION = "pip install nltk, then python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng"
# A phrase of place is a preposition, an article and an adjective if there are any, and a noun, an adjective or a verb
# in the past tense (the tagger takes "colored" for one). Each rule reads the words that the rules above it left over.
PLACE = r"""
PLACE: {<IN><DT>?<JJ.*>?<NN>}
       {<IN><DT>?<JJ.*>?<JJ>}
       {<IN><DT>?<JJ.*><VBD>}
"""


class PhraseMarker:
    """Marks the tokens of the words that name one of `class_names`, and of those that say where it is.

    Word w of a sentence marks token w + 1, after [CLS], as if each word were one token. This is the original program's
    rule; after a word of several pieces, the marks are on tokens before those of the words. Raises `UserError` without
    nltk or its data.
    """

    def __init__(self, class_names: Iterable[str]):
        self.class_names = tuple(class_names)
        try:
            nltk = import_module("nltk")
            self.words_of, self.tagger = nltk.word_tokenize, nltk.PerceptronTagger()   # `nltk.pos_tag` loads one a call
            self.words_of("a")
        except (ImportError, LookupError) as error:
            missing = "nltk" if isinstance(error, ImportError) else "nltk's data"
            raise UserError(f"this network reads phrases, which need {missing}, not found here: {INSTALLATION}"
                            ) from error
        self.grammar = nltk.RegexpParser(PLACE)

    def __call__(self, sentences: Sequence[str], token_mask: np.ndarray) -> np.ndarray:
        """Object and position masks of sentences with the token masks (n, N) of 0 and 1: (n, 2, N) int64.

        A sentence that names no class has no object token. One without a phrase of place has all its tokens as its
        position. Marks beyond the N tokens are left out.
        """
        tokens = token_mask.shape[1]
        marks = np.zeros((len(sentences), 2, tokens), dtype=np.int64)
        for mark, sentence, mask in zip(marks, sentences, token_mask, strict=True):
            words = self.words_of(sentence)
            for start, length in self.object_words(sentence, words):
                mark[0, start + 1:start + 1 + length] = 1
            places = self.place_words(words)
            for start, length in places:
                mark[1, start + 1:start + 1 + length] = 1
            if not places:
                mark[1] = mask
        return marks

    def object_words(self, sentence: str, words: list[str]) -> list[tuple[int, int]]:
        """(first word, how many) of each class name in the sentence, also within a longer word ('ships').

        A name is marked from the earliest word that contains the name's first word.
        """
        found = []
        for name in self.class_names:
            first, *rest = name.split()
            start = next((place for place, word in enumerate(words) if first in word), None)
            if name in sentence and start is not None:
                found.append((start, 1 + len(rest)))
        return found

    def place_words(self, words: list[str]) -> list[tuple[int, int]]:
        """(first word, how many) of each phrase of place; it is marked where its first word ('on') first occurs."""
        if not words:   # nltk would warn of an empty list
            return []
        chunks = self.grammar.parse(self.tagger.tag(words)).subtrees(lambda tree: tree.label() == "PLACE")
        phrases = [[word for word, _ in chunk] for chunk in chunks]
        return [(words.index(phrase[0]), len(phrase)) for phrase in phrases if "of" not in phrase]

"""Kinds of referring expressions, found by their words, and expressions without the words of a kind.

The lists hold words that RRSIS-D, RISBench and RefCOCO use often. The rules ignore grammar: they serve tables over
many sentences, where a few wrong decisions do not matter.
"""
import re

KINDS = ("relation", "position", "attribute", "plain")

# Words for the appearance of an object: colours, sizes, shapes and the like.
ATTRIBUTES = frozenset([
    "white", "black", "gray", "grey", "red", "orange", "yellow", "green", "blue", "brown", "purple", "pink", "beige",
    "tan", "golden", "silver", "dark", "light", "bright", "pale", "colored", "coloured", "striped", "colorful",
    "large", "big", "huge", "giant", "small", "little", "tiny", "medium", "long", "short", "tall", "wide", "narrow",
    "thin", "thick", "biggest", "largest", "smallest", "bigger", "larger", "smaller", "longest", "tallest", "round",
    "circular", "rectangular", "square", "oval", "curved", "straight", "triangular", "cylindrical", "semicircular",
    "frustum", "cone", "old", "young", "empty", "full", "half", "complete"])

# RRSIS-D's category names as its sentences spell them, where that does not follow from the name.
_CATEGORY_WORDS = {
    "baseballfield": "baseball field", "basketballcourt": "basketball court", "golffield": "golf field",
    "groundtrackfield": "ground track field", "storagetank": "storage tank", "tenniscourt": "tennis court",
    "trainstation": "train station"}

_PLACE = r"(?:left|right|top|bottom|upper|lower|middle|center|centre|central|corner|edge|north|south|east|west)"
_IMAGE = r"(?:the )?(?:image|picture|photo|scene|frame|screen)\b"
# "on the lower left of", "in the middle", "to the right-most side of", "left", "top-most"
_POSITION = re.compile(
    rf"\b(?:is |are )?(?:(?:located|situated) )?(?:(?:on|in|at|to|from|near|toward|towards) )?(?:the )?"
    rf"(?:(?:far|very|extreme|second|third|first) )*{_PLACE}(?:[- ]?most)?(?:[- ]{_PLACE})*(?:[- ]?most)?"
    rf"(?: (?:side|part|section|half|area|{_PLACE}))*(?: of {_IMAGE}|(?: of)?(?= |$))", re.IGNORECASE)
# Words that place the object by another one: "to the left of the ship", "above the bridge"
_RELATION = re.compile(
    rf"\b{_PLACE}(?: side| part| half)? of (?!{_IMAGE})"
    r"|\b(?:is )?(?:just |directly )?(?:above|below|beneath|under|underneath|beside|between|behind|near(?:est)?|"
    r"next to|in front of|adjacent to|close(?:st)? to|across from|alongside|surrounded by|opposite|facing|holding|"
    r"wearing|abutting)\b", re.IGNORECASE)


def words_of(sentence: str) -> list[str]:
    """The sentence's words in order, without punctuation at their ends."""
    return [word for word in (piece.strip(".,;:!?\"'()") for piece in sentence.split()) if word]


def kind_of(sentence: str) -> str:
    """The first of `KINDS` that the sentence uses, or 'plain' if it only names the object."""
    if _RELATION.search(sentence):
        return "relation"
    if _POSITION.search(sentence):
        return "position"
    return "attribute" if any(word.lower() in ATTRIBUTES for word in words_of(sentence)) else "plain"


def category_words(category: str) -> str:
    """A category's name as a sentence spells it: 'storagetank' -> 'storage tank'."""
    return _CATEGORY_WORDS.get(category, category.replace("-", " ").replace("_", " ").lower())


def without_positions(sentence: str) -> str:
    """The sentence without the words for places: 'The ship to the left of the harbor' -> 'The ship the harbor'."""
    return " ".join(_RELATION.sub(" ", _POSITION.sub(" ", sentence)).split())


def without_attributes(sentence: str) -> str:
    """The sentence without the words for appearance: 'The large gray ship' -> 'The ship'."""
    return " ".join(word for word in sentence.split() if word.strip(".,;:").lower() not in ATTRIBUTES)

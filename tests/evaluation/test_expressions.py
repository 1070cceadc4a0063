"""The attributes by which a sentence tells its object, and sentences without some of their words."""
from collections import Counter

import pytest

from data.toy.scenes import make_scene
from lib.evaluation.expressions import kind_of, without_attributes, without_positions, words_of


@pytest.mark.parametrize(("sentence", "kind"), [
    ("A bridge is on the upper right of the vehicle on the lower left", "relation"),
    ("The harbor is on the left of the ship", "relation"),
    ("The small airplane above the baseball field", "relation"),
    ("woman next to the car", "relation"),
    ("The ship on the far right", "position"),
    ("The bridge is located at the right of the image.", "position"),     # the image is no other thing
    ("The right-most tennis court", "position"),
    ("guy in red shirt left", "position"),
    ("The gray frustum of a cone large chimney", "attribute"),
    ("A rectangular basketball court", "attribute"),
    ("an airplane", "plain"),
    ("", "plain"),
])
def test_the_kind_is_the_first_that_the_sentence_uses(sentence, kind):
    assert kind_of(sentence) == kind


def test_the_toy_sets_own_kinds_are_found():
    expressions = [expression for index in range(100) for expression in make_scene(0, index).expressions]
    assert Counter(kind_of(expression.raw) == expression.kind for expression in expressions) == {True: 200}


@pytest.mark.parametrize(("sentence", "left"), [
    ("The ship on the far right", "The ship"),
    ("A red ship in the middle", "A red ship"),
    ("The vehicle to the right of the small airplane", "The vehicle the small airplane"),
    ("A expressway toll station is on the lower left of the vehicle on the top",
     "A expressway toll station the vehicle"),
    ("The bridge above the harbor", "The bridge the harbor"),
    ("The large ship", "The large ship"),
])
def test_words_of_place_are_taken_out(sentence, left):
    assert without_positions(sentence) == left


@pytest.mark.parametrize(("sentence", "left"), [
    ("The large gray ship on the left", "The ship on the left"),
    ("A Red, round tank", "A tank"),
    ("The ship", "The ship"),
])
def test_words_of_looks_are_taken_out(sentence, left):
    assert without_attributes(sentence) == left


def test_words_come_without_punctuation():
    assert words_of("The left-most harbor, in the scene.") == ["The", "left-most", "harbor", "in", "the", "scene"]

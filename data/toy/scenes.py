"""Scenes of the toy RRSIS-D before any pixel: objects, what may be said of them, and the sentences.

What the sentences mean: each is true of exactly one object. Every rule gives a score and has two thresholds:
the object meant scores at least `holds`, every other object of its category at most `excludes`. What lies
between is ambiguous, and such a sentence is not written. Distances are in image sides, between centres.
    attribute   Size and colour fit no other object of the category. Within a category, a large object is at
                least 1.6 times as long as a small one.
    position    The score is the distance from the image's centre towards the side named; for a corner, the
                smaller of the distances towards its two sides; for "in the middle", minus the larger of
                the horizontal and the vertical distance.
    relation    The score is the distance from the anchor in the direction named; for a diagonal, the smaller
                of the two. The anchor is of another category, and its description fits no other object.
"""
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Point = tuple[float, float]  # x to the right, y down
Colour = tuple[int, int, int]  # red, green, blue, 0-255

# ----------------------------------------------------------------------------------------------- the language

RRSISD_CATEGORIES = (  # a category's id is its place here
    "Expressway-Service-area", "Expressway-toll-station", "airplane", "airport", "baseballfield",
    "basketballcourt", "bridge", "chimney", "dam", "golffield", "groundtrackfield", "harbor", "overpass",
    "ship", "stadium", "storagetank", "tenniscourt", "trainstation", "vehicle", "windmill")
COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236), "gray": (138, 141, 146), "red": (190, 40, 38), "orange": (236, 128, 32),
    "yellow": (236, 208, 48), "green": (46, 140, 78), "blue": (44, 92, 190), "brown": (112, 68, 38)}
SIZES = {"small": (0.25, 0.27), "large": (0.42, 0.46)}  # length before `Category.stretch`


@dataclass(frozen=True)
class Category:
    """How the objects of one category look, and what they are called."""

    words: str  # as RRSIS-D's sentences spell it
    colours: tuple[str, ...]
    stretch: float  # factor on its length: compact shapes are drawn shorter
    clearance: float  # radius, in lengths, of the circle that nothing else enters
    shadow: float  # how far its shadow reaches, in lengths


CATEGORIES = {
    "airplane": Category("airplane", ("white", "gray", "red", "blue"), 1.05, 0.51, 0.10),
    "baseballfield": Category("baseball field", ("orange", "green", "brown"), 0.95, 0.51, 0.0),
    "chimney": Category("chimney", ("red", "white", "brown", "gray"), 1.0, 0.53, 0.5),
    "groundtrackfield": Category("ground track field", ("red", "orange", "blue"), 1.0, 0.51, 0.0),
    "ship": Category("ship", ("white", "red", "gray", "yellow"), 1.05, 0.60, 0.04),
    "storagetank": Category("storage tank", ("white", "gray", "red", "brown"), 0.8, 0.53, 0.14),
    "tenniscourt": Category("tennis court", ("blue", "green", "orange"), 0.92, 0.58, 0.0),
    "vehicle": Category("vehicle", ("red", "white", "blue", "yellow"), 1.0, 0.55, 0.07),
}


@dataclass(frozen=True)
class Direction:
    """A place or a relation, and the phrases that name it.

    The score of an offset (x, y) is the smaller of its components along `signs` (a sign of 0 leaves one out);
    if both signs are 0, it is minus the larger of |x| and |y|. The target's other component may be up to `slant`
    times as long as its score: a small `slant` keeps "right" from being said of an object at the lower right.
    """

    phrases: tuple[str, ...]
    signs: tuple[int, int]
    holds: float
    excludes: float
    slant: float = 100.0

    def score(self, offset: Point) -> float:
        along = [sign * part for sign, part in zip(self.signs, offset, strict=True) if sign]
        return min(along) if along else -max(map(abs, offset))

    def tells_apart(self, target: Point, rivals: Iterable[Point]) -> bool:
        """True if it clearly holds for the target's offset and clearly for no rival's."""
        score = self.score(target)
        other = abs(target[0]) + abs(target[1]) - abs(score)
        return (score >= self.holds and other <= self.slant * abs(score)
                and all(self.score(rival) <= self.excludes for rival in rivals))


SIDES = {"left": (-1, 0), "right": (1, 0)}
CORNERS = {"upper left": (-1, -1), "upper right": (1, -1), "lower left": (-1, 1), "lower right": (1, 1)}
POSITIONS = (
    *(Direction((f"on the {name}",), signs, 0.13, -0.05) for name, signs in SIDES.items()),
    *(Direction((f"on the far {name}",), signs, 0.23, 0.06) for name, signs in SIDES.items()),
    Direction(("at the top", "on the top"), (0, -1), 0.13, -0.05),
    Direction(("at the bottom", "on the bottom"), (0, 1), 0.13, -0.05),
    Direction(("in the middle",), (0, 0), -0.12, -0.22),
    *(Direction((f"on the {name}",), signs, 0.11, -0.05) for name, signs in CORNERS.items()),
)
RELATIONS = (
    *(Direction((f"to the {name} of", f"on the {name} of", f"is on the {name} of"), signs, 0.18, 0.04, 0.8)
      for name, signs in SIDES.items()),
    Direction(("above", "is above"), (0, -1), 0.18, 0.04, 0.8),
    Direction(("below", "is below"), (0, 1), 0.18, 0.04, 0.8),
    *(Direction((f"on the {name} of", f"is on the {name} of"), signs, 0.13, 0.03, 2.2)
      for name, signs in CORNERS.items()),
)
KINDS = ("attribute", "position", "relation")


def grammar_words() -> list[str]:
    """Every word that a sentence can hold, lower-cased, sorted."""
    phrases = [*COLOURS, *SIZES, "a", "an", "the", *(category.words for category in CATEGORIES.values())]
    phrases += [phrase for direction in (*POSITIONS, *RELATIONS) for phrase in direction.phrases]
    return sorted({word for phrase in phrases for word in phrase.split()})


# ------------------------------------------------------------------------------------------------ the ground


@dataclass(frozen=True)
class Ground:
    """A kind of ground: its tones, and the colours of objects that it would hide."""

    tones: tuple[Colour, Colour]  # darkest, lightest
    hides: tuple[str, ...]  # colours that would not stand out on it


GROUNDS = {
    "grass": Ground(((52, 84, 44), (104, 130, 72)), ("green",)),
    "soil": Ground(((104, 82, 62), (150, 122, 94)), ("brown",)),
    "sand": Ground(((166, 148, 114), (208, 192, 158)), ("yellow",)),
}
ROAD_WIDTHS = {"vehicle": 0.64}  # in lengths of the object on the road


# ---------------------------------------------------------------------------------- a scene and its sentences


@dataclass(frozen=True)
class Thing:
    """One object. Centre and length are in image sides; angle 0 points right, a positive one turns down."""

    category: str
    colour: str
    size: str
    centre: Point
    length: float
    angle_rad: float

    @property
    def radius(self) -> float:
        """The radius of the circle around it that no other object enters, in image sides."""
        return self.length * CATEGORIES[self.category].clearance


@dataclass(frozen=True)
class Expression:
    """A sentence and the object that it refers to."""

    kind: str  # one of KINDS
    target: int  # index of the thing meant
    raw: str  # the sentence, its first letter a capital


@dataclass(frozen=True)
class Scene:
    """What one image shows, and the sentences about it."""

    ground: str  # a key of GROUNDS
    things: tuple[Thing, ...]
    expressions: tuple[Expression, ...]  # two


@dataclass(frozen=True)
class Contents:
    """What a toy set's scenes hold, a row of `CONTENTS`."""

    layouts: tuple[tuple[int, ...], ...]     # the number of things of each category; all rows are equally likely
    sizes: dict[str, tuple[float, float]]    # shortest and longest length of each size, as in `SIZES`


CONTENTS = {
    "mixed": Contents(((2, 1), (2, 1), (2, 1), (2, 2)), SIZES),
    "roomy": Contents(((2, 1),), {"small": (0.285, 0.30), "large": (0.465, 0.50)}),
}


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def make_scene(seed: int, index: int, contents: str = "mixed") -> Scene:
    """The symbolic description of image `index`, before any pixel is drawn; `contents` is a key of `CONTENTS`."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 0)))
    kinds, layout = (pick(rng, KINDS), pick(rng, KINDS)), pick(rng, CONTENTS[contents].layouts)
    chosen = [list(CATEGORIES)[i] for i in rng.permutation(len(CATEGORIES))[:len(layout)]]
    categories = [name for name, count in zip(chosen, layout, strict=True) for _ in range(count)]
    while True:  # takes about ten tries; kinds and categories stay, so that rare ones keep their share
        ground = pick(rng, tuple(GROUNDS))
        things = place_things(rng, categories, GROUNDS[ground].hides, CONTENTS[contents].sizes)
        expressions = write_expressions(rng, things, kinds)
        if len(expressions) == len(kinds):
            return Scene(ground, tuple(things), tuple(expressions))


def place_things(rng: np.random.Generator, categories: Sequence[str], hidden: Sequence[str],
                 sizes: dict[str, tuple[float, float]]) -> list[Thing]:
    """Objects of these categories at random places, no two of one look, in visible colours; [] if they do not fit."""
    things: list[Thing] = []
    for category in categories:
        look, size = CATEGORIES[category], pick(rng, tuple(sizes))
        taken = [thing.colour for thing in things if thing.category == category]
        colour = pick(rng, [colour for colour in look.colours if colour not in (*hidden, *taken)])
        length = float(rng.uniform(*sizes[size])) * look.stretch
        for _ in range(25):
            x, y = rng.uniform(0.5 * length + 0.03, 0.97 - 0.5 * length, 2)
            angle_rad = float(rng.uniform(0, math.tau))
            thing = Thing(category, colour, size, (float(x), float(y)), length, angle_rad)
            if all(math.dist(thing.centre, t.centre) >= thing.radius + t.radius for t in things):
                things.append(thing)
                break
        else:
            return []
    return [aim(rng, thing, [t for t in things if t is not thing]) for thing in things]


def aim(rng: np.random.Generator, thing: Thing, others: Sequence[Thing]) -> Thing:
    """Turns a vehicle so that its road misses the other objects, if there is such a direction."""
    for angle_rad in rng.uniform(0, math.tau, 12 if thing.category in ROAD_WIDTHS else 0):
        aimed = replace(thing, angle_rad=float(angle_rad))
        if road_is_clear(aimed, others):
            return aimed
    return thing


def write_expressions(
        rng: np.random.Generator, things: Sequence[Thing], kinds: Sequence[str]) -> list[Expression]:
    """One expression of each of the `kinds`, each about a different object; fewer if the scene allows no more."""
    expressions: list[Expression] = []
    for kind in kinds:
        taken = {expression.target for expression in expressions}
        sentences = {i: sentences_of(kind, i, things) for i in range(len(things)) if i not in taken}
        targets = [i for i, found in sentences.items() if found]
        if not targets:
            break
        target = pick(rng, targets)
        sentence = pick(rng, sentences[target])
        article = pick(rng, ("The", "An" if sentence[0] in "aeiou" else "A"))
        expressions.append(Expression(kind, target, f"{article} {sentence}"))
    return expressions


def sentences_of(kind: str, index: int, things: Sequence[Thing]) -> list[str]:
    """The sentences of one kind, without article, that are clearly true of this object and of no other.

    There are none for the only object of its category, which needs no description.
    """
    target, rivals = things[index], rivals_of(index, things)
    noun = CATEGORIES[target.category].words
    if not rivals:
        return []
    if kind == "attribute":
        return names_of(index, things)
    if kind == "position":
        return [f"{noun} {phrase}" for phrase in phrases_from((0.5, 0.5), POSITIONS, target, rivals)]
    return [f"{noun} {phrase} the {name}"
            for i, anchor in enumerate(things) if anchor.category != target.category
            for phrase in phrases_from(anchor.centre, RELATIONS, target, rivals)
            for name in names_of(i, things)]


def phrases_from(
        origin: Point, directions: Sequence[Direction], target: Thing, rivals: Sequence[Thing]) -> list[str]:
    """The phrases that, seen from the origin, clearly fit the target and no rival."""
    def seen(thing: Thing) -> Point:
        return thing.centre[0] - origin[0], thing.centre[1] - origin[1]

    offsets = [seen(rival) for rival in rivals]
    return [phrase for d in directions if d.tells_apart(seen(target), offsets) for phrase in d.phrases]


def names_of(index: int, things: Sequence[Thing]) -> list[str]:
    """The category's words with the size and colour that fit this object alone, or bare if it has no rival."""
    thing, rivals, names = things[index], rivals_of(index, things), []
    for said in ((), ("size",), ("colour",), ("size", "colour")):
        if not any(all(getattr(rival, word) == getattr(thing, word) for word in said) for rival in rivals):
            adjectives = [getattr(thing, word) for word in said]
            names.append(" ".join([*adjectives, CATEGORIES[thing.category].words]))
    return names


def rivals_of(index: int, things: Sequence[Thing]) -> list[Thing]:
    """The other objects of the same category."""
    return [t for i, t in enumerate(things) if t.category == things[index].category and i != index]


def strip_is_clear(centre: Point, angle_rad: float, width: float, obstacles: Iterable[Thing]) -> bool:
    """True if an endless strip through the centre misses every obstacle's circle."""
    def distance(thing: Thing) -> float:
        x, y = thing.centre[0] - centre[0], thing.centre[1] - centre[1]
        return abs(y * math.cos(angle_rad) - x * math.sin(angle_rad))

    return all(distance(thing) >= thing.radius + width / 2 for thing in obstacles)


def road_is_clear(thing: Thing, others: Iterable[Thing]) -> bool:
    """Whether no other object stands on the road that passes under an object."""
    return strip_is_clear(thing.centre, thing.angle_rad, ROAD_WIDTHS[thing.category] * thing.length, others)

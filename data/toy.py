"""A toy RRSIS-D: procedural aerial scenes with sentences, in RRSIS-D's own layout and field names.

Data sheet
    Scenes      textured land (grass, soil or sand), roads and lakes; 3 or 4 objects that never touch.
    Categories  eight of RRSIS-D's twenty (`CATEGORIES`), each with a shape of its own and 3 or 4 colours.
    References  two per image, to two objects, each of a category that occurs at least twice in the scene, so
                that the category alone never tells which object is meant. One sentence per reference.
    Sentences   a third each: attribute ("The large gray storage tank"), position ("A ship on the lower
                left"), relation ("The vehicle to the right of the small airplane").
    Splits      by image: 80 % train, 10 % val, 10 % test.
    Format      `refs(unc).p`, `instances.json` (masks as compressed RLE), JPEG images; and a small BERT's
                config with a WordPiece vocabulary that holds every word.

What the sentences mean: each is true of exactly one object. Every rule gives a score and has two thresholds:
the object meant scores at least `holds`, every other object of its category at most `excludes`. What lies
between is ambiguous, and such a sentence is not written. Distances are in image sides, between centres.
    attribute   Size and colour fit no other object of the category. Within a category, a large object is at
                least 1.6 times as long as a small one.
    position    The score is the distance from the image's centre towards the side named; towards a corner,
                the lesser of two; for "in the middle", minus the greater of the distances across and down.
    relation    The score is the distance from the anchor in the direction named; in a diagonal one, the
                lesser of two. The anchor is of another category, and its description fits it alone.

The same seed gives the same bytes. Annotations do not depend on Pillow: pycocotools rasterises the masks.
"""

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from utils import UserError

Point = tuple[float, float]  # x to the right, y down
Polygon = list[Point]
Colour = tuple[int, int, int]  # red, green, blue, 0-255

# ----------------------------------------------------------------------------------------------- the language

RRSISD_CATEGORIES = (  # a category's id is its place here
    "Expressway-Service-area", "Expressway-toll-station", "airplane", "airport", "baseballfield",
    "basketballcourt", "bridge", "chimney", "dam", "golffield", "groundtrackfield", "harbor", "overpass",
    "ship", "stadium", "storagetank", "tenniscourt", "trainstation", "vehicle", "windmill")
COLOURS: dict[str, Colour] = {
    "white": (240, 240, 236), "gray": (138, 141, 146), "red": (190, 40, 38), "orange": (236, 128, 32),
    "yellow": (236, 208, 48), "green": (46, 140, 78), "blue": (44, 92, 190), "brown": (112, 68, 38)}
SIZES = {"small": (0.265, 0.285), "large": (0.45, 0.48)}  # length before `Category.stretch`


@dataclass(frozen=True)
class Category:
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

    The score of an offset (x, y) is the lesser of its components along `signs` (a 0 there leaves one out);
    if both signs are 0, minus the greater of |x| and |y|. The target's other component, the one that is not
    its score, may be up to `slant` times as long: with a small one, "right" is not said of the lower right.
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


def vocabulary() -> list[str]:
    """The WordPiece vocabulary: special tokens, letters and their continuations, the grammar's words."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [word for word in grammar_words() if word not in letters]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words]


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
        """Of the circle that nothing else enters, in image sides."""
        return self.length * CATEGORIES[self.category].clearance


@dataclass(frozen=True)
class Expression:
    kind: str  # one of KINDS
    target: int  # index of the thing meant
    raw: str  # the sentence, its first letter a capital


@dataclass(frozen=True)
class Scene:
    ground: str  # a key of GROUNDS
    things: tuple[Thing, ...]
    expressions: tuple[Expression, ...]  # two


LAYOUTS = ((2, 1), (2, 1), (2, 1), (2, 2))  # the number of things of each category


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def make_scene(seed: int, index: int) -> Scene:
    """The symbolic description of image `index`, before any pixel is drawn."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 0)))
    kinds, layout = (pick(rng, KINDS), pick(rng, KINDS)), pick(rng, LAYOUTS)
    chosen = [list(CATEGORIES)[i] for i in rng.permutation(len(CATEGORIES))[:len(layout)]]
    categories = [name for name, count in zip(chosen, layout, strict=True) for _ in range(count)]
    while True:  # some ten tries; kinds and categories stay, so that rare ones keep their share
        ground = pick(rng, tuple(GROUNDS))
        things = place_things(rng, categories, GROUNDS[ground].hides)
        expressions = write_expressions(rng, things, kinds)
        if len(expressions) == len(kinds):
            return Scene(ground, tuple(things), tuple(expressions))


def place_things(rng: np.random.Generator, categories: Sequence[str], hidden: Sequence[str]) -> list[Thing]:
    """Things of these categories at random places, in colours not hidden; none if they do not fit."""
    things: list[Thing] = []
    for category in categories:
        look, size = CATEGORIES[category], pick(rng, tuple(SIZES))
        colour = pick(rng, [colour for colour in look.colours if colour not in hidden])
        length = float(rng.uniform(*SIZES[size])) * look.stretch
        for _ in range(25):
            x, y = rng.uniform(0.5 * length + 0.05, 0.95 - 0.5 * length, 2)
            angle_rad = float(rng.uniform(0, math.tau))
            thing = Thing(category, colour, size, (float(x), float(y)), length, angle_rad)
            if all(math.dist(thing.centre, t.centre) >= thing.radius + t.radius for t in things):
                things.append(thing)
                break
        else:
            return []
    return [aim(rng, thing, [t for t in things if t is not thing]) for thing in things]


def aim(rng: np.random.Generator, thing: Thing, others: Sequence[Thing]) -> Thing:
    """Turns a vehicle so that its road misses the others, if that can be."""
    for angle_rad in rng.uniform(0, math.tau, 12 if thing.category in ROAD_WIDTHS else 0):
        aimed = replace(thing, angle_rad=float(angle_rad))
        if road_is_clear(aimed, others):
            return aimed
    return thing


def write_expressions(
        rng: np.random.Generator, things: Sequence[Thing], kinds: Sequence[str]) -> list[Expression]:
    """One expression of each kind, of different things; fewer if the scene does not offer them."""
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
    """The sentences of one kind, without article, that are clearly true of this thing and of no other.

    None for the only thing of its category: it needs no description.
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
    """The category's words with those of size and colour that fit this thing alone; bare without a rival."""
    thing, rivals, names = things[index], rivals_of(index, things), []
    for said in ((), ("size",), ("colour",), ("size", "colour")):
        if not any(all(getattr(rival, word) == getattr(thing, word) for word in said) for rival in rivals):
            adjectives = [getattr(thing, word) for word in said]
            names.append(" ".join([*adjectives, CATEGORIES[thing.category].words]))
    return names


def rivals_of(index: int, things: Sequence[Thing]) -> list[Thing]:
    """The other things of the same category."""
    return [t for i, t in enumerate(things) if t.category == things[index].category and i != index]


# --------------------------------------------------------------------------------------------------- polygons


def box(x: float, y: float, length: float, width: float) -> Polygon:
    return [(x + i * length / 2, y + j * width / 2) for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))]


def disc(x: float, y: float, radius: float) -> Polygon:
    angles = [k * math.tau / 32 for k in range(32)]
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def capsule(length: float, width: float) -> Polygon:
    """A rectangle with a half disc at either end."""
    radius, reach = width / 2, (length - width) / 2
    angles = [(k / 12 - 1) * math.pi / 2 for k in range(25)]
    half = [(reach + radius * math.cos(a), radius * math.sin(a)) for a in angles]
    return [*half, *((-x, -y) for x, y in half)]


def mirrored(*points: Point) -> Polygon:
    """The polygon through the points and, backwards, through their mirror images in the x axis."""
    return [*points, *((x, -y) for x, y in reversed(points) if y)]


def moved(polygon: Polygon, centre: Point = (0, 0), angle_rad: float = 0, scale: float = 1) -> Polygon:
    """The polygon, scaled and turned about the origin, which then moves to the centre."""
    cos, sin = scale * math.cos(angle_rad), scale * math.sin(angle_rad)
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in polygon]


# ----------------------------------------------------------------------------------------------------- shapes
# In a thing's own frame: length 1, centre (0, 0), x ahead. A shape is its silhouette, which is filled with
# the colour and becomes the mask, and the details then painted on it, within the silhouette.

Shape = tuple[list[Polygon], list[tuple[Polygon, Colour]]]
LIGHT, DARK, GLASS, GRASS, CLAY = (244, 244, 240), (40, 42, 46), (44, 58, 76), (84, 140, 66), (214, 186, 140)


def dim(colour: Colour, factor: float) -> Colour:
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue


def airplane(colour: Colour) -> Shape:
    body = mirrored((0.5, 0), (0.45, 0.07), (0.3, 0.1), (-0.3, 0.09), (-0.5, 0.04))
    wings = mirrored((0.22, 0), (0.16, 0.08), (-0.08, 0.48), (-0.24, 0.48), (-0.12, 0.06), (-0.12, 0))
    tail = mirrored((-0.28, 0), (-0.32, 0.06), (-0.42, 0.22), (-0.5, 0.22), (-0.47, 0))
    engines = [(box(0.06, y, 0.1, 0.06), dim(colour, 0.5)) for y in (-0.2, 0.2)]
    return [body, wings, tail], [*engines, (box(-0.05, 0, 0.72, 0.03), dim(colour, 0.75)),
                                 (disc(0.41, 0, 0.04), GLASS)]


def baseballfield(colour: Colour) -> Shape:
    angles = [(k / 8 - 1) * math.pi / 4 for k in range(17)]
    fan = [(-0.36, 0.0), *((0.72 * math.cos(a) - 0.36, 0.72 * math.sin(a)) for a in angles)]
    diamond = mirrored((-0.32, 0), (-0.11, 0.19), (0.1, 0))
    lines = [moved(box(0.35, 0, 0.62, 0.025), (-0.34, 0), sign * math.pi / 4.4) for sign in (-1, 1)]
    inner = moved(diamond, (-0.05, 0), scale=0.55)
    return [fan], [*((line, LIGHT) for line in lines), (diamond, CLAY), (inner, dim(colour, 0.85)),
                   (disc(-0.11, 0, 0.035), LIGHT)]


def chimney(colour: Colour) -> Shape:
    tower = mirrored((-0.3, 0.2), (0.36, 0.14))
    side = [(-0.3, 0.2), (0.36, 0.14), (0.36, 0.07), (-0.3, 0.1)]
    bands = [mirrored((-0.14, 0.185), (-0.02, 0.174)), mirrored((0.1, 0.163), (0.22, 0.152))]
    details = [*((band, dim(colour, 0.65)) for band in bands), (side, dim(colour, 0.75))]
    return [tower, disc(-0.3, 0, 0.2), disc(0.36, 0, 0.14)], [*details, (disc(0.36, 0, 0.09), DARK)]


def groundtrackfield(colour: Colour) -> Shape:
    return [capsule(1, 0.62)], [
        (capsule(0.9, 0.52), LIGHT), (capsule(0.875, 0.495), colour), (capsule(0.72, 0.34), GRASS),
        (box(0, 0, 0.02, 0.33), LIGHT), (disc(0, 0, 0.07), LIGHT), (disc(0, 0, 0.05), GRASS)]


def ship(colour: Colour) -> Shape:
    hull = mirrored((0.5, 0), (0.38, 0.11), (0.2, 0.19), (-0.44, 0.19), (-0.5, 0.13))
    deck = mirrored((0.4, 0), (0.3, 0.09), (0.16, 0.14), (-0.42, 0.14))
    hatches = [(box(x, 0, 0.1, 0.12), dim(colour, 0.55)) for x in (0.2, 0.03, -0.14)]
    return [hull], [(deck, dim(colour, 0.92)), *hatches, (box(-0.33, 0, 0.1, 0.22), LIGHT),
                    (box(-0.33, 0, 0.05, 0.1), DARK)]


def storagetank(colour: Colour) -> Shape:
    seams = [moved(box(0, 0, 0.84, 0.02), angle_rad=k * math.pi / 3) for k in range(3)]
    return [disc(0, 0, 0.5)], [(disc(0, 0, 0.43), dim(colour, 0.72)), (disc(0, 0, 0.4), colour),
                               *((seam, dim(colour, 0.8)) for seam in seams), (disc(0, 0, 0.07), DARK)]


def tenniscourt(colour: Colour) -> Shape:
    lines = [box(0, 0.13, 0.78, 0.02), box(0, -0.13, 0.78, 0.02), box(0, 0, 0.4, 0.02),
             box(0.2, 0, 0.02, 0.26), box(-0.2, 0, 0.02, 0.26)]
    return [box(0, 0, 1, 0.6)], [(box(0, 0, 0.8, 0.42), LIGHT), (box(0, 0, 0.76, 0.38), dim(colour, 0.8)),
                                 *((line, LIGHT) for line in lines), (box(0, 0, 0.03, 0.46), DARK)]


def vehicle(colour: Colour) -> Shape:
    body = mirrored((0.5, 0.17), (0.45, 0.24), (-0.45, 0.25), (-0.5, 0.21))
    panes = [mirrored((0.25, 0.21), (0.11, 0.17)), mirrored((-0.37, 0.2), (-0.28, 0.165))]
    return [body], [*((pane, GLASS) for pane in panes), (box(-0.085, 0, 0.3, 0.32), dim(colour, 0.88)),
                    *((box(0.46, y, 0.04, 0.07), LIGHT) for y in (-0.15, 0.15))]


SHAPES: dict[str, Callable[[Colour], Shape]] = {
    "airplane": airplane, "baseballfield": baseballfield, "chimney": chimney,
    "groundtrackfield": groundtrackfield, "ship": ship, "storagetank": storagetank,
    "tenniscourt": tenniscourt, "vehicle": vehicle}


def shape_of(thing: Thing) -> Shape:
    """The thing's silhouette and details, in image sides."""
    silhouette, details = SHAPES[thing.category](COLOURS[thing.colour])
    where = thing.centre, thing.angle_rad, thing.length
    placed = [(moved(part, *where), paint) for part, paint in details]
    return [moved(part, *where) for part in silhouette], placed


def mask_rle(thing: Thing, size: int) -> dict:
    """The thing's silhouette in an image of size x size pixels, as a compressed RLE {size, counts: str}."""
    parts = [[size * value for point in part for value in point] for part in shape_of(thing)[0]]
    rle = coco_mask.merge(coco_mask.frPyObjects(parts, size, size))
    return {"size": [size, size], "counts": rle["counts"].decode("ascii")}


# --------------------------------------------------------------------------------------------- land and water


@dataclass(frozen=True)
class Ground:
    tones: tuple[Colour, Colour]  # darkest, lightest
    hides: tuple[str, ...]  # colours that would not stand out on it


GROUNDS = {
    "grass": Ground(((52, 84, 44), (104, 130, 72)), ("green",)),
    "soil": Ground(((104, 82, 62), (150, 122, 94)), ("brown",)),
    "sand": Ground(((166, 148, 114), (208, 192, 158)), ("yellow",)),
}
WATER_TONES, ASPHALT_TONES = ((24, 62, 84), (52, 100, 118)), ((66, 67, 70), (92, 92, 94))
ROAD_WIDTHS = {"vehicle": 0.64}  # in lengths of what stands on the road
BEYOND = 3.0  # image sides: a strip this long leaves the image at both ends


def strip_is_clear(centre: Point, angle_rad: float, width: float, obstacles: Iterable[Thing]) -> bool:
    """True if an endless strip through the centre misses every obstacle's circle."""
    def distance(thing: Thing) -> float:
        x, y = thing.centre[0] - centre[0], thing.centre[1] - centre[1]
        return abs(y * math.cos(angle_rad) - x * math.sin(angle_rad))

    return all(distance(thing) >= thing.radius + width / 2 for thing in obstacles)


def road_is_clear(thing: Thing, others: Iterable[Thing]) -> bool:
    return strip_is_clear(thing.centre, thing.angle_rad, ROAD_WIDTHS[thing.category] * thing.length, others)


def lake(rng: np.random.Generator, centre: Point, radius: float) -> Polygon:
    """A wavy outline between 0.85 of the radius and the radius."""
    phases, angles = rng.uniform(0, math.tau, 2), [k * math.tau / 48 for k in range(48)]
    waves = [0.925 + 0.045 * math.sin(2 * a + phases[0]) + 0.03 * math.sin(5 * a + phases[1]) for a in angles]
    return [(centre[0] + radius * wave * math.cos(a), centre[1] + radius * wave * math.sin(a))
            for a, wave in zip(angles, waves, strict=True)]


def lay_roads_and_water(
        rng: np.random.Generator, things: Sequence[Thing]) -> tuple[list[Polygon], list[Polygon]]:
    """The outlines, in image sides, of asphalt and of water. Both keep off whatever does not belong there."""
    asphalt, water = [], []
    for thing in things:
        others = [other for other in things if other is not thing]
        if thing.category in ROAD_WIDTHS:
            length = BEYOND if road_is_clear(thing, others) else 2 * thing.radius
            road = box(0, 0, length, ROAD_WIDTHS[thing.category] * thing.length)
            asphalt.append(moved(road, thing.centre, thing.angle_rad))
        if thing.category == "ship":
            water.append(lake(rng, thing.centre, thing.radius))
    for _ in range(0 if asphalt else 20):  # a road, or else a lake, where there is room
        x, y, angle_rad, radius = rng.uniform((0, 0, 0, 0.08), (1, 1, math.pi, 0.15))
        if strip_is_clear((x, y), angle_rad, 0.07, things):
            return [moved(box(0, 0, BEYOND, 0.07), (x, y), angle_rad)], water
        if all(math.dist((x, y), thing.centre) >= radius + thing.radius for thing in things):
            return asphalt, [*water, lake(rng, (x, y), radius)]
    return asphalt, water


# ----------------------------------------------------------------------------------------------------- pixels

SUPERSAMPLING = 3


def noise(rng: np.random.Generator, size: int, cells: Sequence[int]) -> np.ndarray:
    """Smooth noise (size, size) float32 in 0..1: random grids of so many cells a side, later ones weaker."""
    field = np.zeros((size, size), np.float32)
    for octave, count in enumerate(cells):
        grid = Image.fromarray(rng.random((count, count), np.float32))
        field += 0.65**octave * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return (field - field.min()) / np.ptp(field)


def texture(
        rng: np.random.Generator, size: int, tones: tuple[Colour, Colour], cells: Sequence[int]
) -> Image.Image:
    """An RGB image of the supersampled size whose colours wander between the two tones."""
    dark, light = np.array(tones, np.float32)
    image = Image.fromarray((dark + (light - dark) * noise(rng, size, cells)[..., None]).astype(np.uint8))
    return image.resize((size * SUPERSAMPLING, size * SUPERSAMPLING), Image.Resampling.BILINEAR)


def stencil(polygons: Iterable[Polygon], side: int) -> Image.Image:
    """A black image (mode L, side x side) in which the polygons, in image sides, are white."""
    image = Image.new("L", (side, side))
    for polygon in polygons:
        ImageDraw.Draw(image).polygon(moved(polygon, scale=side), fill=255)
    return image


def shadows_of(things: Iterable[Thing], sun_rad: float) -> list[Polygon]:
    """The silhouettes swept away from the sun, as far as each category is high."""
    shadows = []
    for thing in things:
        reach, (silhouette, _) = CATEGORIES[thing.category].shadow * thing.length, shape_of(thing)
        for way in [reach * step / 6 for step in range(1, 7)] if reach else ():
            shift = way * math.cos(sun_rad), way * math.sin(sun_rad)
            shadows += [moved(part, shift) for part in silhouette]
    return shadows


def draw_scene(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB image of size x size pixels."""
    side = size * SUPERSAMPLING
    canvas = texture(rng, size, GROUNDS[scene.ground].tones, (4, 9, 20, 48))
    asphalt, water = lay_roads_and_water(rng, scene.things)
    for polygons, tones, cells in ((asphalt, ASPHALT_TONES, (6, 40)), (water, WATER_TONES, (3, 24))):
        if polygons:
            canvas.paste(texture(rng, size, tones, cells), mask=stencil(polygons, side))
    shadows = shadows_of(scene.things, float(rng.uniform(0, math.tau)))
    canvas.paste(canvas.point(lambda value: value * 0.45), mask=stencil(shadows, side))
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        silhouette, details = shape_of(thing)
        for part, paint in [*((part, COLOURS[thing.colour]) for part in silhouette), *details]:
            pen.polygon(moved(part, scale=side), fill=paint)
    pixels = np.asarray(canvas.reduce(SUPERSAMPLING), np.float32)
    light = 0.9 + 0.18 * noise(rng, size, (3, 7, 31))[..., None]
    grain = rng.normal(0, 4, (size, size, 1))
    return Image.fromarray((pixels * light + grain).clip(0, 255).astype(np.uint8))


# ------------------------------------------------------------------------------------------------------ files

MARKER = "toy_rrsisd.json"  # tells a toy set from anything else, so that nothing else is ever replaced
FILES = {MARKER, "rrsisd/refs(unc).p", "rrsisd/instances.json", "bert/config.json", "bert/vocab.txt",
         "bert/tokenizer_config.json"}
IMAGE_FOLDER = "images/rrsisd/JPEGImages"


def make_toy_rrsisd(out_dir: str | os.PathLike, images: int = 1000, size: int = 128, seed: int = 0) -> None:
    """Writes a toy set of `images` images of size x size pixels into the folder `out_dir`.

    It serves as `--refer_data_root OUT --dataset rrsisd --ck_bert OUT/bert --bert_tokenizer OUT/bert`. It is
    written beside `out_dir` and moved there when complete; an older toy set there is replaced. Raises
    UserError for impossible numbers, or if `out_dir` holds anything other than a toy set.
    """
    for name, value, least in (("images", images, 10), ("size", size, 64), ("seed", seed, 0)):
        if value < least:
            raise UserError(f"A toy set with {name} {value} is impossible: give --{name} at least {least}.")
    out = Path(out_dir).resolve()
    refuse_unless_free(out)
    partial, old = (out.with_name(f".{out.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        (partial / IMAGE_FOLDER).mkdir(parents=True)
        write_images_and_annotations(partial, images, size, seed)
        write_text_encoder(partial / "bert")
        write_json(partial / MARKER, {"images": images, "size": size, "seed": seed})
        if out.exists():
            out.rename(old)
        partial.rename(out)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def refuse_unless_free(out: Path) -> None:
    """Raises UserError unless `out` is absent, an empty folder, or a toy set and nothing else."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: give --out the name of a folder.")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    foreign = [name for name in found - FILES if not name.startswith(f"{IMAGE_FOLDER}/")]
    if found and (foreign or MARKER not in found):
        raise UserError(f"{out} is not empty and not just a toy set (found {min(foreign or found)}): "
                        "give --out another folder, or empty this one.")


def write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def write_images_and_annotations(root: Path, images: int, size: int, seed: int) -> None:
    """Writes the images, `refs(unc).p` and `instances.json` below `root`, field by field as in RRSIS-D."""
    splits = draw_splits(images, seed)
    refs, image_entries, annotations = [], [], []
    for index in range(images):
        image_id, file_name = index + 1, f"{index + 1:05d}.jpg"
        scene = make_scene(seed, index)
        pixel_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
        draw_scene(scene, size, pixel_rng).save(root / IMAGE_FOLDER / file_name, quality=95, subsampling=0)
        image_entries.append({"id": image_id, "file_name": file_name, "height": size, "width": size})
        for expression in scene.expressions:
            thing, number, sent = scene.things[expression.target], len(refs), expression.raw.lower()
            category_id, rle = RRSISD_CATEGORIES.index(thing.category), mask_rle(thing, size)
            x, y, width, height = (int(value) for value in coco_mask.toBbox(rle))
            annotations.append({
                "id": number, "image_id": image_id, "categories_id": category_id, "segmentation": [rle],
                "bbox": [x, y, x + width, y + height], "area": int(coco_mask.area(rle))})
            refs.append({
                "ref_id": number, "ann_id": number, "image_id": image_id, "category_id": category_id,
                "file_name": file_name, "split": splits[index], "sent_ids": [number],
                "sentences": [
                    {"raw": expression.raw, "sent": sent, "tokens": sent.split(), "sent_id": number}]})
    instances = {"images": image_entries, "annotations": annotations, "categories": [
        {"id": i, "name": name, "supercategory": "rrsisd"} for i, name in enumerate(RRSISD_CATEGORIES)]}
    (root / "rrsisd").mkdir()
    (root / "rrsisd/refs(unc).p").write_bytes(pickle.dumps(refs, protocol=4))
    write_json(root / "rrsisd/instances.json", instances, indent=None)


def draw_splits(images: int, seed: int) -> list[str]:
    """Each image's split: a tenth val, a tenth test, the rest train."""
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(images)
    tenth = images // 10
    return ["val" if place < tenth else "test" if place < 2 * tenth else "train" for place in order]


def write_text_encoder(folder: Path) -> None:
    """Writes a small BERT's config and tokenizer. It has no weights: they are trained from scratch."""
    folder.mkdir()
    words = vocabulary()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    write_json(folder / "config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "vocab_size": len(words), "hidden_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256, "hidden_act": "gelu",
        "max_position_embeddings": 64, "type_vocab_size": 2, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
        "pad_token_id": 0})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64,
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]"})

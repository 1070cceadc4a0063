"""Scenes of the toy RRSIS-D as pixels: shapes and masks, land and water, light and shadow."""
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from data.toy.scenes import (
    CATEGORIES,
    COLOURS,
    GROUNDS,
    ROAD_WIDTHS,
    Colour,
    Point,
    Scene,
    Thing,
    road_is_clear,
    strip_is_clear,
)

Polygon = list[Point]

# --------------------------------------------------------------------------------------------------- polygons


def box(x: float, y: float, length: float, width: float) -> Polygon:
    """A rectangle around (x, y), its length along x and its width along y."""
    return [(x + i * length / 2, y + j * width / 2) for i, j in ((1, 1), (-1, 1), (-1, -1), (1, -1))]


def disc(x: float, y: float, radius: float) -> Polygon:
    """A disc around (x, y), as a polygon of 32 corners."""
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
# Shapes are in a thing's own frame: length 1, centre (0, 0), x ahead. A shape has a silhouette, which is filled
# with the colour and becomes the mask, and details, which are then painted within the silhouette.

Shape = tuple[list[Polygon], list[tuple[Polygon, Colour]]]
LIGHT, DARK, GLASS, GRASS, CLAY = (244, 244, 240), (40, 42, 46), (44, 58, 76), (84, 140, 66), (214, 186, 140)


def dim(colour: Colour, factor: float) -> Colour:
    """The colour with each channel multiplied by a factor of at most 1."""
    red, green, blue = (round(channel * factor) for channel in colour)
    return red, green, blue


def airplane(colour: Colour) -> Shape:
    """Body, wings and tail, with two engines, a line along the body and a cockpit."""
    body = mirrored((0.5, 0), (0.45, 0.07), (0.3, 0.1), (-0.3, 0.09), (-0.5, 0.04))
    wings = mirrored((0.22, 0), (0.16, 0.08), (-0.08, 0.48), (-0.24, 0.48), (-0.12, 0.06), (-0.12, 0))
    tail = mirrored((-0.28, 0), (-0.32, 0.06), (-0.42, 0.22), (-0.5, 0.22), (-0.47, 0))
    engines = [(box(0.06, y, 0.1, 0.06), dim(colour, 0.5)) for y in (-0.2, 0.2)]
    return [body, wings, tail], [*engines, (box(-0.05, 0, 0.72, 0.03), dim(colour, 0.75)),
                                 (disc(0.41, 0, 0.04), GLASS)]


def baseballfield(colour: Colour) -> Shape:
    """A fan of a quarter circle with its two lines, the diamond and the mound."""
    angles = [(k / 8 - 1) * math.pi / 4 for k in range(17)]
    fan = [(-0.36, 0.0), *((0.72 * math.cos(a) - 0.36, 0.72 * math.sin(a)) for a in angles)]
    diamond = mirrored((-0.32, 0), (-0.11, 0.19), (0.1, 0))
    lines = [moved(box(0.35, 0, 0.62, 0.025), (-0.34, 0), sign * math.pi / 4.4) for sign in (-1, 1)]
    inner = moved(diamond, (-0.05, 0), scale=0.55)
    return [fan], [*((line, LIGHT) for line in lines), (diamond, CLAY), (inner, dim(colour, 0.85)),
                   (disc(-0.11, 0, 0.035), LIGHT)]


def chimney(colour: Colour) -> Shape:
    """A tower seen obliquely, narrower towards its top, with a shaded side and two bands."""
    tower = mirrored((-0.3, 0.2), (0.36, 0.14))
    side = [(-0.3, 0.2), (0.36, 0.14), (0.36, 0.07), (-0.3, 0.1)]
    bands = [mirrored((-0.14, 0.185), (-0.02, 0.174)), mirrored((0.1, 0.163), (0.22, 0.152))]
    details = [*((band, dim(colour, 0.65)) for band in bands), (side, dim(colour, 0.75))]
    return [tower, disc(-0.3, 0, 0.2), disc(0.36, 0, 0.14)], [*details, (disc(0.36, 0, 0.09), DARK)]


def groundtrackfield(colour: Colour) -> Shape:
    """A running track with its edge line, around a field of grass with its middle line and circle."""
    return [capsule(1, 0.62)], [
        (capsule(0.9, 0.52), LIGHT), (capsule(0.875, 0.495), colour), (capsule(0.72, 0.34), GRASS),
        (box(0, 0, 0.02, 0.33), LIGHT), (disc(0, 0, 0.07), LIGHT), (disc(0, 0, 0.05), GRASS)]


def ship(colour: Colour) -> Shape:
    """A hull with a pointed bow, its deck, three hatches and a bridge."""
    hull = mirrored((0.5, 0), (0.38, 0.11), (0.2, 0.19), (-0.44, 0.19), (-0.5, 0.13))
    deck = mirrored((0.4, 0), (0.3, 0.09), (0.16, 0.14), (-0.42, 0.14))
    hatches = [(box(x, 0, 0.1, 0.12), dim(colour, 0.55)) for x in (0.2, 0.03, -0.14)]
    return [hull], [(deck, dim(colour, 0.92)), *hatches, (box(-0.33, 0, 0.1, 0.22), LIGHT),
                    (box(-0.33, 0, 0.05, 0.1), DARK)]


def storagetank(colour: Colour) -> Shape:
    """A round tank with its rim, the seams of its roof and a vent."""
    seams = [moved(box(0, 0, 0.84, 0.02), angle_rad=k * math.pi / 3) for k in range(3)]
    return [disc(0, 0, 0.5)], [(disc(0, 0, 0.43), dim(colour, 0.72)), (disc(0, 0, 0.4), colour),
                               *((seam, dim(colour, 0.8)) for seam in seams), (disc(0, 0, 0.07), DARK)]


def tenniscourt(colour: Colour) -> Shape:
    """A court with its lines and its net."""
    lines = [box(0, 0.13, 0.78, 0.02), box(0, -0.13, 0.78, 0.02), box(0, 0, 0.4, 0.02),
             box(0.2, 0, 0.02, 0.26), box(-0.2, 0, 0.02, 0.26)]
    return [box(0, 0, 1, 0.6)], [(box(0, 0, 0.8, 0.42), LIGHT), (box(0, 0, 0.76, 0.38), dim(colour, 0.8)),
                                 *((line, LIGHT) for line in lines), (box(0, 0, 0.03, 0.46), DARK)]


def vehicle(colour: Colour) -> Shape:
    """A car with its two windscreens, its roof and its headlights."""
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


def mask_polygons(thing: Thing, size: int) -> list[list[float]]:
    """The parts of the thing's silhouette in an image of size x size pixels, as COCO's polygons [x1, y1, x2, …]."""
    return [[size * value for point in part for value in point] for part in shape_of(thing)[0]]


def mask_rle(thing: Thing, size: int) -> dict:
    """The thing's silhouette in an image of size x size pixels, as a compressed RLE {size, counts: str}."""
    rle = coco_mask.merge(coco_mask.frPyObjects(mask_polygons(thing, size), size, size))
    return {"size": [size, size], "counts": rle["counts"].decode("ascii")}


# --------------------------------------------------------------------------------------------- land and water

WATER_TONES, ASPHALT_TONES = ((24, 62, 84), (52, 100, 118)), ((66, 67, 70), (92, 92, 94))
BEYOND = 3.0  # image sides: a strip this long leaves the image at both ends


def lake(rng: np.random.Generator, centre: Point, radius: float) -> Polygon:
    """A wavy outline between 0.85 of the radius and the radius."""
    phases, angles = rng.uniform(0, math.tau, 2), [k * math.tau / 48 for k in range(48)]
    waves = [0.925 + 0.045 * math.sin(2 * a + phases[0]) + 0.03 * math.sin(5 * a + phases[1]) for a in angles]
    return [(centre[0] + radius * wave * math.cos(a), centre[1] + radius * wave * math.sin(a))
            for a, wave in zip(angles, waves, strict=True)]


def lay_roads_and_water(
        rng: np.random.Generator, things: Sequence[Thing]) -> tuple[list[Polygon], list[Polygon]]:
    """The outlines, in image sides, of asphalt and of water. Neither touches objects that do not belong there."""
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
    """Smooth noise (size, size) float32 in 0..1: a sum of random grids of `cells` per side, later ones weaker."""
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
    """The silhouettes swept away from the sun, farther for higher categories."""
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

"""The toy data set: deterministic, in RRSIS-D's layout, every sentence true of one object and of no other."""

import hashlib
import importlib.util
import json
import pickle
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data.toy import drawing, layouts, writer
from data.toy import scenes as toy_scenes
from tests.launch import ROOT
from utils import UserError

TOOL = ROOT / "tools/make_toy_rrsisd.py"
SIZE, IMAGES, SEED = 128, 40, 7
NAMES = {category.words: name for name, category in toy_scenes.CATEGORIES.items()}


@pytest.fixture(scope="module")
def toy_set(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "set"
    writer.make_toy_rrsisd(out, images=IMAGES, size=SIZE, seed=SEED)
    return out


@pytest.fixture(scope="module")
def scenes():
    """Symbolic scenes, more of them than are drawn; the first are those of `toy_set`."""
    return [toy_scenes.make_scene(SEED, index) for index in range(200)]


@pytest.fixture(scope="module", params=toy_scenes.CONTENTS)
def any_scenes(request):
    """As many scenes of each row of `CONTENTS`."""
    return [toy_scenes.make_scene(SEED, index, request.param) for index in range(200)]


def read(folder):
    refs = pickle.loads((folder / "rrsisd/refs(unc).p").read_bytes())
    return refs, json.loads((folder / "rrsisd/instances.json").read_text())


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def mask_of(thing, size=SIZE):
    return coco_mask.decode(drawing.mask_rle(thing, size)).astype(bool)


# ----------------------------------------------------------------------------------------------- determinism


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Runs tools/make_toy_rrsisd.py with command-line arguments; returns exit status, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("make_toy_rrsisd", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", [str(TOOL), *map(str, arguments)])
        status = 0
        try:
            tool.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_same_seed_same_bytes(tmp_path, run_tool):
    writer.make_toy_rrsisd(tmp_path / "a", images=12, size=64, seed=3)
    status, out, err = run_tool("--out", tmp_path / "b", "--images", 12, "--size", 64, "--seed", 3)
    assert (status, err) == (0, "")
    assert "12 images" in out
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert first == second
    assert len(first) == 12 + len(writer.FILES)
    writer.make_toy_rrsisd(tmp_path / "a", images=12, size=64, seed=4)
    other = contents(tmp_path / "a")
    assert {name for name in first if first[name] == other[name]} == {
        "bert/config.json", "bert/vocab.txt", "bert/tokenizer_config.json"}


def test_contents_change_the_scenes_and_are_recorded(tmp_path, run_tool):
    writer.make_toy_rrsisd(tmp_path / "mixed", images=10, size=64)
    assert run_tool("--out", tmp_path / "roomy", "--images", 10, "--size", 64, "--contents", "roomy")[0] == 0
    first, second = contents(tmp_path / "mixed"), contents(tmp_path / "roomy")
    assert json.loads(second.pop(writer.MARKER)) == {**json.loads(first.pop(writer.MARKER)), "contents": "roomy"}
    assert {name for name in first if first[name] == second[name]} == {
        "bert/config.json", "bert/vocab.txt", "bert/tokenizer_config.json"}


def test_a_preview_is_a_sheet_of_refs(tmp_path, run_tool):
    flags = ("--images", 10, "--size", 64)
    status, out, err = run_tool("--out", tmp_path / "set", *flags, "--preview", tmp_path / "look/first.png")
    assert (status, err) == (0, "") and f"16 of its refs with their masks: {tmp_path}/look/first.png\n" in out
    with Image.open(tmp_path / "look/first.png") as sheet:
        assert sheet.width > 4 * 2 * 192 and 4 * 192 < sheet.height < 6 * 192   # four a row, four rows, and text
    run_tool("--out", tmp_path / "again", *flags, "--preview", tmp_path / "look/second.png")
    first, second = contents(tmp_path / "look").values()
    assert first == second and contents(tmp_path / "again") == contents(tmp_path / "set")


def test_annotations_are_frozen(toy_set):
    """A change of these digests changes every user's toy set, so it must be deliberate and stated."""
    content = json.dumps(read(toy_set), sort_keys=True).encode()
    assert hashlib.sha256(content).hexdigest() == (
        "73614142b28a9e178142264aab45bef6a023fb0172a9b5361973d3410336c339")


def test_images_do_not_depend_on_how_many_are_made(toy_set, tmp_path):
    writer.make_toy_rrsisd(tmp_path / "few", images=10, size=SIZE, seed=SEED)
    few, many = contents(tmp_path / "few"), contents(toy_set)
    names = [name for name in few if name.endswith(".jpg") or name.startswith("bert/")]
    assert len(names) == 13
    assert all(few[name] == many[name] for name in names)


# ---------------------------------------------------------------------------------------------------- layout


def test_layout_is_that_of_rrsisd(toy_set):
    refs, instances = read(toy_set)
    assert type(refs) is list
    assert list(refs[0]) == ["ref_id", "ann_id", "image_id", "category_id", "file_name", "split", "sent_ids",
                             "sentences"]
    assert list(refs[0]["sentences"][0]) == ["raw", "sent", "tokens", "sent_id"]
    assert list(instances) == ["images", "annotations", "categories"]
    assert list(instances["images"][0]) == ["id", "file_name", "height", "width"]
    assert list(instances["annotations"][0]) == [
        "id", "image_id", "categories_id", "segmentation", "bbox", "area"]
    assert [c["id"] for c in instances["categories"]] == list(range(20))
    assert instances["categories"][15] == {"id": 15, "name": "storagetank", "supercategory": "rrsisd"}
    files = sorted(path.name for path in (toy_set / "images/rrsisd/JPEGImages").iterdir())
    assert files == [image["file_name"] for image in instances["images"]]
    assert files[0] == "00001.jpg"


def test_entries_agree_with_each_other(toy_set):
    refs, instances = read(toy_set)
    images = {image["id"]: image for image in instances["images"]}
    assert len(refs) == len(instances["annotations"]) == 2 * IMAGES == 2 * len(images)
    for number, (ref, annotation) in enumerate(zip(refs, instances["annotations"], strict=True)):
        image, sentence, rle = images[ref["image_id"]], ref["sentences"][0], annotation["segmentation"][0]
        assert ref["ref_id"] == ref["ann_id"] == annotation["id"] == sentence["sent_id"] == number
        assert ref["sent_ids"] == [number] and len(ref["sentences"]) == len(annotation["segmentation"]) == 1
        assert ref["image_id"] == annotation["image_id"] == number // 2 + 1
        assert ref["category_id"] == annotation["categories_id"]
        assert ref["file_name"] == image["file_name"] == f"{ref['image_id']:05d}.jpg"
        assert sentence["sent"] == sentence["raw"].lower() == " ".join(sentence["tokens"])
        with Image.open(toy_set / "images/rrsisd/JPEGImages" / ref["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (SIZE, SIZE)
        mask = coco_mask.decode(rle)
        rows, columns = np.nonzero(mask)
        assert isinstance(rle["counts"], str) and rle["size"] == [SIZE, SIZE]
        assert annotation["area"] == mask.sum() > 0.01 * SIZE**2
        assert annotation["bbox"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_splits_go_by_image(toy_set):
    refs, _ = read(toy_set)
    images = {"train": set(), "val": set(), "test": set()}
    for ref in refs:
        images[ref["split"]].add(ref["image_id"])
    assert {name: len(ids) for name, ids in images.items()} == {"train": 32, "val": 4, "test": 4}
    assert set.union(*images.values()) == set(range(1, IMAGES + 1))  # 40 in all: no image is in two splits


# ----------------------------------------------------------------------------------------------- the objects


def test_masks_are_apart_inside_and_where_the_object_is(scenes):
    for scene in scenes[:60]:
        masks = [mask_of(thing) for thing in scene.things]
        assert np.sum(masks, axis=0).max() == 1
        for thing, mask in zip(scene.things, masks, strict=True):
            rows, columns = np.nonzero(mask)
            assert min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < SIZE - 1
            centre = (columns.mean() + 0.5) / SIZE, (rows.mean() + 0.5) / SIZE
            assert centre == pytest.approx(thing.centre, abs=0.08 * thing.length)  # a fan is not symmetric


def test_masks_are_what_is_painted(scenes):
    for scene in scenes[:20]:
        for thing in scene.things:
            stencil = drawing.stencil(drawing.shape_of(thing)[0], drawing.SUPERSAMPLING * SIZE)
            painted = np.asarray(stencil.reduce(drawing.SUPERSAMPLING)) > 127
            mask = mask_of(thing)
            assert (painted & mask).sum() / (painted | mask).sum() > 0.9


def test_objects_have_the_colour_said(toy_set, scenes):
    """Of the category's colours, the one in the sentence is nearest to most pixels under the mask in the JPEG file."""
    for number, scene in enumerate(scenes[:IMAGES]):
        with Image.open(toy_set / f"images/rrsisd/JPEGImages/{number + 1:05d}.jpg") as picture:
            pixels = np.asarray(picture, dtype=float)
        for thing in scene.things:
            colours = toy_scenes.CATEGORIES[thing.category].colours
            palette = np.array([toy_scenes.COLOURS[colour] for colour in colours])
            distances = np.linalg.norm(pixels[mask_of(thing)][:, None] - palette, axis=-1)
            votes = Counter(colours[i] for i in distances.argmin(axis=1))
            assert votes.most_common(1)[0][0] == thing.colour, (number, thing)


def test_sizes_are_clearly_apart(scenes):
    """The greatest extent of a mask in any direction, in image sides."""
    directions = np.exp(1j * np.linspace(0, np.pi, 36, endpoint=False))
    extents = {"small": [], "large": []}
    for thing in (thing for scene in scenes[:60] for thing in scene.things):
        rows, columns = np.nonzero(mask_of(thing))
        along = np.outer(columns, directions.real) + np.outer(rows, directions.imag)
        extent = (np.ptp(along, axis=0).max() + 1) / SIZE
        extents[thing.size].append(extent / toy_scenes.CATEGORIES[thing.category].stretch)
    assert max(extents["small"]) < 0.35 < 0.40 < min(extents["large"])


def test_roomy_scenes_have_three_objects_and_larger_ones(scenes):
    def shortest(scenes, size):
        return min(thing.length / toy_scenes.CATEGORIES[thing.category].stretch
                   for scene in scenes for thing in scene.things if thing.size == size)

    roomy = [toy_scenes.make_scene(SEED, index, "roomy") for index in range(60)]
    assert all(len(scene.things) == 3 for scene in roomy)
    assert all(shortest(roomy, size) > 1.1 * shortest(scenes, size) for size in toy_scenes.SIZES)


# ---------------------------------------------------------------------------------------------- the language
# A reader of its own: it takes the sentence apart with a regular expression and decides by the plain meaning
# of the words, on the masks' centroids, without the generator's rules and margins.

NOUN = rf"(?:(?P<size>small|large) )?(?:(?P<colour>{'|'.join(toy_scenes.COLOURS)}) )?(?P<noun>{'|'.join(NAMES)})"
ANCHOR = re.sub(r"\?P<(\w+)>", r"?P<anchor_\1>", NOUN)
PLACE = r"(?:on|at|in) the (?P<place>(?:upper |lower |far )?(?:left|right)|top|bottom|middle)"
HEADING = r"(?P<relation>(?:upper |lower )?(?:left|right)|above|below)"
RELATION = rf"(?:is )?(?:(?:to|on) the )?{HEADING}(?: of)? the "
SENTENCE = re.compile(rf"(?:The|An?) {NOUN}(?: {PLACE}| {RELATION}{ANCHOR})?")
SEEN = 0.07  # image sides: a shift that one sees


def centroid(thing):
    rows, columns = np.nonzero(mask_of(thing))
    return (columns.mean() + 0.5) / SIZE, (rows.mean() + 0.5) / SIZE


def fits(thing, size, colour, noun):
    return thing.category == NAMES[noun] and size in (None, thing.size) and colour in (None, thing.colour)


def lies(words, x, y):
    """Whether something x to the right and y down from where one looks lies where all of the words say."""
    tests = {"left": x < -SEEN, "right": x > SEEN, "upper": y < -SEEN, "lower": y > SEEN,
             "top": y < -SEEN, "bottom": y > SEEN, "above": y < -SEEN, "below": y > SEEN}
    return all(tests[word] for word in words.split())


def referents(sentence, things):
    """The indices of the things that the sentence can mean."""
    words = SENTENCE.fullmatch(sentence).groupdict()
    found = [i for i, t in enumerate(things) if fits(t, words["size"], words["colour"], words["noun"])]
    centres = {i: centroid(thing) for i, thing in enumerate(things)}
    place = words["place"]
    if place == "middle":
        return [i for i in found if max(abs(value - 0.5) for value in centres[i]) < 0.17]
    if place and place.startswith("far"):
        sign = 1 if place.endswith("right") else -1
        return [i for i in found if sign * (centres[i][0] - 0.5) > 0.15]
    if place:
        return [i for i in found if lies(place, centres[i][0] - 0.5, centres[i][1] - 0.5)]
    if words["relation"]:
        said = words["anchor_size"], words["anchor_colour"], words["anchor_noun"]
        anchors = [i for i, thing in enumerate(things) if fits(thing, *said)]
        assert len(anchors) == 1, f"the anchor of '{sentence}' is not one object"
        x, y = centres[anchors[0]]
        return [i for i in found if lies(words["relation"], centres[i][0] - x, centres[i][1] - y)]
    return found


def test_every_sentence_is_true_of_exactly_one_object(any_scenes):
    for scene in any_scenes:
        assert 3 <= len(scene.things) <= 5
        assert len({expression.target for expression in scene.expressions}) == 2
        for expression in scene.expressions:
            assert referents(expression.raw, scene.things) == [expression.target], (expression, scene)


def test_the_category_alone_never_tells(any_scenes):
    for scene in any_scenes:
        counts = Counter(thing.category for thing in scene.things)
        assert all(counts[scene.things[e.target].category] >= 2 for e in scene.expressions)


def test_kinds_and_categories_all_occur(any_scenes):
    expressions = [(e, scene.things[e.target]) for scene in any_scenes for e in scene.expressions]
    kinds = Counter(expression.kind for expression, _ in expressions)
    assert set(kinds) == {"attribute", "position", "relation"}
    assert all(0.25 < count / len(expressions) < 0.42 for count in kinds.values())
    categories = Counter(thing.category for _, thing in expressions)
    assert len(categories) == len(toy_scenes.CATEGORIES) >= 8
    assert min(categories.values()) > 0.04 * len(expressions)


def test_every_word_and_phrase_of_the_grammar_occurs(any_scenes):
    sentences = [f"{expression.raw} ".lower() for scene in any_scenes for expression in scene.expressions]
    assert {word for sentence in sentences for word in sentence.split()} == set(toy_scenes.grammar_words())
    for direction in toy_scenes.POSITIONS:
        assert any(sentence.endswith(f" {phrase} ") for sentence in sentences for phrase in direction.phrases)
    for direction in toy_scenes.RELATIONS:
        assert any(f" {phrase} the " in sentence for sentence in sentences for phrase in direction.phrases)


def test_annotations_are_those_of_the_scenes(toy_set, scenes):
    refs, instances = read(toy_set)
    for ref in refs:
        scene = scenes[ref["image_id"] - 1]
        expression = scene.expressions[ref["ref_id"] % 2]
        thing = scene.things[expression.target]
        assert ref["sentences"][0]["raw"] == expression.raw
        assert instances["categories"][ref["category_id"]]["name"] == thing.category
        mask = coco_mask.decode(instances["annotations"][ref["ann_id"]]["segmentation"][0])
        assert (mask == mask_of(thing)).all()


# ------------------------------------------------------------------------------------------ the text encoder


def test_the_vocabulary_holds_every_word(toy_set, scenes):
    transformers = pytest.importorskip("transformers")
    for make in (transformers.BertTokenizer, transformers.BertTokenizerFast):
        tokenizer = make.from_pretrained(toy_set / "bert")
        for raw in (expression.raw for scene in scenes for expression in scene.expressions):
            ids = tokenizer.encode(raw)
            assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *raw.lower().split(), "[SEP]"]
            assert len(ids) <= 20
        assert tokenizer.tokenize("Zebra") == ["z", "##e", "##b", "##r", "##a"]
        assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id) == (0, 1, 2)


def test_the_text_config_is_a_bert_config(toy_set):
    config = pytest.importorskip("transformers").AutoConfig.from_pretrained(toy_set / "bert")
    words = (toy_set / "bert/vocab.txt").read_text().splitlines()
    assert config.model_type == "bert"
    assert config.vocab_size == len(words) == len(set(words))
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (128, 2, 4)
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0


# -------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("flag", "value", "least"), [("images", 9, 10), ("size", 63, 64), ("seed", -1, 0)])
def test_impossible_numbers(tmp_path, flag, value, least):
    with pytest.raises(UserError, match=f"{flag} {value} .* at least {least}"):
        writer.make_toy_rrsisd(tmp_path / "set", **{flag: value})
    assert not list(tmp_path.iterdir())


def test_anything_but_a_toy_set_is_left_alone(tmp_path, run_tool):
    (tmp_path / "precious.txt").write_text("mine")
    status, out, err = run_tool("--out", tmp_path, "--images", 10)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"make_toy_rrsisd\.py: .*precious\.txt.*\n", err)
    assert contents(tmp_path) == {"precious.txt": b"mine"}
    assert run_tool("--out", tmp_path / "precious.txt")[0] == 2
    assert run_tool("--out", tmp_path / "precious.txt/below")[0] == 2


def test_a_preview_lies_outside_the_set(tmp_path, run_tool):
    """A set that holds anything else could not be replaced."""
    status, _, err = run_tool("--out", tmp_path / "set", "--images", 10, "--preview", tmp_path / "set/look.png")
    assert status == 2 and re.fullmatch(r"make_toy_rrsisd\.py: --preview .*set/look\.png lies in --out .*\n", err)
    assert not list(tmp_path.iterdir())


def test_a_preview_that_cannot_be_written_is_one_line(tmp_path, run_tool):
    flags = ("--out", tmp_path / "set", "--images", 10, "--size", 64)
    status, out, err = run_tool(*flags, "--preview", "/proc/none/p.png")
    assert status == 2 and re.fullmatch(r"make_toy_rrsisd\.py: /proc/none/p\.png cannot be written.*\n", err)
    assert "Wrote 10 images" in out and len(contents(tmp_path / "set")) == 10 + len(writer.FILES)


def test_a_toy_set_with_something_added_is_left_alone(tmp_path):
    writer.make_toy_rrsisd(tmp_path / "set", images=10, size=64)
    (tmp_path / "set/checkpoint.pth").write_text("mine")
    with pytest.raises(UserError, match=r"checkpoint\.pth"):
        writer.make_toy_rrsisd(tmp_path / "set", images=10, size=64)


def test_an_interruption_leaves_the_old_set_and_nothing_else(tmp_path, monkeypatch):
    writer.make_toy_rrsisd(tmp_path / "set", images=10, size=64)
    before, draw = contents(tmp_path), drawing.draw_scene

    def interrupted(scene, size, rng):
        if scene == toy_scenes.make_scene(1, 4):
            raise KeyboardInterrupt
        return draw(scene, size, rng)

    monkeypatch.setattr(layouts, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.make_toy_rrsisd(tmp_path / "set", images=10, size=64, seed=1)
    assert contents(tmp_path) == before

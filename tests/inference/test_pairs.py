"""Lists of pairs: two formats, and every bad line named while the others go on."""
from pathlib import Path

import pytest

from lib.inference.pairs import Pair, name_outputs, read_pairs
from utils import UserError


def write(tmp_path, text: str | bytes, name: str = "pairs.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("text", [
    'image,sentence\na.png,the ship\nb/c.tif,"the ship, on the left"\na.png,the ship\n',
    '\ufeffsentence,note,image\r\nthe ship,x,a.png\r\n"the ship, on the left",,b/c.tif\r\n\r\n',
    '{"image": "a.png", "sentence": "the ship"}\n\n{"sentence": "the ship, on the left", "image": "b/c.tif", "x": 1}'])
def test_both_formats_give_each_pair_once_relative_to_the_file(tmp_path, text):
    pairs, problems = read_pairs(write(tmp_path, text))
    assert [pair[:2] for pair in pairs] == [(tmp_path / "a.png", "the ship"),
                                            (tmp_path / "b/c.tif", "the ship, on the left")]
    assert not problems
    assert read_pairs(write(tmp_path, 'image,sentence\n/x/a.png,ship'))[0][0].image == Path("/x/a.png")


@pytest.mark.parametrize(("line", "said"), [
    ("a.png,the ship, on the left", "has 3 fields, and the header 2: a sentence with commas needs quotation marks"),
    ("a.png", "has 1 fields, and the header 2"), ("a.png,  ", "needs an image and a sentence"),
    (",the ship", "needs an image and a sentence"), (b"a.png,\xff", "is not valid UTF-8"),
    ('a.png,"x" y', "the line is no CSV"), ("a.png," + "x" * 200_000, "the line is no CSV")])
def test_a_bad_line_of_csv_is_named_and_stops_nothing(tmp_path, line, said):
    content = b"image,sentence\ngood.png,one\n" + (line if isinstance(line, bytes) else line.encode()) + \
        b"\nlast.png,two\n"
    path = write(tmp_path, content)
    pairs, problems = read_pairs(path)
    assert [pair.image.name for pair in pairs] == ["good.png", "last.png"]
    problem, = problems
    assert problem.startswith(f"{path}:3: ") and said in problem and len(problem) < 400


@pytest.mark.parametrize("line", ["{", '{"image": "a.png"}', '{"image": 1, "sentence": "x"}', "[1]",
                                  '"the line is no JSON"', "[" * 100_000, '{"image": "a.png", "sentence": ["x"]}',
                                  '{"image": "a.png", "sentence": "\\ud800"}'])
def test_a_bad_line_of_json_is_named_and_stops_nothing(tmp_path, line):
    path = write(tmp_path, '{"image": "a.png", "sentence": "x"}\n' + line + '\n{"image": "b.png", "sentence": "x"}\n')
    pairs, problems = read_pairs(path)
    assert [pair.image.name for pair in pairs] == ["a.png", "b.png"] and pairs[1].where == f"{path}:3"
    problem, = problems
    assert problem.startswith(f"{path}:2: ") and len(problem) < 400


@pytest.mark.parametrize(("text", "said"), [
    ("a.png,the ship\n", "first line must name the columns image and sentence"),
    ("image,sentence\n", "has no pair"), ("", "has no pair")])
def test_a_file_without_pairs_is_refused(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        read_pairs(write(tmp_path, text))
    with pytest.raises(UserError, match=r"--pairs .*none\.csv cannot be read: No such file"):
        read_pairs(tmp_path / "none.csv")


def test_names_are_unique_for_thousands_of_pairs():
    pairs = [Pair(Path(f"{number}/a.png"), "the ship") for number in range(5000)]
    names = name_outputs([*pairs, Pair(Path("a-the-ship.png"), "2"), pairs[0]])
    assert len(set(names.values())) == len(names) == 5001
    assert names[Path("0/a.png"), "the ship"] == "a-the-ship"

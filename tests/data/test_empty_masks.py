"""A training set many of whose masks are empty does not start unless it is allowed."""
import json
import shutil

import pytest

from data import TrainSet
from data.empty_masks import refuse_empty
from refer import REFER
from utils import UserError


@pytest.fixture
def train_set(toy, tmp_path, tokenizer):
    """train_set(n): the toy set's 32 training refs, n of them with an empty mask."""
    def make(empty: int) -> TrainSet:
        shutil.copytree(toy / "rrsisd", tmp_path / "rrsisd")
        index = REFER(toy, "rrsisd")
        ids = {index.Refs[ref_id]["ann_id"] for ref_id in index.getRefIds(split="train")[:empty]}
        content = json.loads((tmp_path / "rrsisd/instances.json").read_text())
        for annotation in content["annotations"]:
            if annotation["id"] in ids:
                annotation["segmentation"] = []
        (tmp_path / "rrsisd/instances.json").write_text(json.dumps(content))
        (tmp_path / "images").symlink_to(toy / "images")
        return TrainSet(REFER(tmp_path, "rrsisd"), "train", tokenizer, 16, seed=1)
    return make


def test_a_tenth_of_empty_masks_is_usual(train_set):
    refuse_empty(train_set(3), allowed=False)


def test_more_is_refused_with_the_first_and_the_flag(train_set, capsys):
    many = train_set(4)
    with pytest.raises(UserError, match=r"^4 of 32 training refs .* mask, the first is ref \d+: .*--allow_empty$"):
        refuse_empty(many, allowed=False)
    refuse_empty(many, allowed=True)
    assert "--allow_empty: 4 of 32" in capsys.readouterr().out


def test_masks_that_are_empty_by_design_do_not_count(train_set):
    many = train_set(4)
    many.table.no_target[[row for row in many.refs.rows if not many.table.mask(row).any()]] = True
    refuse_empty(many, allowed=False)

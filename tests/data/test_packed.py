"""A packed data set gives the same samples bit for bit, and is refused in place of another one."""
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import EvalSet, TrainSet, train_loader
from data.dataset import load_image_and_mask
from data.packed import PackedRefs, verify_packed, write_packed
from refer.refer import REFER
from tests.conftest import equal_samples
from tests.launch import run_script
from tests.refer.test_readers import write_risbench
from utils import UserError

SIZE = 48


def pack(path: Path, refer: REFER, size: int = SIZE, workers: int = 0) -> Path:
    write_packed(path, refer, size, partial(load_image_and_mask, refer), iter, workers)
    return path


@pytest.fixture(scope="module")
def packed(refer, tmp_path_factory) -> Path:
    return pack(tmp_path_factory.mktemp("packed") / "toy.h5", refer)


@pytest.mark.parametrize("boxes", [0.0, 0.5])
def test_training_samples_are_the_same_bits(refer, tokenizer, packed, boxes):
    plain, fast = (TrainSet(refer, "train", tokenizer, SIZE, 1, boxes, packed=path) for path in ("", packed))
    assert all(equal_samples(plain[2, index], fast[2, index]) for index in range(len(plain)))


def test_evaluation_samples_are_the_same_bits(refer, tokenizer, packed):
    plain, fast = (EvalSet(refer, "val", tokenizer, SIZE, packed=path) for path in ("", packed))
    assert all(equal_samples(plain[index], fast[index]) for index in range(len(plain)))


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_processes_writes_the_same_bytes(refer, packed, tmp_path, workers):
    assert pack(tmp_path / "again.h5", refer, workers=workers).read_bytes() == packed.read_bytes()


def test_images_are_not_touched_and_workers_open_the_file_themselves(toy, tmp_path, tokenizer, packed):
    shutil.copytree(toy, tmp_path / "copy")
    refer = REFER(tmp_path / "copy", "rrsisd")
    shutil.rmtree(refer.IMAGE_DIR)
    dataset = TrainSet(refer, "train", tokenizer, SIZE, 1, packed=packed)
    dataset[0, 0]   # a handle of this process, before the workers fork
    batches = list(train_loader(dataset, 8, 2, False, 0, 1))
    assert sum(len(batch["index"]) for batch in batches) == len(dataset)
    assert isinstance(pickle.loads(pickle.dumps(dataset.packed)), PackedRefs)


def test_another_size_split_or_annotation_is_refused(toy, tmp_path, refer, packed):
    with pytest.raises(UserError, match=r"size_px is 48 there, 64 here.*tools/pack_dataset\.py"):
        PackedRefs(packed, refer, 64)
    shutil.copytree(toy, tmp_path / "copy")
    instances = tmp_path / "copy/rrsisd/instances.json"
    instances.write_text(instances.read_text() + "\n")
    with pytest.raises(UserError, match="annotations is"):
        PackedRefs(packed, REFER(tmp_path / "copy", "rrsisd"), SIZE)
    with pytest.raises(UserError, match="published_masks is False there, True here"):
        PackedRefs(packed, REFER(toy, "rrsisd", drop_overlaps=True), SIZE)


def test_a_file_that_is_not_packed_is_said_plainly(tmp_path, refer):
    with pytest.raises(UserError, match=r"cannot be opened .*pack_dataset\.py"):
        PackedRefs(tmp_path / "none.h5", refer, SIZE)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(UserError, match=r"cannot be opened .*pack_dataset\.py"):
        PackedRefs(tmp_path / "text.h5", refer, SIZE)


def test_a_file_that_is_replaced_while_the_program_runs_is_refused(toy, tmp_path, refer, packed):
    path = tmp_path / "toy.h5"
    shutil.copy(packed, path)
    opened = PackedRefs(path, refer, SIZE)
    opened.file = None   # as in a worker, which opens the file for itself
    opened.load(0)
    other = toy_with_another_mask(toy, tmp_path / "other")
    pack(path, other)
    opened.file = None
    with pytest.raises(UserError, match=r"--packed .*toy\.h5 was replaced while the program ran"):
        opened.load(0)


def toy_with_another_mask(toy: Path, root: Path) -> REFER:
    """The toy set whose first annotation has the second one's mask."""
    shutil.copytree(toy / "rrsisd", root / "rrsisd")
    (root / "images").symlink_to(toy / "images")
    content = json.loads((root / "rrsisd/instances.json").read_text())
    content["annotations"][0]["segmentation"] = content["annotations"][1]["segmentation"]
    (root / "rrsisd/instances.json").write_text(json.dumps(content))
    return REFER(root, "rrsisd")


def test_edited_mask_pictures_are_noticed_by_a_packed_file(tmp_path):
    write_risbench(tmp_path, train="train_1.png a ship\ntrain_2.png a ship\n")
    path = pack(tmp_path / "r.h5", REFER(tmp_path, "risbench"))
    PackedRefs(path, REFER(tmp_path, "risbench"), SIZE)
    Image.fromarray(np.eye(3, 4, dtype=np.uint8) * 255).save(tmp_path / "risbench/mask/train_1.png", compress_level=0)
    with pytest.raises(UserError, match=r"--packed .*r\.h5 does not fit: masks is "):
        PackedRefs(path, REFER(tmp_path, "risbench"), SIZE)


def test_a_damaged_part_names_the_ref(refer, packed):
    opened = PackedRefs(packed, refer, SIZE)
    ref = refer.data["refs"][3]
    opened.row_of[3] = 10_000   # beyond what is there
    with pytest.raises(UserError, match=rf"is damaged at ref {ref['ref_id']} .*pack_dataset\.py"):
        opened.load(3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failure_leaves_the_old_file_and_nothing_half_written(toy, tmp_path, workers):
    shutil.copytree(toy, tmp_path / "copy")
    refer = REFER(tmp_path / "copy", "rrsisd")
    path = tmp_path / "toy.h5"
    path.write_bytes(b"older")
    Path(refer.image_path(refer.data["refs"][-1])).unlink()
    with pytest.raises(UserError, match="is missing"):
        pack(path, refer, workers=workers)
    assert path.read_bytes() == b"older" and not list(path.parent.glob(".*.tmp*"))


def test_the_command_packs_and_verifies(toy, tmp_path):
    path = tmp_path / "toy.h5"
    command = ["tools/pack_dataset.py", "--refer_data_root", toy, "--img_size", 32, "--out", path]
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 0 and "refs at 32 px" in done.stdout, done.stderr
    assert verify_packed(path)
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)
    done = run_script(*command, "--verify", cwd=tmp_path)
    assert done.returncode == 2 and "is damaged" in done.stderr and "Traceback" not in done.stderr


def test_nearest_is_pillows_for_any_size():
    from transforms import resize
    generator = np.random.RandomState(0)
    for height, width, size in [(800, 800, 480), (7, 1000, 64), (31, 13, 96), (480, 480, 480), (333, 512, 224)]:
        mask = np.asfortranarray(generator.randint(0, 2, (height, width), dtype=np.uint8))
        expected = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
        assert np.array_equal(resize(Image.new("RGB", (9, 9)), mask, size)[1], expected)

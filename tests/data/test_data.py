"""Samples, their distribution over processes, and messages about broken ones."""
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from bert import tokenize
from data import EvalSet, TrainSet, eval_loader, train_loader
from data.dataset import BadImage, load_image_and_mask
from data.loader import EpochBatches, ShardedBatches
from refer.refer import REFER
from tests.conftest import equal_samples
from utils import UserError


def test_a_training_sample(refer, tokenizer):
    sample = TrainSet(refer, "train", tokenizer, 32, seed=1)[0, 0]
    assert sample["image"].shape == (3, 32, 32) and sample["image"].dtype == torch.uint8
    assert sample["target"].shape == (32, 32) and set(sample["target"].unique().tolist()) == {0, 1}
    assert sample["token_ids"].shape == sample["token_mask"].shape == (20,)
    assert sample["token_ids"].dtype == torch.int64


def test_tokens_are_those_of_the_raw_sentence(refer, tokenizer):
    dataset = EvalSet(refer, "val", tokenizer, 32)
    for index in range(len(dataset)):
        ids, mask = tokenize(tokenizer, [dataset.describe(index)["sentence"]])
        assert dataset[index]["token_ids"].tolist() == ids[0].tolist()
        assert dataset[index]["token_mask"].tolist() == mask[0].tolist()


def test_a_training_sample_follows_from_seed_epoch_and_index_alone(refer, tokenizer):
    first, second = (TrainSet(refer, "train", tokenizer, 32, seed=1, random_box_share=1.0) for _ in range(2))
    second[0, 3], second[5, 1]                                   # what was drawn before does not matter
    assert equal_samples(first[2, 4], second[2, 4])
    assert not torch.equal(first[2, 4]["image"], first[3, 4]["image"])   # other boxes in another epoch


def test_an_epoch_draws_any_of_a_refs_sentences(refer, tokenizer):
    dataset = TrainSet(refer, "train", tokenizer, 32, seed=1)
    dataset.tokens.counts[0], dataset.tokens.first[0] = 3, 0     # rows 0, 1, 2 are now ref 0's
    rows = [dataset.tokens.token_ids[i].tolist() for i in range(3)]
    drawn = {rows.index(dataset[epoch, 0]["token_ids"].tolist()) for epoch in range(30)}
    assert len(drawn) == len({tuple(row) for row in rows})


def test_random_boxes_fall_on_the_share_asked_for(refer, tokenizer):
    dataset = TrainSet(refer, "train", tokenizer, 64, seed=1, random_box_share=0.25)
    plain = TrainSet(refer, "train", tokenizer, 64, seed=1)
    changed = {i for i in range(len(plain)) if not torch.equal(dataset[0, i]["image"], plain[0, i]["image"])}
    assert changed == set(np.flatnonzero(dataset.boxed).tolist()) and len(changed) == int(0.25 * len(plain))


def test_evaluation_has_every_sentence_of_every_ref(refer, tokenizer):
    dataset = EvalSet(refer, "val", tokenizer, 32)
    said = [(entry["ref_id"], entry["sent_id"]) for entry in map(dataset.describe, range(len(dataset)))]
    assert said == [(ref["ref_id"], sentence["sent_id"]) for ref in refer.loadRefs(refer.getRefIds(split="val"))
                    for sentence in ref["sentences"]]


def test_shuffled_sentences_are_another_refs(refer, tokenizer):
    true, shuffled = (EvalSet(refer, "train", tokenizer, 32, shuffle_seed=seed) for seed in (None, 7))
    assert sorted(shuffled.speaker) == true.speaker.tolist()                        # each ref's sentences are used once
    assert all(speaker != ref for ref, speaker in enumerate(shuffled.speaker))
    for index in range(len(true)):
        speaker = shuffled.speaker[shuffled.samples[index][0]]
        assert shuffled.describe(index)["ref_id"] == true.describe(index)["ref_id"]
        assert shuffled.describe(index)["sentence"] == shuffled.refs[speaker]["sentences"][0]["raw"]
    index = next(i for i in range(len(true)) if shuffled.describe(i)["sentence"] != true.describe(i)["sentence"])
    assert torch.equal(shuffled[index]["target"], true[index]["target"])
    assert not torch.equal(shuffled[index]["token_ids"], true[index]["token_ids"])


def test_published_validation_draws_one_sentence_a_ref(refer, tokenizer):
    dataset = EvalSet(refer, "val", tokenizer, 32, one_sentence_seed=3)
    assert [ref for ref, _ in dataset.samples] == list(range(len(dataset.refs)))


@pytest.mark.parametrize(("samples", "batch", "world"), [(23, 2, 1), (23, 2, 3), (24, 4, 2), (7, 8, 1)])
def test_an_epoch_sees_each_sample_once_but_for_the_dropped_last_batch(samples, batch, world):
    shares = [EpochBatches(samples, batch, rank, world, seed=5) for rank in range(world)]
    for epoch in range(3):
        for share in shares:
            share.epoch = epoch
        batches = [list(share) for share in shares]
        assert all(len(part) == len(shares[0]) == samples // (batch * world) for part in batches)
        seen = [key for part in batches for keys in part for key in keys]
        assert all(len(keys) == batch for part in batches for keys in part)
        assert len(set(seen)) == len(seen) == samples // (batch * world) * batch * world
        assert {e for e, _ in seen} <= {epoch}


def test_an_epoch_of_several_passes_sees_every_sample_as_often_each_time_anew():
    sampler = EpochBatches(5, 2, 0, 1, seed=5, passes=4)
    seen = [pair for batch in sampler for pair in batch]
    assert len(sampler) == 10 and sorted(seen) == [(number, index) for number in range(4) for index in range(5)]
    sampler.epoch = 1
    assert {number for batch in sampler for number, _ in batch} == {4, 5, 6, 7}
    single = EpochBatches(5, 2, 0, 1, seed=5)
    assert [pair for batch in single for pair in batch] == seen[:4]


def test_processes_together_see_the_batches_of_one_process():
    one = [sorted(keys) for keys in EpochBatches(40, 8, 0, 1, seed=5)]
    four = [list(EpochBatches(40, 2, rank, 4, seed=5)) for rank in range(4)]
    assert one == [sorted(key for part in parts for key in part) for parts in zip(*four, strict=True)]


def test_epochs_differ_and_seeds_differ():
    def order(seed, epoch):
        sampler = EpochBatches(40, 8, 0, 1, seed)
        sampler.epoch = epoch
        return [index for keys in sampler for _, index in keys]
    assert order(5, 0) == order(5, 0) and order(5, 0) != order(5, 1) and order(5, 0) != order(6, 0)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_evaluation_shares_are_disjoint_and_complete(world, batch):
    shares = [list(ShardedBatches(11, batch, rank, world)) for rank in range(world)]
    assert sorted(index for share in shares for indices in share for index in indices) == list(range(11))


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_batches_with_any_number_of_workers(refer, tokenizer, workers):
    dataset = TrainSet(refer, "train", tokenizer, 32, seed=1, random_box_share=0.5)
    batches = train_loader(dataset, 4, workers, False, 0, 1)
    batches.batch_sampler.epoch = 1
    expected = [[dataset[key] for key in keys] for keys in batches.batch_sampler]
    for batch, samples in zip(batches, expected, strict=True):
        assert torch.equal(batch["image"], torch.stack([sample["image"] for sample in samples]))
        assert batch["index"].tolist() == [sample["index"] for sample in samples]


def copy_of(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_names_the_ref(toy, tmp_path, tokenizer, workers):
    root = copy_of(toy, tmp_path)
    refer = REFER(root, "rrsisd")
    ref = refer.loadRefs(refer.getRefIds(split="val"))[0]
    path = refer.image_path(ref)
    Path(path).unlink()
    loader = eval_loader(EvalSet(refer, "val", tokenizer, 32), 1, workers, False, 0, 1)
    with pytest.raises(UserError, match=f"ref {ref['ref_id']}: its image .* is missing"):
        list(loader)


def test_a_truncated_image_names_the_ref(toy, tmp_path, tokenizer):
    refer = REFER(copy_of(toy, tmp_path), "rrsisd")
    ref = refer.loadRefs(refer.getRefIds(split="val"))[0]
    path = Path(refer.image_path(ref))
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"ref {ref['ref_id']}: its image .* cannot be read"):
        EvalSet(refer, "val", tokenizer, 32)[0]


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, AttributeError, MemoryError])
def test_whatever_a_decoder_raises_names_the_ref(refer, monkeypatch, kind):
    def load(image: Image.Image) -> None:
        raise kind("damaged")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(BadImage, match=r"ref \d+: its image .* cannot be read \(damaged\)"):
        load_image_and_mask(refer, refer.loadRefs(refer.getRefIds(split="val"))[0])


def test_an_empty_split_is_an_error(toy, tmp_path, tokenizer):
    root = copy_of(toy, tmp_path)
    path = root / "rrsisd" / "refs(unc).p"
    refs = [ref for ref in pickle.loads(path.read_bytes()) if ref["split"] != "val"]
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(UserError, match="val"):
        EvalSet(REFER(root, "rrsisd"), "val", tokenizer, 32)


def test_a_mask_of_another_size_than_its_image_is_resized_on_its_own(refer, tokenizer):
    """17 of RRSIS-D's images are not 800×800 while most of their masks are."""
    dataset = EvalSet(refer, "val", tokenizer, 32)
    image, mask = dataset.load(0)
    dataset.load = lambda ref: (image.resize((50, 40)), mask)
    assert np.array_equal(dataset[0]["target"], EvalSet(refer, "val", tokenizer, 32)[0]["target"])

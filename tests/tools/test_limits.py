"""Sizes that no machine has, and flags without an effect, are one line."""
import json

import pytest
from tokenizers import Tokenizer

from bert.tokenizer import tokenize
from tools import contact_sheet, make_toy_rrsisd, pack_dataset
from utils import UserError


@pytest.mark.parametrize(("program", "words"), [
    (pack_dataset, ["--img_size", "2000000000", "--out", "x.h5"]),
    (make_toy_rrsisd, ["--size", "1000000", "--out", "x"]),
    (make_toy_rrsisd, ["--images", "10000000000", "--out", "x"])])
def test_a_size_that_no_machine_has_is_refused(program, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [program.__name__, *words])
    with pytest.raises(SystemExit) as stop:
        program.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and f"{words[1]} is not a whole number" in said
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_refuses_flags_that_it_does_not_follow():
    for flag in ("--packed=x.h5", "--fuse", "--amp=bf16", "--report=x", "--shuffle_sentences"):
        args = contact_sheet.parser().parse_args(["--resume", "c.pth", flag])
        with pytest.raises(UserError, match=rf"^{flag.partition('=')[0]} has no effect on a contact sheet: leave"):
            contact_sheet.run(args)


def test_token_ids_may_have_holes(tokenizer):
    """They once ended in an overflow, as the ids' type was that of the number of tokens."""
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"]["ship"] = 70_000
    ids, _ = tokenize(Tokenizer.from_str(json.dumps(content)), ["the ship"])
    assert ids.max() == 70_000

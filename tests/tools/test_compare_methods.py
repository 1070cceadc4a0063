"""The comparison of methods on nano networks: every step except measuring speed, which takes long."""
import json
import sys
from pathlib import Path

import pytest

from args import EVALUATION, get_parser
from lib.evaluation.methods import Entry
from lib.segmentation import SWIN_VARIANTS
from tests.launch import ROOT, run_script
from tools import compare_methods
from utils import UserError, sha256_of

pytestmark = pytest.mark.usefixtures("narrow_nano")


@pytest.fixture
def compare(toy, tmp_path, monkeypatch, capsys):
    """compare(*flags) -> exit status, stdout, stderr, scripts called; `calls` are forked, as torch is loaded here."""
    monkeypatch.chdir(tmp_path)

    def run(*own: str, shared: str = ""):
        called = []

        def call(command: list[str], log_file: Path) -> None:
            script = Path(command[1]).relative_to(ROOT)
            called.append(" ".join([script.stem, *command[2:]]))
            done = run_script(str(script), *command[2:], cwd=tmp_path)
            if done.returncode:
                raise UserError(done.stderr)
        flags = (f"--refer_data_root {toy} --dataset rrsisd --ck_bert {toy}/bert --bert_tokenizer {toy}/bert "
                 f"--swin_type nano --img_size 64 --epochs 1 --batch-size 16 --workers 0 {shared}")
        with monkeypatch.context() as patch:
            patch.setattr(compare_methods, "call", call)
            patch.setattr("sys.argv", ["compare_methods.py", "--out", "out", "--rounds", "0", *own, "--",
                                       *flags.split()])
            status = 0
            try:
                compare_methods.main()
            except SystemExit as stop:
                status = stop.code
        said = capsys.readouterr()
        return status, said.out, said.err, called
    return run


LAVT, MASKED = "LAVT=--model lavt", "LAVT, masked=--model lavt --masked_pass"


@pytest.mark.slow
def test_a_comparison_from_the_first_run_to_the_table(compare, tmp_path):
    both = ("--method", LAVT, "--method", MASKED)
    status, said, error, called = compare(*both, "--seeds", "1", "2")
    assert status == 0, error
    assert [line.split()[0] for line in called] == ["train", "test"] * 4
    assert "--masked_pass" in called[4] and "--masked_pass" not in called[5]   # test.py does not know it
    assert "--seed 2 --model_id out-lavt-seed2 --output-dir out/runs --resume auto" in called[2]

    written = json.loads((tmp_path / "out/comparison.json").read_text())
    first, second = written["splits"]["val"]
    assert (first["name"], second["name"], first["runs"], written["base"]) == ("LAVT", "LAVT, masked", 2, "LAVT")
    assert first["costs"] == second["costs"] and 0 < first["costs"]["parameters_m"] < 10
    assert 0.01 < first["costs"]["gflop"] < 10
    single = json.loads((tmp_path / "out/runs/lavt-seed1_val.json").read_text())
    assert first["metrics"]["mIoU"]["runs"][0] == pytest.approx(single["mIoU"])
    change = [b - a for a, b in zip(*(row["metrics"]["mIoU"]["runs"] for row in (first, second)), strict=True)]
    assert second["difference"]["mIoU"]["mean"] == pytest.approx(sum(change) / 2)
    assert "| LAVT, masked | 2 |" in (tmp_path / "out/table.md").read_text()
    assert "LAVT, masked & 2 &" in (tmp_path / "out/table.tex").read_text()
    assert "<td>LAVT, masked</td><td>2</td>" in (tmp_path / "out/index.html").read_text() and "table.md" in said
    assert "published" not in (tmp_path / "out/table.md").read_text()

    # What is finished is left alone; a method with checkpoints is not trained; another split is evaluated.
    brought = ("--method", "B=--model lavt", "--checkpoints", "B=out/runs/model_best_out-lavt-seed2.pth")
    status, _, error, called = compare(*both, *brought, "--seeds", "1", "2", "--compare_published")
    assert status == 0, error
    assert [line.split()[0] for line in called] == ["test"] and "out-lavt-seed2.pth --split val" in called[0]
    assert "val: no published figures of toy, split val, are in" in (tmp_path / "out/table.md").read_text()
    third = json.loads((tmp_path / "out/comparison.json").read_text())["splits"]["val"][2]
    assert third["runs"] == 1 and third["metrics"]["mIoU"]["mean"] == pytest.approx(first["metrics"]["mIoU"]["runs"][1])

    status, _, error, called = compare("--method", LAVT, "--seeds", "1", shared="--lr 1e-4")
    assert status == 2 and "is of a run with other flags (lr was 0.00035, is 0.0001)" in error and not called


@pytest.mark.parametrize(("own", "shared", "message"), [
    (("--method", "LAVT"), "", "--method 'LAVT' is not of the form NAME="),
    (("--method", LAVT, "--method", "lavt!=--model lavt_one"), "", "two methods of this name"),
    (("--method", LAVT), "--seed 3", "LAVT: --seed is set by compare_methods.py itself"),
    (("--method", LAVT, "--base", "RMSIN"), "", "--base RMSIN is none of the methods: LAVT"),
    (("--method", LAVT, "--checkpoints", "RMSIN=a.pth"), "", "--checkpoints RMSIN: no --method has this name"),
    (("--method", "LAVT=--model lavt --lr fast"), "", "argument --lr: invalid"),
    (("--method", LAVT), "--epochs 0", "0 is not a whole number of at least 1"),
])
def test_a_mistake_is_one_line_before_any_run(compare, own, shared, message):
    status, _, error, called = compare(*own, shared=shared)
    assert status == 2 and message in error and error.count("\n") == 1 and not called


def test_nano_networks_need_a_number_of_epochs():
    """Theirs would follow from the number of samples."""
    own = compare_methods.get_own_parser().parse_args(["--out", "x", "--method", LAVT])
    with pytest.raises(UserError, match="LAVT: give --epochs, since methods are compared after equally many"):
        compare_methods.read_methods(own, ["--swin_type", "nano"])
    (method,) = compare_methods.read_methods(own, ["--swin_type", "nano", "--epochs", "3"])
    assert (method.args.epochs, method.args.passes) == (3, 1)


def test_published_rows_of_the_results_data_set_stand_below_the_methods(tmp_path):
    sample = {"ref_id": 1, "sent_id": 1, "image_id": 1, "sentence": "ship", "intersection": 3, "union": 9,
              "object_px": 5, "boundary_intersection": 1, "boundary_union": 2}
    results = {"dataset": "rrsisd", "flags": {"splitBy": "unc"}, "samples": [sample]}
    rows, notes = published = compare_methods.find_published(results, "test")
    assert [row.method for row in rows[:2]] == ["RMSIN", "FIANet"] and "3,481 refs, this one 1" in notes[0]
    compare_methods.write_tables({"test": [Entry("mine", [results])]}, "mine", tmp_path, {"test": published})
    table = (tmp_path / "table.md").read_text()
    assert "| FIANet (Swin-B, 2024), published (2) |  | 64.01 | 76.91 | 74.46 | 56.31 | 24.13 |" in table
    assert "test: (2) FIANet: not checked against the paper; best epoch chosen on test; source:" in table
    assert "differences" not in table   # from what, of one method
    assert r"FIANet (Swin-B, 2024), published (2) &" in (tmp_path / "table.tex").read_text()
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["published"]["test"][1]["figures"]["mIoU"] == 64.01


def test_a_command_that_fails_says_why(tmp_path):
    program = "import sys; print('so far'); sys.exit('train.py: the reason')"
    with pytest.raises(UserError, match=r"ended with status 1 \(.*run.log\): train.py: the reason$"):
        compare_methods.call([sys.executable, "-c", program], tmp_path / "run.log")
    assert "so far" in (tmp_path / "run.log").read_text()


def test_attention_counts_as_work(toy):
    """At 384 px every map is made of whole windows of 4 and of 12: of the work, their attention alone differs."""
    works = [compare_methods.count_work(compare_methods.get_parser(*compare_methods.TRAINING).parse_args(
        ["--model", "lavt", "--swin_type", "nano", "--img_size", "384", "--ck_bert", str(toy / "bert"), *window]))
        for window in ([], ["--window12"])]
    nano = SWIN_VARIANTS["nano"]
    tokens_and_channels = sum(blocks * (96 >> stage) ** 2 * dim
                              for stage, (blocks, dim) in enumerate(zip(nano.depths, nano.dims, strict=True)))
    grown = 4 * (144 - 16) * tokens_and_channels   # 2 products of 2 FLOP for each token seen
    assert works[1]["gflop"] - works[0]["gflop"] == pytest.approx(grown / 1e9)


def test_results_are_used_again_only_for_the_same_weights_data_and_flags(toy, tmp_path):
    """Another data root once gave the first one's figures."""
    checkpoint, annotations = tmp_path / "c.pth", tmp_path / "instances.json"
    for path in (checkpoint, annotations):
        path.write_text("a")
    flags = ["--refer_data_root", str(toy), "--dataset", "rrsisd", "--split", "val", "--resume", str(checkpoint)]
    results = {"checkpoint": {"sha256": sha256_of(checkpoint)},
               "annotations": {str(annotations): sha256_of(annotations)},
               "flags": vars(get_parser(*EVALUATION).parse_args(flags))}

    def used(*more: str) -> bool:
        return compare_methods.is_of(json.loads(json.dumps(results)), [*flags, *more], checkpoint)

    assert used() and used("--workers", "3", "--batch-size", "5")
    assert not used("--refer_data_root", str(tmp_path)) and not used("--dataset", "refcoco")
    assert not used("--published_masks") and not compare_methods.is_of([], flags, checkpoint)
    annotations.write_text("b")
    assert not used()
    annotations.write_text("a")
    checkpoint.write_text("b")
    assert not used()

"""scripts/reproduce.py: what it says is missing, its plan, its commands, and the difference to a published figure."""
import json
import os
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from args import EVALUATION, TRAINING, get_parser
from lib.evaluation.metrics import compute_metrics
from lib.evaluation.published import published_row
from lib.evaluation.tables import counts_of, metric_intervals
from scripts import reproduce
from tests.launch import ROOT, run_script
from tools import export, readiness

pytestmark = pytest.mark.usefixtures("narrow_nano")


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """start(*flags) -> exit status and what was said, in an empty folder, with an empty cache of the hub and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(readiness, "in_cache", lambda source, names: "")
    monkeypatch.setattr(readiness, "find_gpus", list)

    def run(*flags: object) -> tuple[int, list[str], list[str]]:
        status = reproduce.main(list(map(str, flags)))
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()
    return run


def test_what_is_missing_is_said_a_line_each_with_status_2(start, tmp_path):
    status, said, errors = start("rmsin", "rrsisd")
    assert status == 2 and not said and [line.split(":")[:2] for line in errors[:-1]] == [
        ["missing", " data"], ["missing", " weights"], ["missing", " weights"], ["missing", " GPUs"]]
    for words, line in zip(("data root (--refer_data_root)", "swin_base_patch4_window12_384_22k.pth",
                            "`hf download bert-base-uncased`", "PyTorch sees none", "--toy"), errors, strict=True):
        assert words in line
    assert not list(tmp_path.iterdir()), "nothing was started"


def test_other_counts_and_lost_pictures_are_missing_data(toy, tmp_path):
    args = get_parser(*TRAINING).parse_args(["--refer_data_root", str(toy)])
    facts, missing = readiness.check_data(args, other_counts=False)
    counts = ("train", 32, "12,181"), ("val", 4, "1,740"), ("test", 4, "3,481")
    assert missing == [f"data: {split} of rrsisd has {own} refs, published are {published}; get the published files, "
                       "or give --other_counts" for split, own, published in counts]
    assert facts[0] == "data: train 32, val 4, test 4 refs, not as published"
    assert [line.rsplit(", SHA-256 ", 1)[0] for line in facts[1:]] == [
        f"data: {toy / 'rrsisd' / name}" for name in ("refs(unc).p", "instances.json")]
    (tmp_path / "rrsisd").symlink_to(toy / "rrsisd")
    args.refer_data_root = str(tmp_path)
    (line,) = readiness.check_data(args, other_counts=True)[1]
    assert line.startswith(f"data: 20 of 20 pictures, the first is {tmp_path}/images/rrsisd/JPEGImages/0000")


def test_weights_are_found_or_missing(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(readiness, "in_cache", lambda source, names: "")
    swin, bert = tmp_path / "swin.pth", tmp_path / "bert"
    bert.mkdir()
    swin.write_text("version https://git-lfs.github.com/spec/v1\n")
    args = Namespace(pretrained_swin_weights=str(swin), ck_bert=str(bert), bert_tokenizer=str(toy / "bert"),
                     text_encoder="")
    missing = readiness.check_weights(args)[1]
    assert "is a pointer of Git LFS" in missing[0] and "none of model.safetensors, pytorch_model.bin" in missing[1]
    assert len(missing) == 2
    swin.write_text("abc")
    (bert / "model.safetensors").write_text("")
    facts, missing = readiness.check_weights(args)
    assert not missing and facts[0].endswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    args.pretrained_swin_weights, args.ck_bert = "timm:swin_x", str(toy / "bert")
    facts, (line,) = readiness.check_weights(args)
    assert "`hf download timm/swin_x`" in line and "configuration alone: random ones" in facts[0]
    args.pretrained_swin_weights, args.text_encoder = None, "someone/clip"
    facts, (line,) = readiness.check_weights(args)
    assert "--text_encoder someone/clip is no folder" in line and "random ones" in facts[0] and len(facts) == 1


@pytest.mark.parametrize(("gpus", "share"), [
    (1, (1, 2, 4, None)), (2, (2, 2, 2, None)), (3, (2, 2, 2, None)), (4, (4, 2, 1, None)), (7, (4, 2, 1, None)),
    (8, (8, 1, 1, 0.1818)), (64, (8, 1, 1, 0.1818))])
def test_the_global_batch_of_rmsin_is_8_on_any_number_of_gpus(gpus, share):
    """The Dice weight of one sample a process is 0.2222 / 1.2222, since 0.1 / 0.9 · 2 / 1 is 0.2222."""
    assert reproduce.share_batch(8, 2, gpus, 2, 0.1) == reproduce.Share(*share)


def test_a_larger_batch_of_a_process_needs_less_accumulation():
    assert reproduce.share_batch(8, 8, 1, 2, 0.1) == reproduce.Share(1, 8, 1, 0.027)
    assert reproduce.share_batch(32, 8, 6, 8, 0.0) == reproduce.Share(4, 8, 1)


def plan_of(*words: str, gpus: int = 1) -> reproduce.Plan:
    """The plan for some flags; those after "--" are train.py's."""
    first = words.index("--") if "--" in words else len(words)
    own = reproduce.get_own_parser().parse_args(words[:first])
    own.asked = own.dataset
    return reproduce.make_plan(own, words[first + 1:], gpus)[0]


def test_every_step_is_a_command_with_flags_that_its_program_knows():
    plan = plan_of("lavt", "refcoco", "--seeds", "2", "--", "--amp", "bf16", "--ema", "0.9", gpus=4)
    steps = list(reproduce.steps(plan))
    assert [step.headline.split(",")[0] for step in steps] == 2 * [
        "training", "evaluating on val", "evaluating on testA", "evaluating on testB", "model folder and card"]
    words = [step.command[step.command.index(next(part for part in step.command if part.endswith(".py"))):]
             for step in steps]
    assert all(step.command[-len(own) - 2:-len(own)] == ["--nproc_per_node", "4"]
               for step, own in zip(steps, words, strict=True) if not own[0].endswith("export.py"))
    training = [get_parser(*TRAINING).parse_args(own[1:]) for own in (words[0], words[5])]
    assert [(flags.seed, flags.batch_size, flags.accumulate, flags.amp) for flags in training] == [
        (2401, 8, 1, "bf16"), (2402, 8, 1, "bf16")]
    assert training[0].pretrained_swin_weights.endswith("window12_384_22k.pth"), "as in the original's command"
    evaluation = get_parser(*EVALUATION).parse_args(words[2][1:])
    assert (evaluation.split, evaluation.amp, evaluation.dataset) == ("testA", "bf16", "refcoco") and evaluation.ema
    card = export.parser().parse_args(words[4][1:])
    assert card.ema and card.resume == evaluation.resume and card.results == str(plan.results(2401, "val"))


@pytest.mark.parametrize(("words", "said"), [
    (("lavt", "refcoco", "--", "--seed", "3"), "--seed is set by reproduce.py itself"),
    (("lavt", "refcocog"), "choose --splitBy from google, umd"), (("lavt", "x"), "Unknown data set 'x'")])
def test_a_wrong_flag_is_refused_in_one_line(start, capsys, words, said):
    try:
        status, _, errors = start(*words)
    except SystemExit as stop:   # as a parser refuses
        status, errors = stop.code, capsys.readouterr().err.splitlines()
    assert status == 2 and len(errors) == 1 and said in errors[0]


def test_a_plan_for_other_gpus_starts_nothing(start, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "least_memory", lambda plan: (2**33, "memory of a process: at least 8.0 GiB"))
    status, said, errors = start("rmsin", "rrsisd", "--plan", "--gpus", "8")
    assert status == 2 and len(errors) == 4, "data, two of weights, and that nothing was started"
    assert said[0] == "plan: rmsin on rrsisd, 40 epochs, seeds 2401" and said[1] == "  8 of 8 GPUs"
    assert "8 × 1 × 1" in said[2] and "Dice weight 0.1818" in said[2]
    assert said[4] == "  published, val: mIoU 65.10, oIoU 78.27" and not list(tmp_path.iterdir())


def write_results(path: Path, intersections: list[int]) -> dict:
    samples = [{"ref_id": i, "sent_id": i, "image_id": i // 2, "sentence": "s", "intersection": value, "union": 100,
                "object_px": 100, "boundary_intersection": 0, "boundary_union": 50}
               for i, value in enumerate(intersections)]
    results = {"split": "val", "samples": samples, **compute_metrics(counts_of(samples)),
               "intervals": metric_intervals(samples)}
    path.write_text(json.dumps(results))
    return results


def test_differences_are_less_the_published_figure_with_an_interval_over_images(tmp_path):
    plan = plan_of("rmsin", "rrsisd", "--out", str(tmp_path), "--seeds", "2")
    own = [write_results(plan.results(seed, split), [40 + 5 * (seed - 2401), 60, 80, 100])
           for split in plan.splits for seed in plan.seeds]
    rows = reproduce.differences(plan)
    first = rows[0]
    published = published_row("rmsin", "rrsisd", "val").mIoU
    assert (first["split"], first["metric"], first["run"], first["value"]) == ("val", "mIoU", "seed 2401", 70.0)
    assert first["difference"] == 70 - published
    assert first["difference_interval"] == [bound - published for bound in own[0]["intervals"]["mIoU"]]
    together = rows[2]
    assert together["run"] == "all together" and together["value"] == pytest.approx(70.625)
    assert [row["run"] for row in rows] == 4 * ["seed 2401", "seed 2402", "all together"]
    table = reproduce.as_table(plan, rows)
    assert f"| val | mIoU | seed 2401 | 70.00 | {first['interval'][0]:.2f} to" in table
    assert f"| {published:.2f} | {70 - published:+.2f} |" in table and "Source: " in table


def test_without_a_published_figure_there_is_no_difference(tmp_path):
    plan = plan_of("lgce", "vdd_ris", "--out", str(tmp_path))
    for split in plan.splits:
        write_results(plan.results(2401, split), [40, 60, 80, 100])
    rows = reproduce.differences(plan)
    assert all(row["difference"] is None for row in rows)
    said = "val: docs/reference has no figure of lgce on vdd_ris whose source was read."
    assert said in reproduce.as_table(plan, rows)


@pytest.mark.slow
def test_the_toy_variant_takes_every_step_and_does_not_repeat_it(start, tmp_path, monkeypatch):
    """Each command in a forked process; the memory is counted in tests/tools/test_benchmark.py."""
    taken = []

    def take(step: reproduce.Step) -> None:
        taken.append(step.headline)
        script, *flags = step.command[1:]
        done = run_script(os.path.relpath(script, ROOT), *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    monkeypatch.setattr(reproduce.Step, "take", take)
    monkeypatch.setattr(reproduce, "least_memory", lambda plan: (0, "memory: not counted"))
    for name, value in (("TOY_IMAGES", 20), ("TOY_EPOCHS", 1), ("TOY_PROCESSES", 1)):
        monkeypatch.setattr(reproduce, name, value)
    status, said, _ = start("rmsin", "rrsisd", "--toy", "--out", tmp_path / "out")
    assert status == 0 and taken == ["training, seed 2401", "evaluating on val, seed 2401",
                                     "evaluating on test, seed 2401", "model folder and card, seed 2401"]
    assert any("as in RMSIN's and LAVT's programs" in line for line in said)
    table = (tmp_path / "out/table.md").read_text()
    assert "**Toy data and a very small network" in table and "| val | mIoU | seed 2401 | " in table
    card = (tmp_path / "out/model_2401/README.md").read_text()
    assert "the toy set, split `test`, 4 sentences" in card and (tmp_path / "out/report_2401_val/index.html").is_file()
    written = json.loads((tmp_path / "out/reproduction.json").read_text())
    assert written["plan"]["share"] == {"processes": 1, "batch_size": 8, "accumulate": 4, "dice_weight": None}
    plan = plan_of("rmsin", "rrsisd", "--toy", "--out", str(tmp_path / "out"))
    assert [step.is_done(plan.checkpoint(step.seed)) for step in reproduce.steps(plan)] == [False, True, True, True]
    os.utime(plan.checkpoint(2401))   # trained since
    assert not any(step.is_done(plan.checkpoint(step.seed)) for step in reproduce.steps(plan))


def test_the_shell_script_runs_the_program_in_the_environment_that_it_is_given(tmp_path):
    python = tmp_path / "environment/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", str(ROOT / "scripts/reproduce.sh"), "rmsin", "rrsisd", "--plan"], cwd=tmp_path,
                          capture_output=True, text=True, env={**os.environ, "VENV": "environment"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines()[-1] == "scripts/reproduce.py rmsin rrsisd --plan"

"""A resumed run equals one that was not interrupted; changes that would make it another run are refused."""
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import distributed
import train
import utils
from args import get_parser
from data.toy import make_toy_rrsisd
from distributed import signals
from lib.checkpoint import read_checkpoint, save_checkpoint
from lib.training import epoch
from lib.training.resume import (
    DECISIVE,
    changed_flags,
    choose_start,
    find_checkpoint,
    refuse_changes,
    same_global_batch,
    set_earlier_run_aside,
    settle_flags,
)
from lib.training.run_lock import hold
from lib.training.state import Progress, same_data
from refer.refer import REFER
from tests.launch import nano_flags
from utils import UserError
from utils.files import temporary_beside

pytestmark = pytest.mark.usefixtures("narrow_nano")

STEPS = 4  # batches of 8 in the toy set's 32 training refs


@pytest.fixture(autouse=True)
def a_folder_and_signals_of_its_own(tmp_path, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    monkeypatch.chdir(tmp_path)
    yield
    signals._signals.clear()
    torch.use_deterministic_algorithms(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def arguments(toy: Path, *flags: object):
    return get_parser().parse_args(nano_flags(
        toy, "--batch-size", 8, "--epochs", 2, "--fusion_drop", 0.1, "--model_id", "m", "--random_box_share", 0.5,
        "--deterministic", "--device", "cpu", *flags))


def stop_after(monkeypatch, steps: int) -> None:
    """A signal that arrives during the given step of this process."""
    calls = []

    def requested() -> bool:
        calls.append(1)
        return len(calls) >= steps

    for module in (distributed, signals):
        monkeypatch.setattr(module, "stop_requested", requested)


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "models/m/log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(toy, tmp_path_factory) -> Callable[[tuple], Path]:
    """The folder of a run with the given flags that nothing interrupts, trained once for all tests."""
    @lru_cache
    def train_whole(flags: tuple) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            train.run(arguments(toy, *flags))
        return folder
    return train_whole


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "workers", "flags"), [
    (2, 0, ()), (STEPS, 0, ()), (STEPS + 3, 0, ("--ema", 0.9)), (3, 2, ("--ema", 0.9)), (3, 0, ("--masked_pass",))])
def test_an_interrupted_run_ends_in_the_same_bits(toy, whole_run, monkeypatch, steps, workers, flags):
    """Interrupted within an epoch, after its last batch but before validation, and in the second epoch."""
    whole_folder = whole_run(flags)
    with monkeypatch.context() as patch:
        patch.setattr(train, "validate", lambda *_: {"mIoU": 0.0, "oIoU": 0.0, "precision": {}})
        stop_after(patch, steps + steps // (STEPS + 1))   # the check after each validation counts too
        with pytest.raises(train.Interrupted):
            train.run(arguments(toy, "--workers", workers, *flags))
    stopped = read_checkpoint("checkpoints/model_last_m.pth")["progress"]
    assert stopped["epoch"] * STEPS + stopped["step"] == steps
    train.run(arguments(toy, "--resume", "auto", "--workers", workers, *flags))

    whole, parts = (read_checkpoint(folder / "checkpoints/model_last_m.pth") for folder in (whole_folder, Path()))
    for key in ("model", "optimizer", "lr_scheduler", "generators", "epoch", *(["ema"] if "--ema" in flags else [])):
        assert equal(whole[key], parts[key]), key
    assert "--ema" not in flags or not equal(whole["ema"], whole["model"])
    assert losses(whole_folder) == losses(Path())


def save(folder: Path, kind: str, **progress) -> Path:
    path = folder / f"model_{kind}_m.pth"
    save_checkpoint(path, {"model": {}, "progress": Progress(**progress).to_dict()})
    return path


def test_auto_begins_anew_and_passes_over_a_damaged_file(tmp_path, capsys):
    assert find_checkpoint(tmp_path, "m") == ("", {})
    save(tmp_path, "best", epoch=3)
    save(tmp_path, "last", epoch=4).write_bytes(b"half")
    path, checkpoint = find_checkpoint(tmp_path, "m")
    assert path.endswith("model_best_m.pth") and checkpoint["progress"]["epoch"] == 3
    assert "skipped this checkpoint: checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(("best", "last", "chosen"), [
    ({"epoch": 3}, {"epoch": 4}, "last"), ({"epoch": 4}, {"epoch": 3, "step": 9}, "best"),
    ({"epoch": 4}, {"epoch": 4, "step": 1}, "last")])
@pytest.mark.parametrize("touched", ["best", "last"])
def test_auto_chooses_by_progress_and_not_by_the_files_times(tmp_path, best, last, chosen, touched):
    """A best checkpoint that was touched or restored once beat a newer last one, which was then overwritten."""
    files = {"best": save(tmp_path, "best", **best), "last": save(tmp_path, "last", **last)}
    for kind, path in files.items():
        os.utime(path, (2e9, 2e9) if kind == touched else (1e9, 1e9))
    assert find_checkpoint(tmp_path, "m")[0] == str(files[chosen])


def test_auto_passes_over_a_file_that_the_disk_cannot_read(tmp_path, monkeypatch, capsys):
    save(tmp_path, "best", epoch=3)
    last = save(tmp_path, "last", epoch=4)

    def sha256_of(path) -> str:
        if Path(path) == last:
            raise OSError(5, "Input/output error")
        return utils.sha256_of(path)

    monkeypatch.setattr("lib.checkpoint.files.sha256_of", sha256_of)
    assert find_checkpoint(tmp_path, "m")[1]["progress"]["epoch"] == 3
    assert "Input/output error" in capsys.readouterr().out


@pytest.mark.slow
def test_the_best_score_is_that_of_the_file_that_is_there(toy, capsys):
    """The score in `last` is not used: the run may have ended between the two files. Messages name files that exist."""
    train.run(arguments(toy, "--epochs", 1))
    Path("checkpoints/model_best_m.pth").unlink()
    train.run(arguments(toy, "--epochs", 2, "--resume", "auto", "--allow_changed_flags", "--lr", 0))
    assert "best overall IoU so far -1.00" in (said := capsys.readouterr().out)
    assert said.splitlines()[-1].startswith("finished: best val overall IoU ")
    assert Path(said.splitlines()[-1].split(", in ")[1]).is_file()


@pytest.mark.slow
def test_a_failing_best_checkpoint_costs_no_epoch(toy, monkeypatch):
    """The state is saved before validation; the best checkpoint comes before the last, which must not promise it."""
    def fail_for_best(path, checkpoint) -> None:
        if "best" in Path(path).name:
            raise UserError("no room")
        save_checkpoint(path, checkpoint)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no room"):
        patch.setattr("lib.training.state.save_checkpoint", fail_for_best)
        train.run(arguments(toy))
    progress = read_checkpoint("checkpoints/model_last_m.pth")["progress"]
    assert (progress["epoch"], progress["step"], progress["best_oIoU"]) == (0, STEPS, -1.0)
    train.run(arguments(toy, "--resume", "auto"))
    assert read_checkpoint("checkpoints/model_best_m.pth")["progress"]["best_oIoU"] >= 0


@pytest.mark.slow
def test_whatever_validation_meets_costs_no_epoch(toy, monkeypatch):
    def broken(*_) -> dict:
        raise UserError("a val image is truncated")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="truncated"):
        patch.setattr(train, "validate", broken)
        train.run(arguments(toy))
    assert read_checkpoint("checkpoints/model_last_m.pth")["progress"]["step"] == STEPS


def test_a_missing_val_image_is_found_before_the_first_step(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "data")
    refer = REFER(tmp_path / "data", "rrsisd")
    Path(refer.image_path(refer.getRefIds(split="val")[0])).unlink()
    with pytest.raises(UserError, match=r"its image .* cannot be opened"):
        train.run(arguments(toy, "--refer_data_root", tmp_path / "data"))
    assert not list(Path("checkpoints").glob("*.pth"))


@pytest.mark.parametrize("folder", ["checkpoints", "models"])
def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(toy, folder):
    Path(folder).write_text("a file stands in its place")
    with pytest.raises(UserError, match=f"{folder} cannot be written"):
        train.run(arguments(toy))


@pytest.mark.slow
def test_a_run_that_fails_at_once_leaves_the_earlier_runs_checkpoints(toy):
    train.run(arguments(toy, "--epochs", 1))
    before = sorted(path.name for path in Path("checkpoints").iterdir())
    with pytest.raises(UserError, match="lower --batch-size or --accumulate"):
        train.run(arguments(toy, "--accumulate", 1000))
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == before


@pytest.mark.slow
def test_going_on_with_other_data_is_refused_and_fine_tuning_named(toy, tmp_path):
    train.run(arguments(toy, "--epochs", 1))
    make_toy_rrsisd(tmp_path / "other", images=20, size=64, seed=4)
    other = ("--refer_data_root", tmp_path / "other", "--resume", "checkpoints/model_last_m.pth")
    with pytest.raises(UserError, match=r"the annotation files differ.* with --init_from checkpoints/model_last_m"):
        train.run(arguments(toy, *other, "--epochs", 1))
    train.run(arguments(toy, *other, "--epochs", 2, "--allow_changed_flags"))
    train.run(arguments(toy, "--init_from", "checkpoints/model_last_m.pth", "--epochs", 1, *other[:2]))


@pytest.mark.slow
def test_a_run_from_other_weights_is_continued_by_the_same_command(toy, capsys):
    """A queue starts the command of a stopped job again; `--resume auto` means: resume if the run has begun."""
    train.run(arguments(toy, "--epochs", 1, "--model_id", "before"))
    flags = ("--init_from", "checkpoints/model_last_before.pth", "--resume", "auto", "--model_id", "tuned")
    train.run(arguments(toy, "--epochs", 1, *flags))
    assert "weights from checkpoints/model_last_before.pth" in capsys.readouterr().out
    train.run(arguments(toy, "--epochs", 1, *flags))
    assert "resuming from checkpoints/model_" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "message"), [
    (["--no-train_embeddings", "--epochs", 2], "parameter group"), (["--batch-size", 4, "--epochs", 2], None),
    (["--batch-size", 16, "--epochs", 2], "would train at lr 0")])
def test_a_state_of_another_run_is_one_line(toy, flags, message):
    train.run(arguments(toy, "--epochs", 1))
    args = arguments(toy, "--resume", "checkpoints/model_last_m.pth", "--allow_changed_flags", *flags)
    if message is None:
        train.run(args)
        return
    with pytest.raises(UserError, match=rf"of another run; --init_from checkpoints/model_last_m\.pth .*{message}"):
        train.run(args)


def test_a_checkpoint_that_is_set_aside_keeps_its_sha256(tmp_path):
    save(tmp_path, "last", epoch=3)
    set_earlier_run_aside("", tmp_path, "m")
    kept, digest = sorted(tmp_path.iterdir())
    assert kept.name.startswith("model_last_m.2") and digest.name == kept.name + ".sha256"
    assert digest.read_text().endswith(f"  {kept.name}\n") and read_checkpoint(kept)["progress"]["epoch"] == 3
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(UserError, match="its SHA-256 is not the one"):
        read_checkpoint(kept)


@pytest.mark.parametrize("change", [
    {"progress": {"epoch": -1}}, {"progress": {"epoch": "3"}}, {"progress": []}, {"args": None}, {"world_size": 0},
    {"optimizer": 3}, {"generators": {}}])
def test_a_state_that_no_run_has_is_one_line(tmp_path, change):
    whole = {"model": {"decoder.x": torch.zeros(1)}, "progress": {}, "args": {}, "world_size": 1, "optimizer": {},
             "lr_scheduler": {}, "generators": [{}]}
    torch.save({**whole, **change}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=rf"--resume .*c\.pth: {next(iter(change))}"):
        choose_start(str(tmp_path / "c.pth"), tmp_path, "m", False)


def test_a_second_run_of_one_name_is_refused_until_the_first_is_gone(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()

    def first() -> None:
        hold(tmp_path, "m")
        worker = fork.Process(target=done.wait)   # a loader's, which outlives the run for a while
        worker.start()
        ready.set()
        os.kill(os.getpid(), signal.SIGKILL)

    holder = fork.Process(target=lambda: (hold(tmp_path, "m"), ready.set(), done.wait()))
    holder.start()
    ready.wait()
    with pytest.raises(UserError, match="another run of --model_id m is writing to"):
        hold(tmp_path, "m")
    hold(tmp_path, "another")
    done.set()
    holder.join()
    ready.clear()
    done.clear()
    killed = fork.Process(target=first)
    killed.start()
    ready.wait()
    killed.join()
    half_written = temporary_beside(tmp_path / "model_last_m.pth")
    half_written.write_bytes(b"x")
    hold(tmp_path, "m")
    done.set()
    assert not half_written.exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lib.training.run_lock._lock", lambda file: os.open(tmp_path / "none", os.O_RDONLY))
    hold(tmp_path, "m")
    assert f"{tmp_path} has no locks (No such file or directory): do not start two runs" in capsys.readouterr().out


def test_edited_mask_pictures_are_another_run_and_old_checkpoints_do_not_tell():
    assert same_data({"a": "1"}, {"a": "1", "masks": "x"}) and same_data({"a": "1"}, {"a": "1"})
    assert not same_data({"a": "1", "masks": "y"}, {"a": "1", "masks": "x"}) and not same_data({"a": "2"}, {"a": "1"})


def stored(toy, world_size=1, **changes) -> dict:
    return {"args": {**vars(arguments(toy)), **changes}, "world_size": world_size}


@pytest.mark.parametrize(("flag", "value"), [("lr", 1.0), ("dataset", "refcoco"), ("model", "lavt"), ("seed", 1),
                                            ("masked_pass", True), ("ema", 0.9), ("loss", "ce:0.9,dice:0.2")])
def test_flags_that_change_the_result_are_refused(toy, flag, value):
    with pytest.raises(UserError, match=rf"{flag} was {value!r}, is .*--allow_changed_flags"):
        refuse_changes(arguments(toy), stored(toy, **{flag: value}), 1, {})


def test_a_checkpoint_from_before_the_flag_of_the_loss_has_the_loss_of_its_share_of_dice(toy):
    """The same loss may be written in either way; another one, or another setting of a part, is another run."""
    old = stored(toy, dice_weight=0.1)
    del old["args"]["loss"]
    refuse_changes(arguments(toy), old, 1, {})
    refuse_changes(arguments(toy, "--loss", "ce:0.9,dice:0.1"), old, 1, {})
    for given in ("--dice_weight", 0.2), ("--loss", "ce:0.9,focal:0.1"):
        with pytest.raises(UserError, match=r"loss was 'ce:0\.9,dice:0\.1', is 'ce:0\.[89],"):
            refuse_changes(arguments(toy, *given), old, 1, {})
    focal = vars(arguments(toy, "--loss", "ce,focal:2"))
    assert changed_flags(focal, vars(arguments(toy, "--loss", "ce:1,focal:2:gamma=2"))) == []
    assert changed_flags(focal, vars(arguments(toy, "--loss", "ce:1,focal:2:gamma=1"))) == ["loss"]
    assert changed_flags({"dice_weight": "x"}, focal) == []   # a damaged checkpoint


def test_flags_that_do_not_may_differ(toy):
    assert {"workers", "output_dir", "print_freq", "device"}.isdisjoint(DECISIVE)
    refuse_changes(arguments(toy), stored(toy, workers=9, output_dir="x"), 1, {})


def test_another_number_of_processes_keeps_the_global_batch_or_is_refused(toy):
    args = arguments(toy)
    args.batch_size = same_global_batch(args, stored(toy, world_size=1), 4)
    assert args.batch_size == 2
    refuse_changes(args, stored(toy, world_size=1), 4, {})
    with pytest.raises(UserError, match="batches of 8 cannot be shared by 3 processes"):
        same_global_batch(arguments(toy), stored(toy), 3)
    assert same_global_batch(arguments(toy, "--batch-size", 4), stored(toy), 3) == 4   # as the flag says
    with pytest.raises(UserError, match="batch_size was 8, is 4"):
        refuse_changes(arguments(toy, "--batch-size", 4), stored(toy), 1, {})


@pytest.mark.parametrize(("before", "after"), [({"epochs": 40}, (40, 1)), ({"epochs": 7, "passes": 3}, (7, 3)),
                                               ({"epochs": -1, "passes": "x"}, (10, 31)), ({}, (10, 31))])
def test_a_nano_run_that_goes_on_keeps_its_epochs(before, after):
    """They follow from the number of samples otherwise, by a rule that earlier code did not have."""
    args = get_parser().parse_args(["--swin_type", "nano", "--ck_bert", "x"])
    checkpoint = {"progress": {}, "model": {"decoder.x": torch.zeros(1)}, "args": before, "world_size": 1}
    settle_flags(args, checkpoint, samples=8, world_size=1)
    assert (args.epochs, args.passes) == after


def spoil(monkeypatch, *steps: int) -> None:
    """Makes the loss of the given training steps NaN."""
    whole, calls = epoch.segmentation_loss, []

    def loss(logits, target, text):
        calls.append(1)
        return whole(logits, target, text) * (float("nan") if len(calls) in steps else 1.0)

    monkeypatch.setattr(epoch, "segmentation_loss", loss)


@pytest.mark.slow
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_refs(toy, monkeypatch, amp):
    spoil(monkeypatch, 3)
    with pytest.raises(UserError, match=r"not finite in epoch 0, iteration 2, on refs \d+(, \d+){7}; stopped before"):
        train.run(arguments(toy, "--save_every", 1, "--amp", amp))
    checkpoint = read_checkpoint("checkpoints/model_last_m.pth")   # the last one stands
    assert checkpoint["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


@pytest.mark.slow
def test_a_few_such_batches_may_be_left_out(toy, monkeypatch):
    spoil(monkeypatch, 2, 3)
    train.run(arguments(toy, "--epochs", 1, "--skip_nonfinite", 2))
    (entry,) = [json.loads(line) for line in Path("models/m/log.jsonl").read_text().splitlines()]
    assert entry["skipped"] == 2
    assert all(value.isfinite().all() for value in read_checkpoint("checkpoints/model_last_m.pth")["model"].values())

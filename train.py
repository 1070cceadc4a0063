"""Trains a network in one process or several, by `python train.py`, `torchrun` or `torch.distributed.launch`."""
from args import TRAINING, get_parser
from utils import importing_much

if __name__ == "__main__":   # wrong flags and --help are answered before the slow imports
    ARGS = get_parser(*TRAINING).parse_args()

with importing_much():
    import gc
    import itertools
    import sys
    import textwrap
    import time
    from argparse import Namespace
    from dataclasses import replace
    from pathlib import Path
    from typing import Any

    from torch import nn
    from torch.utils.data import DataLoader

    import distributed
    import utils
    from data import RefsReader, log_problems, make_loaders
    from lib.accelerate import set_up
    from lib.checkpoint.starting import make_network
    from lib.evaluation.generalized import all_metrics, format_all
    from lib.evaluation.metrics import evaluate, warning_of_empty_predictions
    from lib.losses import segmentation_loss
    from lib.training.generators import seed_everything
    from lib.training.masked_pass import taught_loss
    from lib.training.nonfinite import NonFiniteGuard
    from lib.training.resume import DECISIVE, choose_start, goes_on, refuse_changes, set_earlier_run_aside
    from lib.training.run_lock import hold
    from lib.training.run_record import RunRecord
    from lib.training.set_up import set_up_training
    from lib.training.state import TrainingState
    from lib.training.update_step import lack_of_memory
    from transforms import network_inputs
    from utils import MachineError, UserError, duration, log


class Interrupted(Exception):
    """A signal stopped the run, which is saved."""


def train_one_epoch(state: TrainingState, batches: DataLoader, args: Namespace) -> dict[str, float]:
    """Trains from the state's progress to the end of the epoch, and returns the epoch's figures.

    A loss or gradient that is not finite on any process stops all processes before the update (`UserError`), or is
    skipped up to `--skip_nonfinite` times. After a signal the run is saved at the next update (`Interrupted`).
    """
    updater, progress, device = state.updater, state.progress, state.device
    updater.model.train()
    batches.batch_sampler.epoch, batches.batch_sampler.first = progress.epoch, progress.step
    start = time.perf_counter() - progress.seconds
    updater.loss_sum.fill_(progress.loss_sum)
    global_batch = args.batch_size * utils.world_size()
    guard = NonFiniteGuard(updater, progress, args.skip_nonfinite, batches.dataset)
    bad_images: list[str] = []
    for batch in log_problems(utils.progress(batches, f"epoch {progress.epoch}"), bad_images):
        inputs, target = network_inputs(batch, device), batch["target"].to(device, non_blocking=True).long()
        with lack_of_memory(updater), state.threads.step():
            logits = updater.forward(*inputs)
            updated = updater.backward(segmentation_loss(logits, target, args.dice_weight))
            if state.disturb:
                updated = updater.backward(taught_loss(updater.forward(*state.disturb(*inputs)), logits))
            if updated and state.average:
                state.average.update(state.model)
        guard.unseen.append(batch["index"])
        progress.empty_masks += int((~batch["target"].numpy().any(axis=(1, 2))).sum())   # from the copy on the host
        progress.step += 1
        progress.seconds = time.perf_counter() - start
        if not updated:
            continue
        interrupted = distributed.agree_to_stop()
        last = progress.step == len(batches)
        due = last or interrupted or (args.save_every and progress.step % args.save_every < args.accumulate)
        if due or progress.step // args.accumulate % state.look_every == 0:
            guard.check()
            progress.loss_sum = updater.loss_sum.item()
        if last or progress.step // args.accumulate % args.print_freq == 0:
            log(f"epoch {progress.epoch} [{progress.step}/{len(batches)}] loss {progress.loss_sum / progress.step:.4f} "
                f"lr {state.schedule.get_last_lr()[0]:.3g} "
                f"{progress.step * global_batch / progress.seconds:.1f} images/s, "
                f"{duration(progress.seconds_left(len(batches), args.epochs))} of training left")
            gc.collect()   # see utils.rare_garbage_collection
        if due and (interrupted or not last):
            state.save()
        if interrupted:
            raise Interrupted
    return {"loss": progress.loss_sum / len(batches), "train_seconds": progress.seconds,
            "empty_masks": progress.empty_masks, "skipped": progress.skipped,
            "bad_images": sum(distributed.gather_objects(len(bad_images))),
            "images_per_second": len(batches) * global_batch / max(progress.seconds, 1e-9)}


def validate(state: TrainingState, batches: DataLoader, model: nn.Module) -> dict[str, Any]:
    """Metrics on all sentences of the val split; each process evaluates a share and gets the whole result."""
    distributed.share_buffers(model)   # on CPUs running statistics differ between processes
    readable = log_problems(utils.progress(batches, "val"), [])
    watched = itertools.takewhile(lambda _: not distributed.stop_requested(), readable)
    rows = distributed.gather_rows(evaluate(model, watched, state.device, state.args.amp)).cpu().numpy()
    if not len(rows):
        return {}
    if warning := warning_of_empty_predictions(rows[:, 1:]):
        log(warning)
    return all_metrics(rows[:, 1:], batches.dataset.no_target(rows[:, 0]), state.args.no_target_pixels)


def run(args: Namespace) -> None:
    """Runs the whole training; `main` reports its errors."""
    reader = RefsReader(args.refer_data_root, args.dataset, args.splitBy, args.published_masks,
                        distributed.local_rank(args.local_rank))
    device = distributed.init_processes(args.device, args.local_rank, args.timeout)
    set_up(device, args)
    seed_everything(args.seed, args.deterministic)
    distributed.watch_signals()

    output, asked = Path(args.output_dir), args.resume
    for folder in (output, Path("models")):   # both must be writable before any work starts
        hold(folder, args.model_id)
    record = RunRecord(Path("models") / args.model_id, args, device, args.tensorboard, args.wandb)
    refs = reader.refs()
    annotations = {"/".join(Path(path).parts[-2:]): utils.sha256_of(path) for path in refs.annotation_files}
    if distributed.was_restarted():
        log("started again by the launcher")
    args.resume, resumed = choose_start(args.resume, output, args.model_id, distributed.was_restarted())
    if goes_on(resumed) and not args.allow_changed_flags:
        refuse_changes(args, resumed, args.resume, utils.world_size(), annotations)
    recipe = ", ".join(f"{name} {getattr(args, name)!r}" for name in DECISIVE)
    log(textwrap.fill(f"recipe: {recipe}", 120, subsequent_indent="    ", break_on_hyphens=False))

    model, config, tokenizer = make_network(args, resumed)
    if config.reads_phrases:
        config = replace(config, class_names=refs.class_names())
    train_batches, val_batches = make_loaders(args, refs, tokenizer, config.img_size, config.max_tokens,
                                              config.reads_phrases)
    log(f"{config.model} on {args.dataset}: {len(train_batches.dataset)} training samples, {len(val_batches.dataset)} "
        f"validation sentences; {utils.world_size()} process(es) on {device.type}, seed {args.seed}")
    val_batches.dataset.check_images()
    wrapped, average = set_up_training(model, args, device)
    state = TrainingState(args, model, wrapped, average, device, len(train_batches), config, tokenizer, annotations)
    if goes_on(resumed):
        state.resume(resumed)
    elif resumed:
        log(f"weights from {args.resume}; optimiser and schedule start anew, as the file has none that fit")

    if not distributed.was_restarted():
        set_earlier_run_aside(asked, output, args.model_id)
    progress = state.progress
    with record.begin(goes_on(resumed), progress.epoch, val_batches.dataset), utils.rare_garbage_collection():
        while progress.epoch < args.epochs:
            learning_rate = state.schedule.get_last_lr()[0]
            try:
                figures = train_one_epoch(state, train_batches, args)
            except MachineError as error:
                if utils.world_size() > 1:   # the other processes wait in the middle of a step
                    raise
                state.save_between_updates()
                raise MachineError(f"{error}. The run is saved; --resume auto goes on") from error
            state.save()   # an error in validation must not lose the epoch
            metrics = validate(state, val_batches, model)
            averaged = validate(state, val_batches, average.network) if average else {}
            if distributed.agree_to_stop():
                raise Interrupted   # a resumed run repeats the validation
            if not metrics:
                raise UserError("no image of the val split could be read; tools/check_dataset.py says what is wrong")
            log(format_all(metrics))
            if averaged:
                log(f"the averaged weights:\n{format_all(averaged)}")
            record.epoch({"epoch": progress.epoch, "lr": learning_rate, **figures, "val": metrics,
                          **({"val_ema": averaged} if averaged else {}),
                          "peak_memory_mib": utils.peak_memory_mib(device)}, model)
            oIoU = (averaged or metrics)["oIoU"]
            is_best = oIoU > progress.best_oIoU
            progress.best_oIoU = max(progress.best_oIoU, oIoU)
            progress.next_epoch()
            state.save(*(["best", "last"] if is_best else ["last"]))
    found = f"best val overall IoU {progress.best_oIoU:.2f}, in {state.files['best']}"
    log(f"finished: {found if state.files['best'].is_file() else 'no epoch gave a best checkpoint'}")
    distributed.end_processes()


def main(args: Namespace) -> None:
    """Runs the training, reports errors in one line, and exits with the status "try again" when interrupted."""
    with distributed.user_errors("train.py"):
        try:
            run(args)
        except Interrupted:
            log("stopped by a signal, saved; --resume auto goes on")
            sys.exit(distributed.EXIT_REQUEUE)


if __name__ == "__main__":
    main(ARGS)

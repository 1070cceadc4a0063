"""Trains a network in one process or several, by `python train.py`, `torchrun` or `torch.distributed.launch`."""
from args import TRAINING, get_parser
from utils import importing_much

if __name__ == "__main__":   # wrong flags and --help are answered before the slow imports
    ARGS = get_parser(*TRAINING).parse_args()

with importing_much():
    import sys
    from argparse import Namespace
    from dataclasses import dataclass, replace
    from pathlib import Path

    from torch.utils.data import DataLoader

    import distributed
    import utils
    from data import RefsReader, make_loaders
    from lib.accelerate import set_up
    from lib.checkpoint.starting import make_network
    from lib.evaluation.generalized import format_all
    from lib.training.advice import advice_on
    from lib.training.epoch import Interrupted, train_one_epoch, validate
    from lib.training.generators import seed_everything
    from lib.training.resume import (
        annotation_digests,
        choose_start,
        decisive_flags,
        goes_on,
        refuse_changes,
        set_earlier_run_aside,
        settle_flags,
    )
    from lib.training.run_lock import hold
    from lib.training.run_record import RunRecord
    from lib.training.set_up import set_up_training
    from lib.training.state import TrainingState
    from refer.mask_files import masks_digest
    from utils import MachineError, UserError, log


@dataclass
class Run:
    """What `fit` trains: the state of the run, the loaders of both splits, and the record in models/NAME."""

    state: TrainingState
    train_batches: DataLoader
    val_batches: DataLoader
    record: RunRecord
    resumed: bool   # the run goes on, and its record with it


def open_run(args: Namespace) -> Run:
    """Connects the processes, reads data and weights, and restores the state of a run that goes on."""
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
    annotations = annotation_digests(refs.annotation_files, masks_digest(refs))
    args.resume, checkpoint = choose_start(asked, output, args.model_id, distributed.was_restarted())
    settle_flags(args, checkpoint, refs.training_samples(), utils.world_size())
    resumed = goes_on(checkpoint)
    if resumed and not args.allow_changed_flags:
        refuse_changes(args, checkpoint, utils.world_size(), annotations)
    log(decisive_flags(args))

    model, config, tokenizer = make_network(args, checkpoint)
    if config.reads_phrases:
        config = replace(config, class_names=refs.class_names())
    train_batches, val_batches = make_loaders(args, refs, tokenizer, config.img_size, config.max_tokens,
                                              config.reads_phrases)
    log(f"{config.model} on {args.dataset}: {len(train_batches.dataset)} training samples, {len(val_batches.dataset)} "
        f"validation sentences; {utils.world_size()} process(es) on {device.type}, seed {args.seed}")
    val_batches.dataset.check_images()
    wrapped, average = set_up_training(model, args, device)
    state = TrainingState(args, model, wrapped, average, device, len(train_batches), config, tokenizer, annotations)
    if resumed:
        state.resume(checkpoint)
    elif checkpoint:
        log(f"weights from {args.resume}; optimiser and schedule start anew, as the file has none that fit")
    if not distributed.was_restarted():
        set_earlier_run_aside(asked, output, args.model_id)
    return Run(state, train_batches, val_batches, record, resumed)


def fit(run: Run) -> None:
    """Trains and validates epoch after epoch, and keeps the last and the best checkpoint."""
    state, progress, mIoUs = run.state, run.state.progress, []
    while progress.epoch < state.args.epochs:
        learning_rate = state.schedule.get_last_lr()[0]
        try:
            figures = train_one_epoch(state, run.train_batches, state.args)
        except MachineError as error:
            if utils.world_size() > 1:   # the other processes wait in the middle of a step
                raise
            state.save_between_updates()
            raise MachineError(f"{error}. The run is saved; --resume auto goes on") from error
        state.save()   # an error in validation must not lose the epoch
        metrics = validate(state, run.val_batches, state.model)
        averaged = validate(state, run.val_batches, state.average.network) if state.average else {}
        if distributed.agree_to_stop():
            raise Interrupted   # a resumed run repeats the validation
        if not metrics:
            raise UserError("no image of the val split could be read; tools/check_dataset.py says what is wrong")
        log(format_all(metrics))
        if averaged:
            log(f"the averaged weights:\n{format_all(averaged)}")
        run.record.epoch({"epoch": progress.epoch, "lr": learning_rate, **figures, "val": metrics,
                          **({"val_ema": averaged} if averaged else {}),
                          "peak_memory_mib": utils.peak_memory_mib(state.device)}, state.model)
        state.end_epoch((averaged or metrics)["oIoU"])
        mIoUs.append(metrics["mIoU"])
    if advice := advice_on(mIoUs):
        log(advice)


def run(args: Namespace) -> None:
    """Runs the whole training; `main` reports its errors."""
    opened = open_run(args)
    state = opened.state
    with (opened.record.begin(opened.resumed, state.progress.epoch, opened.val_batches.dataset),
          utils.rare_garbage_collection()):
        fit(opened)
    found = f"best val overall IoU {state.progress.best_oIoU:.2f}, in {state.files['best']}"
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

"""Evaluates a checkpoint on one split: metrics and, on request, results as JSON, predictions and a report."""
from args import EVALUATION, get_parser
from utils import importing_much

if __name__ == "__main__":   # wrong flags and --help are answered before the slow imports
    ARGS = get_parser(*EVALUATION).parse_args()

with importing_much():
    from argparse import Namespace

    import distributed
    import utils
    from data import EvalSet, RefsReader, eval_loader
    from lib.accelerate import WholeBatches, accelerate, compiled, prepare_for_inference, set_up
    from lib.accelerate.threads import choose_threads
    from lib.checkpoint import restore, weights_file
    from lib.evaluation.metrics import evaluate
    from lib.evaluation.predictions import Recorder
    from lib.evaluation.published import as_data, published_rows
    from lib.evaluation.published import describe as describe_published
    from lib.evaluation.result_files import read_probe
    from lib.evaluation.results import collect, describe, make_folders, make_results, no_empty_folders
    from lib.report.outputs import write_outputs
    from refer.mask_files import masks_digest
    from refer.published import other_size
    from utils import log


def run(args: Namespace) -> None:
    """Runs the whole evaluation; `main` reports its errors."""
    reader = RefsReader(args.refer_data_root, args.dataset, args.splitBy, args.published_masks,
                        distributed.local_rank(args.local_rank))
    device = distributed.init_processes(args.device, args.local_rank, args.timeout)
    set_up(device, args)
    make_folders(args)
    model, config, tokenizer = restore(args.resume, args)
    probe = read_probe(args.probe, utils.sha256_of(weights_file(args.resume)), args.split) if args.probe else None
    accelerate(model.to(device), device, args.channels_last)
    prepare_for_inference(model, args.amp, args.fuse)
    network = WholeBatches(compiled(model, device)) if args.compile else model

    refs = reader.refs()
    dataset = EvalSet(refs, args.split, tokenizer, config.img_size, args.seed if args.shuffle_sentences else None,
                      skip_bad_images=args.skip_bad_images, packed=args.packed, max_tokens=config.max_tokens,
                      phrases=config.reads_phrases)
    published = published_rows(dataset.name, args.split, args.splitBy) if args.compare_published else []
    batches = eval_loader(dataset, args.batch_size, args.workers, args.pin_mem, utils.rank(), utils.world_size())
    recorder = Recorder(dataset.original_mask if args.eval_ori_size else None,
                        keep=bool(args.save_predictions or args.report))
    counts = evaluate(network, utils.progress(batches, args.split, lines=True), device, args.amp, recorder,
                      choose_threads(device))
    outcome = collect(counts, recorder, len(batches.problems), dataset.no_target, args.no_target_pixels)
    styles = [style for style in ("latex", "markdown") if getattr(args, style)]
    log(describe(outcome, config.model, styles))
    if args.compare_published:
        differs = other_size(dataset.name, args.splitBy, args.split, len(dataset.refs), len(dataset))
        log(describe_published(published, dataset.name, args.split, config.model, outcome.metrics, styles, differs))

    if (args.results or args.report or args.save_predictions) and utils.rank() == 0:
        results = {**make_results(outcome, args, config.model, dataset, device, masks_digest(refs)),
                   **({"published": as_data(published)} if published else {})}
        for path in write_outputs(outcome, results, args, model, dataset, probe):
            log(f"wrote {path}")
    distributed.end_processes()


def main(args: Namespace) -> None:
    """Runs the evaluation and reports errors in one line."""
    with distributed.user_errors("test.py"), no_empty_folders(args):
        run(args)


if __name__ == "__main__":
    main(ARGS)
    distributed.leave_at_once()

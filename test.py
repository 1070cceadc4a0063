"""Evaluates a checkpoint on one split: the published metrics, and every sample's pixel counts on request."""
from argparse import Namespace
from pathlib import Path

import utils
from args import get_parser
from data import EvalSet, eval_loader, log_problems
from lib.checkpoint import read_checkpoint
from lib.evaluation import compute_metrics, evaluate, format_metrics
from lib.fuse import fuse, keep_weights_in
from lib.segmentation import build, model_settings
from lib.strict_load import load_weights
from refer.refer import REFER
from utils import UserError, log


def run(args: Namespace) -> None:
    """The whole evaluation; `main` says its user errors."""
    if not args.resume:
        raise UserError("--resume FILE is needed: the checkpoint to evaluate")
    device = utils.init_processes(args.device, args.local_rank, args.timeout)
    checkpoint = read_checkpoint(args.resume)
    config, tokenizer = model_settings(args, checkpoint)
    model = build(config)
    load_weights(model, checkpoint, args.resume)
    model.to(device)
    if args.fuse:
        fuse(model.eval())
    keep_weights_in(model, args.amp)

    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    dataset = EvalSet(refer, args.split, tokenizer, config.img_size, args.seed if args.shuffle_sentences else None,
                      skip_bad_images=args.skip_bad_images, packed=args.packed)
    batches = eval_loader(dataset, args.batch_size, args.workers, args.pin_mem, utils.rank(), utils.world_size())
    watched = log_problems(utils.progress(batches, args.split), problems := [])
    rows = utils.gather_rows(evaluate(model, watched, device, args.amp)).cpu()
    left_out = sum(utils.gather_objects(len(problems)))
    rows = rows[rows[:, 0].argsort()].numpy()
    if not len(rows):
        raise UserError(f"none of the {len(dataset)} samples of the split {args.split} could be read; "
                        "tools/check_dataset.py says what is wrong with each")
    metrics = compute_metrics(rows[:, 1], rows[:, 2])
    log(format_metrics(metrics))
    if empty := int((rows[:, 3] == 0).sum()):
        log(f"{empty} of {len(rows)} samples have an empty mask: their IoU is 0 whatever is predicted")
    if left_out:
        log(f"{left_out} of {len(dataset)} samples were left out for their bad images: others' figures have them")

    if args.results and utils.rank() == 0:
        samples = [{**dataset.describe(index), "intersection": intersection, "union": union}
                   for index, intersection, union, _ in rows.tolist()]
        utils.write_json(Path(args.results), {
            **metrics, "split": args.split, "images": len({ref["image_id"] for ref in dataset.refs}),
            "sentences": len(dataset), "empty_masks": empty, "left_out": left_out,
            "checkpoint": {"path": str(args.resume), "sha256": utils.sha256_of(args.resume)},
            "annotations": {path: utils.sha256_of(path) for path in refer.annotation_files},
            "flags": vars(args), **utils.describe_run(device), "samples": samples})
        log(f"wrote {args.results}")
    utils.end_processes()


def main() -> None:
    args = get_parser().parse_args()
    with utils.user_errors("test.py"):
        run(args)


if __name__ == "__main__":
    main()

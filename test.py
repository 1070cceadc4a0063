"""Evaluates a checkpoint on one split: the published metrics; on request results as JSON, predictions, a report."""
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

import distributed
import utils
from args import get_parser
from data import EvalSet, eval_loader, log_problems
from data.dataset import load_image_and_mask
from lib.accelerate.inference import fuse, keep_weights_in
from lib.checkpoint import restore
from lib.evaluation.metrics import compute_metrics, evaluate, format_metrics
from lib.evaluation.predictions import Prediction, Recorder, write_predictions
from lib.model import ReferringSegmenter
from lib.report.page import read_probe, write_report
from lib.training.update import autocast
from refer.refer import REFER
from transforms import normalize
from utils import UserError, log


def in_order(rows: Tensor) -> np.ndarray:
    """Rows whose first column is the sample's index, sorted by it, on the CPU."""
    return rows[rows[:, 0].argsort()].cpu().numpy()


def report(args: Namespace, model: ReferringSegmenter, dataset: EvalSet, results: dict[str, Any],
           predictions: list[Prediction], indices: list[int]) -> None:
    """Writes `--report`'s page; `predictions` and `indices` into the data set belong to the results' samples."""
    from lib.report.attention_maps import heat_strip, word_maps
    from lib.report.gallery import make_gallery

    device = next(model.parameters()).device

    def load(place: int) -> tuple[Image.Image, np.ndarray]:
        return load_image_and_mask(dataset.refer, dataset.ref_of(indices[place]))

    def attention(place: int) -> list[tuple[str, bytes]]:
        sample = dataset[indices[place]]
        with autocast(device, args.amp):
            maps = word_maps(model, normalize(sample["image"][None].to(device)), sample["token_ids"][None].to(device),
                             sample["token_mask"][None].to(device))
        return heat_strip(maps[0], sample["token_ids"], sample["token_mask"], dataset.tokenizer)

    gallery = make_gallery(results["samples"], predictions, load, args.report_samples,
                           attention if args.report_attention else None)
    write_report(Path(args.report) / "index.html", results, gallery)
    log(f"wrote {Path(args.report) / 'index.html'}")


def run(args: Namespace) -> None:
    """The whole evaluation; `main` says its user errors."""
    device = distributed.init_processes(args.device, args.local_rank, args.timeout)
    utils.set_up_cpu(device)
    for folder in (Path(args.results).parent if args.results else None, args.report, args.save_predictions):
        if folder and utils.rank() == 0:   # before the evaluation, which would be lost
            utils.make_folder(Path(folder))
    probe = read_probe(args.probe) if args.probe else None
    model, config, tokenizer = restore(args.resume, args)
    model.to(device)
    if args.fuse:
        fuse(model)
    keep_weights_in(model, args.amp)

    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    dataset = EvalSet(refer, args.split, tokenizer, config.img_size, args.seed if args.shuffle_sentences else None,
                      skip_bad_images=args.skip_bad_images, packed=args.packed)
    batches = eval_loader(dataset, args.batch_size, args.workers, args.pin_mem, utils.rank(), utils.world_size())
    watched = log_problems(utils.progress(batches, args.split), problems := [])
    recorder = Recorder((lambda index: refer.getMask(dataset.ref_of(index))["mask"]) if args.eval_ori_size else None,
                        keep=bool(args.save_predictions or args.report))
    rows = in_order(distributed.gather_rows(evaluate(model, watched, device, args.amp, recorder)))
    original = in_order(distributed.gather_rows(recorder.rows().to(device)))
    shares = distributed.gather_objects((len(problems), recorder.predictions))
    left_out = sum(count for count, _ in shares)
    if not len(rows):
        raise UserError(f"none of the {len(dataset)} samples of the split {args.split} could be read; "
                        "tools/check_dataset.py says what is wrong with each")
    metrics = compute_metrics(rows[:, 1:])
    log(format_metrics(metrics))
    if args.eval_ori_size:
        log("at the masks' original size:\n" + format_metrics(compute_metrics(original[:, 1:])))
    if empty := int((rows[:, 3] == 0).sum()):
        log(f"{empty} of {len(rows)} samples have an empty mask: their IoU is 0 whatever is predicted")
    if left_out:
        log(f"{left_out} of {len(dataset)} samples were left out for their bad images: others' figures have them")
    if args.latex or args.markdown:
        from lib.evaluation.tables import format_table
        log("\n".join(format_table([(config.model, metrics)], style) for style in ("latex", "markdown")
                      if getattr(args, style)))

    if (args.results or args.report or args.save_predictions) and utils.rank() == 0:
        from lib.evaluation.tables import make_sample, summarize  # scipy takes a while to load, and few runs need it
        indices = rows[:, 0].tolist()
        samples = [make_sample(dataset.describe(index), counts, dataset.size_px ** 2)
                   for index, *counts in rows.tolist()]
        found = {index: prediction for _, share in shares for index, prediction in share.items()}
        predictions = [found[index] for index in indices] if found else []
        results = {
            **summarize(samples), "original_size": compute_metrics(original[:, 1:]) if len(original) else None,
            "model": config.model, "split": args.split,
            "images": len({ref["image_id"] for ref in dataset.refs}), "sentences": len(dataset),
            "left_out": left_out, "checkpoint": {"path": str(args.resume), "sha256": utils.sha256_of(args.resume)},
            "annotations": {path: utils.sha256_of(path) for path in refer.annotation_files}, "flags": vars(args),
            **utils.describe_run(device), "samples": samples}
        if args.results:
            utils.write_json(Path(args.results), results)
            log(f"wrote {args.results}")
        if args.save_predictions:
            write_predictions(Path(args.save_predictions), samples, predictions, args.prediction_pngs)
            log(f"wrote {Path(args.save_predictions) / 'predictions.json'}")
        if args.report:
            report(args, model, dataset, {**results, "probe": probe}, predictions, indices)
    distributed.end_processes()


def main() -> None:
    args = get_parser().parse_args()
    with distributed.user_errors("test.py"):
        run(args)


if __name__ == "__main__":
    main()
    distributed.leave_at_once()

"""The files that an evaluation writes on request: results, predictions, report."""
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from lib.accelerate import autocast
from lib.evaluation.predictions import write_predictions
from lib.evaluation.results import Outcome
from lib.model import ReferringSegmenter
from lib.report.attention_maps import has_word_maps, heat_strip, word_maps
from lib.report.gallery import make_gallery
from lib.report.page import write_report
from transforms import network_inputs
from utils import log, write_json


def write_outputs(outcome: Outcome, results: dict[str, Any], args: Namespace, network: ReferringSegmenter,
                  dataset: Any, probe: dict[str, Any] | None) -> list[Path]:
    """Writes the files that the flags name, and returns them. Raises `UserError` if one cannot be written.

    `probe` holds the tables of tools/probe_language.py that the report shows.
    """
    written = []
    if args.results:
        write_json(Path(args.results), results)
        written.append(Path(args.results))
    if args.save_predictions:
        write_predictions(Path(args.save_predictions), results["samples"], outcome.predictions, args.prediction_pngs)
        written.append(Path(args.save_predictions) / "predictions.json")
    if args.report:
        written.append(Path(args.report) / "index.html")
        write_evaluation_report(written[-1], {**results, "probe": probe}, outcome, network, dataset,
                                args.report_samples, args.amp if args.report_attention else None)
    return written


def write_evaluation_report(path: Path, results: dict[str, Any], outcome: Any, network: Any, dataset: Any, most: int,
                            attention_amp: str | None) -> None:
    """Writes the page of an evaluation with a gallery of up to `most` samples.

    `results`, `outcome` and `network` are as in `lib.evaluation.results`, `dataset` is the `data.EvalSet` evaluated.
    `attention_amp` is the precision in which attention maps are computed, or None to leave them out.
    """
    indices, device = outcome.indices, next(network.parameters()).device
    if attention_amp and not has_word_maps(network):
        log("--report_attention: the network's fusion has no attention_weights, so the report shows no attention maps")
        attention_amp = None

    def attention(place: int) -> list[tuple[str, bytes]]:
        sample = dataset[indices[place]]
        with autocast(device, attention_amp or "off"):
            maps = word_maps(network, *network_inputs(default_collate([sample]), device))
        return heat_strip(maps[0], sample["token_ids"], sample["token_mask"], dataset.tokenizer)

    gallery = make_gallery(results["samples"], outcome.predictions, lambda place: dataset.picture(indices[place]), most,
                           attention if attention_amp else None)
    write_report(path, results, gallery)

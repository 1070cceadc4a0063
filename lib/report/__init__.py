"""The report of an evaluation: its page, gallery, pictures and attention maps."""
from pathlib import Path
from typing import Any

from torch.utils.data import default_collate

from lib.accelerate import autocast
from lib.report.attention_maps import heat_strip, word_maps
from lib.report.gallery import make_gallery
from lib.report.page import write_report
from transforms import network_inputs


def write_evaluation_report(path: Path, results: dict[str, Any], outcome: Any, network: Any, dataset: Any, most: int,
                            attention_amp: str | None) -> None:
    """Writes the page of an evaluation with a gallery of up to `most` samples.

    `results`, `outcome` and `network` are as in `lib.evaluation.results`, `dataset` is the `data.EvalSet` evaluated.
    `attention_amp` is the precision in which attention maps are computed, or None to leave them out.
    """
    indices, device = outcome.indices, next(network.parameters()).device

    def attention(place: int) -> list[tuple[str, bytes]]:
        sample = dataset[indices[place]]
        with autocast(device, attention_amp or "off"):
            maps = word_maps(network, *network_inputs(default_collate([sample]), device))
        return heat_strip(maps[0], sample["token_ids"], sample["token_mask"], dataset.tokenizer)

    gallery = make_gallery(results["samples"], outcome.predictions, lambda place: dataset.picture(indices[place]), most,
                           attention if attention_amp else None)
    write_report(path, results, gallery)

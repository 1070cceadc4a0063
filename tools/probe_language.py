"""Tests which words a model uses: evaluates the same refs with changed sentences.

A change that costs no IoU removes only words that the model does not use.
The flags are those of test.py, --out and --samples. The sentences are: the original; another ref's; the original's
words in random order; its category alone; without position words; without attribute words; empty. Then each word is
masked in turn: the last row is for the word of each sentence whose masking costs most IoU, and a second table has the
mean loss of each word.
"""
import random
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

import distributed
import utils
from args import EVALUATION, RecipeParser, get_parser, positive
from bert import PhraseMarker, tokenize
from bert.tokenizer import UNKNOWN, mask_token
from data import EvalSet
from lib.accelerate import accelerate, autocast, set_up
from lib.checkpoint import restore, weights_file
from lib.evaluation.expressions import category_words, without_attributes, without_positions, words_of
from lib.evaluation.metrics import count_pixels, predict
from lib.evaluation.tables import ratio_intervals
from lib.evaluation.text_tables import markdown
from lib.model import ReferringSegmenter
from refer.refer import REFER
from transforms import normalize

ORIGINAL, WORST_WORD = "original", "its most important word masked"
SHOWN_WORDS, FEWEST_TIMES = 30, 3   # of the table of words


def parser() -> RecipeParser:
    """test.py's flags and two more."""
    flags = get_parser(*EVALUATION)
    flags.description = __doc__
    probe = flags.add_argument_group("probe")
    probe.add_argument("--out", default="probe.json", metavar="FILE",
                       help="where the tables go, for test.py --report --probe (default: probe.json)")
    probe.add_argument("--samples", type=positive, metavar="N",
                       help="how many, evenly spread over the split (default: all)")
    return flags


def variants(sample: dict[str, Any], others_sentence: str, seed: int) -> dict[str, str]:
    """{condition: sentence} of a sample as `EvalSet.describe` gives it; the masked words are not among them."""
    sentence = sample["sentence"]
    words = sentence.split()
    random.Random(f"{seed}/{sample['ref_id']}/{sample['sent_id']}").shuffle(words)
    return {ORIGINAL: sentence, "another ref's sentence": others_sentence, "words in random order": " ".join(words),
            "category alone": category_words(sample["category"]),
            "without position words": without_positions(sentence),
            "without attribute words": without_attributes(sentence), "no sentence": ""}


def masked(sentence: str, mask_word: str) -> dict[str, str]:
    """{word in lower case: the sentence with the mask's word in its place, the first one if the word occurs twice}."""
    pieces = sentence.split()
    found: dict[str, str] = {}
    for place, word in enumerate(pieces):
        for bare in words_of(word):
            found.setdefault(bare.lower(), " ".join([*pieces[:place], mask_word, *pieces[place + 1:]]))
    return found


@torch.inference_mode()
def ious(model: ReferringSegmenter, tokenizer: Tokenizer, image: Tensor, target: Tensor, sentences: list[str],
         args: Namespace, device: torch.device, max_tokens: int,
         marker: PhraseMarker | None = None) -> dict[str, float]:
    """{sentence: IoU in percent} of one image (3, S, S) uint8 and its mask (S, S), each different sentence once.

    A network that reads phrases needs a `marker`.
    """
    different = list(dict.fromkeys(sentences))
    image, target = normalize(image[None].to(device)), target[None].to(device)
    found: list[float] = []
    for first in range(0, len(different), args.batch_size):
        some = different[first:first + args.batch_size]
        words = (torch.from_numpy(read).to(device) for read in tokenize(tokenizer, some, max_tokens, marker))
        with autocast(device, args.amp):
            logits = model(image.expand(len(some), -1, -1, -1), *words)
        counts = count_pixels(predict(logits), target.expand(len(some), -1, -1)).cpu().numpy()
        found += (100 * counts[:, 0] / np.maximum(counts[:, 1], 1)).tolist()
    return dict(zip(different, found, strict=True))


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The two tables of some samples.

    A row is a sample: `image_id`, `iou` {condition: percent}, `changed` {condition: bool}, `losses` {word: IoU that
    masking it costs, in points}.
    -> `conditions`: mIoU, its change from the original with a 95 % interval (bootstrap over images), and of how
    many samples the sentence changed; `words`: how often each occurs and its mean loss, most important first.
    """
    images, conditions = [row["image_id"] for row in rows], []
    for name in rows[0]["iou"]:
        iou, original = (np.array([row["iou"][key] for row in rows]) for key in (name, ORIGINAL))
        interval, = ratio_intervals((iou - original)[None], np.ones((1, len(rows))), images)
        conditions.append({"name": name, "mIoU": float(iou.mean()), "change": float((iou - original).mean()),
                           "interval": None if name == ORIGINAL else interval,
                           "changed": sum(row["changed"][name] for row in rows)})
    losses = defaultdict(list)
    for row in rows:
        for word, loss in row["losses"].items():
            losses[word].append(loss)
    words = [{"word": word, "times": len(found), "mean_loss": float(np.mean(found))} for word, found in losses.items()
             if len(found) >= min(FEWEST_TIMES, len(rows))]
    return {"conditions": conditions, "words": sorted(words, key=lambda row: -row["mean_loss"])[:SHOWN_WORDS]}


def show(tables: dict[str, Any]) -> None:
    """Prints both tables as Markdown."""
    utils.log(markdown(["sentence", "changed", "mIoU", "change", "95 % interval"], [
        [row["name"], str(row["changed"]), f"{row['mIoU']:.1f}", f"{row['change']:+.1f}",
         "[%+.1f, %+.1f]" % tuple(row["interval"]) if row["interval"] else ""] for row in tables["conditions"]]))
    utils.log("\n" + markdown(["word", "times", "mean loss of IoU when masked"], [
        [row["word"], str(row["times"]), f"{row['mean_loss']:.1f}"] for row in tables["words"]]))


def run(args: Namespace) -> None:
    """Probes this process's share of the samples; the first process prints and writes the figures of all."""
    device = distributed.init_processes(args.device, args.local_rank, args.timeout)
    set_up(device, args)
    model, config, tokenizer = restore(args.resume, args)
    accelerate(model.to(device), device)
    mask_word = mask_token(tokenizer) or next((name for name in UNKNOWN if tokenizer.token_to_id(name) is not None), "")
    refer = REFER(args.refer_data_root, args.dataset, args.splitBy, args.published_masks)
    common = (refer, args.split, tokenizer, config.img_size)
    dataset = EvalSet(*common, packed=args.packed, max_tokens=config.max_tokens)
    marker = PhraseMarker(dataset.table.class_names()) if config.reads_phrases else None
    others = EvalSet(*common, shuffle_seed=args.seed)
    chosen = np.linspace(0, len(dataset) - 1, min(args.samples or len(dataset), len(dataset))).astype(int).tolist()
    rows = []
    for index in utils.progress(chosen[utils.rank()::utils.world_size()], "probe", lines=True):
        sample, described = dataset[index], dataset.describe(index)
        asked = variants(described, others.describe(index)["sentence"], args.seed)
        without = masked(described["sentence"], mask_word)
        iou = ious(model, tokenizer, sample["image"], sample["target"], [*asked.values(), *without.values()], args,
                   device, config.max_tokens, marker)
        original = iou[asked[ORIGINAL]]
        losses = {word: original - iou[sentence] for word, sentence in without.items()}
        rows.append({"index": index, "image_id": described["image_id"], "losses": losses,
                     "iou": {**{name: iou[sentence] for name, sentence in asked.items()},
                             WORST_WORD: original - max(losses.values(), default=0.0)},
                     "changed": {**{name: sentence != asked[ORIGINAL] for name, sentence in asked.items()},
                                 WORST_WORD: bool(losses)}})
    rows = sorted((row for share in distributed.gather_objects(rows) for row in share), key=lambda row: row["index"])
    if utils.rank() == 0:
        tables = summarize(rows)
        show(tables)
        utils.write_json(Path(args.out), {
            **tables, "split": args.split, "samples": len(rows), "flags": vars(args), **utils.describe_run(device),
            "checkpoint": {"path": str(args.resume), "sha256": utils.sha256_of(weights_file(args.resume))}})
        utils.log(f"\nwrote {args.out}")
    distributed.end_processes()


def main() -> None:
    args = parser().parse_args()
    with distributed.user_errors("probe_language.py"):
        run(args)


if __name__ == "__main__":
    main()

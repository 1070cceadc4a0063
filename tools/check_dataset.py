"""Goes through a whole data set and lists every fault in it: entries, masks and image files.

Exit status: 0 without faults (notes are harmless), 1 with faults, 2 if the data set cannot be read at all.
"""
import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from args import Parser, count, positive, tokens, whole
from distributed import user_errors
from refer.check import FAULTS, NOTES, Finding, check_entries, long_sentences, read_index, summarize
from refer.check_files import check_masks_and_images
from refer.refer import REFER
from utils import log, write_json


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="check_dataset.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER",
                        help="holds DATASET/ and images/ (default: ./refer/data/; its README shows the layout)")
    parser.add_argument("--dataset", default="rrsisd", metavar="NAME|FOLDER",
                        help="a known data set, or the folder of one of your own (default: rrsisd)")
    parser.add_argument("--splitBy", default="unc", help="way of splitting the data set (default: unc)")
    parser.add_argument("--max_tokens", type=tokens, metavar="N",
                        help="list sentences of more tokens, [CLS] and [SEP] included (default: the data set's own)")
    parser.add_argument("--bert_tokenizer", default="", metavar="FOLDER",
                        help="count its tokens (default: words and punctuation marks, which are fewer)")
    parser.add_argument("--json", metavar="FILE", help="also write the result to this file")
    parser.add_argument("--no_images", action="store_true", help="do not look at image files")
    parser.add_argument("--examples", default=5, type=count, metavar="N",
                        help="examples shown of each kind (default: 5)")
    parser.add_argument("-j", "--workers", default=min(8, os.cpu_count() or 1), type=whole(0, 1024), metavar="N",
                        help="processes that decode masks and images (default: one per core, at most 8; 0: this one)")
    pictures = parser.add_argument_group("contact sheet")
    pictures.add_argument("--pictures", metavar="FILE", help="also draw some refs, with their masks, as this PNG")
    pictures.add_argument("--samples", default=16, type=positive, metavar="N",
                          help="number of refs that are drawn (default: 16)")
    pictures.add_argument("--seed", default=0, type=count, help="seed of the choice of refs (default: 0)")
    pictures.add_argument("--split", default="", help="draw refs of this split (default: of all splits)")
    return parser


def collect(findings: Iterable[Finding], examples: int) -> dict[str, dict[str, Any]]:
    """{"faults", "notes"}, each {kind: {"count", "meaning", "examples"}} with the first `examples` messages."""
    collected: dict[str, dict[str, Any]] = {"faults": {}, "notes": {}}
    for finding in findings:
        group, meanings = ("faults", FAULTS) if finding.is_fault else ("notes", NOTES)
        entry = collected[group].setdefault(
            finding.kind, {"count": 0, "meaning": meanings[finding.kind], "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < examples:
            entry["examples"].append(finding.message)
    return collected


def show(result: dict[str, Any]) -> None:
    """Prints faults, notes and the summary, `result` being what --json writes."""
    for group, label in (("faults", "FAULT"), ("notes", "note")):
        for kind, entry in result[group].items():
            log(f"{label}: {kind}, {entry['count']:,} ({entry['meaning']})")
            for example in entry["examples"]:
                log(f"    {example}")
            if 0 < len(entry["examples"]) < entry["count"]:
                log(f"    … and {entry['count'] - len(entry['examples']):,} more")
    summary = result["summary"]
    unit = "sentences" if summary["published_sentences"] else "refs"
    published = summary["published_sentences"] or summary["published"] or {}
    left_out = summary["refs_in_file"] - summary["refs"]
    log(f"{result['dataset']} ({result['splitBy']}): {describe(summary)}"
          + (f", {summary['no_target']:,} refs without a target" if summary["no_target"] else "")
          + (f"; {left_out:,} refs are left out for their faults" if left_out else ""))
    for split in dict.fromkeys([*published, *summary["splits"]]):
        counts = summary["splits"].get(split, {"refs": 0, "sentences": 0, "images": 0})
        log(f"    {split}: {describe(counts)}"
              + (f"; published: {published.get(split, 0):,}{' sentences' if unit == 'sentences' else ''}"
                 if published else ""))
    show_categories(summary["categories_by_split"])
    if published:
        as_published = published == {split: counts[unit] for split, counts in summary["splits"].items()}
        log(f"published: {sum(published.values()):,} {unit} in all; this is "
              + ("the same" if as_published else "a part, or another version, which is no fault"))
    faults, notes = (sum(entry["count"] for entry in result[group].values()) for group in ("faults", "notes"))
    log(f"{faults:,} faults, {notes:,} notes" + ("" if result["images_checked"] else "; images were not looked at"))


def show_categories(refs_of: dict[str, dict[str, int]]) -> None:
    """Prints {category: {split: refs}} as a table, and below it the categories without refs."""
    used = {name: counts for name, counts in refs_of.items() if any(counts.values())}
    if used:
        title, splits = "refs per category", list(next(iter(used.values())))
        width = max(len(title), *(4 + len(name) for name in used))
        log(f"{title:{width}}" + "".join(f"{column:>8}" for column in (*splits, "all")))
        for name, counts in used.items():
            log(f"    {name:{width - 4}}" + "".join(f"{n:8,}" for n in (*counts.values(), sum(counts.values()))))
    if len(used) < len(refs_of):
        log("no refs: " + ", ".join(name for name in refs_of if name not in used))


def describe(counts: dict[str, int]) -> str:
    return f"{counts['refs']:,} refs, {counts['sentences']:,} sentences, {counts['images']:,} images"


def run(args: argparse.Namespace) -> int:
    """Checks, prints, and returns the exit status. Raises UserError for what cannot be read at all."""
    index, refused = read_index(args.refer_data_root, args.dataset, args.splitBy)
    max_tokens = args.max_tokens or index.layout.max_tokens
    drawn = draw_pictures(index, args) if args.pictures else ""  # first: a FILE may be unwritable
    findings = chain(refused, check_entries(index), long_sentences(index, max_tokens, words_by(args.bert_tokenizer)),
                     check_masks_and_images(index, not args.no_images, args.workers))
    result = {"dataset": index.dataset, "splitBy": index.splitBy, "format": index.format, "max_tokens": max_tokens,
              "refer_data_root": str(args.refer_data_root),
              "images_checked": not args.no_images, **collect(findings, args.examples), "summary": summarize(index)}
    show(result)
    if index.is_own:
        said = {"title": index.layout.title, "licence": index.layout.licence, "cite": index.layout.citation}
        log("; ".join(f"{what}: {text or 'not stated'}" for what, text in said.items()))
    if drawn:
        log(drawn)
    if args.json:
        write_json(Path(args.json), result)
    return 1 if result["faults"] else 0


def words_by(tokenizer: str) -> Callable[[str], list[str]]:
    """A function that cuts a sentence into words: by a folder's tokenizer or, for '', into words and marks."""
    if not tokenizer:
        return lambda sentence: re.findall(r"\w+|[^\w\s]", sentence.lower())
    from bert import load_tokenizer  # takes seconds
    loaded = load_tokenizer(tokenizer)
    return lambda sentence: loaded.encode(sentence, add_special_tokens=False).tokens


def draw_pictures(index: REFER, args: argparse.Namespace) -> str:
    """Writes the contact sheet and returns the message about it. Raises UserError if it cannot be written."""
    from tools.ref_sheet import choose, draw_refs, save_sheet  # takes seconds, and only pictures need it
    refs = choose(index, args.samples, args.seed, args.split)
    if not refs:
        return "no ref is sound enough to be drawn"
    save_sheet(draw_refs(index, refs), Path(args.pictures))
    return f"{len(refs)} refs with their masks: {Path(args.pictures).resolve()}"


def main(arguments: list[str] | None = None) -> int:
    args = get_parser().parse_args(arguments)
    with user_errors("check_dataset.py"):
        return run(args)


if __name__ == "__main__":
    sys.exit(main())

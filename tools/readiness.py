"""What a training run starts from, looked for before it is started: the data set, the weights, packages and GPUs.

Each check returns lines: what is found, and what is missing. Nothing is fetched.
"""
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from bert.adapters import PACKAGE
from bert.encoder import WEIGHT_FILES
from bert.phrases import PhraseMarker
from lib.segmentation import PARTS
from refer.check import read_index, summarize
from utils import UserError, sha256_of


def find_gpus() -> list[tuple[str, int]]:
    """Name and bytes of memory of each GPU that PyTorch sees."""
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [(gpu.name, gpu.total_memory) for gpu in found]


def check_data(args: Namespace, other_counts: bool) -> tuple[list[str], list[str]]:
    """What is found of the data set, and what is missing, a line each."""
    try:
        index, faults = read_index(args.refer_data_root, args.dataset, args.splitBy)
    except UserError as error:
        return [], [f"data: {error}"]
    facts, missing, summary = [], [], summarize(index)
    if faults:
        missing.append(f"data: {len(faults)} faults in the entries, the first: {faults[0].message}; "
                       "tools/check_dataset.py lists them")
    unit = "sentences" if summary["published_sentences"] else "refs"
    published = summary["published_sentences"] or summary["published"] or {}
    splits = index.layout.splits[index.splitBy]
    counts = {split: summary["splits"].get(split, {}).get(unit, 0) for split in splits}
    for split in splits:
        if not counts[split]:
            missing.append(f"data: the split {split} of {index.dataset} is empty ({index.refs_path})")
        elif published and counts[split] != published.get(split) and not other_counts:
            missing.append(f"data: {split} of {index.dataset} has {counts[split]:,} {unit}, published are "
                           f"{published.get(split, 0):,}; get the published files, or give --other_counts")
    facts.append(f"data: {', '.join(f'{split} {count:,}' for split, count in counts.items())} {unit}, "
                 + ("as published" if published == counts else "not as published" if published else
                    "whose published number is not known here"))
    wanted = {index.image_path(ref): None for ref in index.Refs.values()}
    wanted |= {path: None for ref in index.Refs.values() if (path := index.mask_path(ref))}
    lost = [path for path in wanted if not Path(path).is_file()]
    if lost:
        missing.append(f"data: {len(lost):,} of {len(wanted):,} pictures, the first is {lost[0]}; refer/data/README.md "
                       "says where to get them")
    facts += [f"data: {path}, SHA-256 {sha256_of(path)}" for path in index.annotation_files]
    return facts, missing


def check_weights(args: Namespace) -> tuple[list[str], list[str]]:
    """What is found of the weights that training starts from, and what is missing, a line each."""
    facts, missing = [], []
    where = "pretrained_weights/README.md says where to get it"
    words = ((("--text_encoder", args.text_encoder, WEIGHT_FILES),) if args.text_encoder else
             (("--ck_bert", args.ck_bert, WEIGHT_FILES),
              ("--bert_tokenizer", args.bert_tokenizer, ("vocab.txt", "tokenizer.json"))))
    for flag, source, kinds in (("--pretrained_swin_weights", args.pretrained_swin_weights or "", ()), *words):
        path = Path(source)
        if flag == "--bert_tokenizer" and source == args.ck_bert and not path.is_dir() and missing:
            continue   # the line above is about both
        if not source:
            facts.append(f"weights: {flag} is empty: random ones")
        elif path.is_dir():
            files = [path / name for name in kinds if (path / name).is_file()]
            facts += [f"weights: {file}, SHA-256 {sha256_of(file)}" for file in files[:1]]
            if not files and kinds == WEIGHT_FILES and (path / "config.json").is_file():
                facts.append(f"weights: {path} has a configuration alone: random ones")
            elif not files:
                missing.append(f"weights: {flag} {source}: the folder has none of {', '.join(kinds)}")
        elif path.is_file():
            with path.open("rb") as file:
                pointer = file.read(20).startswith(b"version https://git")
            if pointer:
                missing.append(f"weights: {flag} {source} is a pointer of Git LFS and not the file: `git lfs pull`")
            facts.append(f"weights: {source}, SHA-256 {sha256_of(path)}")
        elif cached := in_cache(source, kinds):
            facts.append(f"weights: {flag} {source}, {cached}")
        elif flag == "--pretrained_swin_weights" and not source.startswith("timm:"):
            missing.append(f"weights: {flag}: there is no file {source}; {where}")
        else:
            missing.append(f"weights: {flag} {source} is no folder, and this machine's cache of the hub lacks it; "
                           f"`hf download {source.replace('timm:', 'timm/')}` fetches it, or {where}")
    return facts, missing


def in_cache(source: str, names: Sequence[str]) -> str:
    """The file of a hub's repository (or `timm:NAME`) in this machine's cache with its SHA-256, or ''."""
    for name in names or ("model.safetensors",):
        try:
            path = try_to_load_from_cache(source.replace("timm:", "timm/"), name)
        except HFValidationError:   # a path
            return ""
        if isinstance(path, str):
            return f"{name} of the cache, SHA-256 {sha256_of(path)}"
    return ""


def check_packages(args: Namespace) -> tuple[list[str], list[str]]:
    """Nothing found, and what is missing: nltk for networks that read the phrases of a sentence, peft for adapters."""
    missing = []
    if any(PARTS[place][getattr(args, place)].reads_phrases for place in PARTS):
        try:
            PhraseMarker(())
        except UserError as error:
            missing.append(f"packages: {error}")
    if args.text_lora and find_spec("peft") is None:
        missing.append(f'packages: --text_lora needs peft: pip install --upgrade "{PACKAGE}"')
    return [], missing

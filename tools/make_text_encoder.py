"""Writes a small text encoder whose vocabulary is the words of a data set's training sentences.

It serves a machine without network, or a first try. It has no weights; a nano network trains it from scratch. Words
that it lacks are spelled letter by letter. The pretrained BERT gives far better results: pretrained_weights/README.md.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert.from_scratch import vocabulary, words_of, write_text_encoder
from data import read_refs
from distributed import user_errors
from utils import UserError


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refer_data_root", default="./refer/data/", metavar="FOLDER", help="default: ./refer/data/")
    parser.add_argument("--dataset", default="rrsisd", metavar="NAME|FOLDER",
                        help="a known data set, or the folder of one of your own (default: rrsisd)")
    parser.add_argument("--splitBy", default="unc", help="default: unc")
    parser.add_argument("--out", required=True, metavar="FOLDER",
                        help="new folder, to be given as --ck_bert and --bert_tokenizer")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    with user_errors("make_text_encoder.py"):
        refs, folder = read_refs(args.refer_data_root, args.dataset, args.splitBy), Path(args.out)
        words = words_of(sentence["raw"] for row in refs.rows("train") for sentence in refs.ref(int(row))["sentences"])
        try:
            write_text_encoder(folder, words)
        except FileExistsError as error:
            raise UserError(f"--out {folder} exists already: give another name, or remove it first") from error
        except OSError as error:
            raise UserError(f"--out {folder} cannot be written: {error}") from error
        print(f"Wrote {folder}, a text encoder without weights that knows {len(vocabulary(words))} tokens: "
              f"--ck_bert {folder} --bert_tokenizer {folder}")


if __name__ == "__main__":
    main()

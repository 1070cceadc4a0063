"""A small NLTK_DATA folder for tests, in the layout of nltk's own: a tagger that knows the words listed here.

nltk's data cannot be downloaded where tests run. Tokenizer, tagger and chunker are nltk's own; the tagger's data is a
dictionary alone, so that no test may use a word that is not in it, and the splitter of sentences knows no abbreviation.
"""
import json
from pathlib import Path

WORDS = {
    "DT": "a an A An the The", "IN": "on at in near above below of", "VBZ": "is", "TO": "to",
    "JJ": "far white gray red orange yellow green blue brown large small left right upper lower",
    "JJR": "larger", "VBD": "colored", "NNS": "ships courts",
    "NN": "airplane airport baseball bridge bottom car chimney corner court dam field ground image middle overpass "
          "ship storage tank tennis top track vehicle",
}
FOLDERS = {"punkt_tab": "tokenizers", "averaged_perceptron_tagger_eng": "taggers"}


def write_nltk_data(folder: Path, lacking: str = "") -> None:
    """Writes the folder's files, but for one of `FOLDERS`."""
    punkt, tagger = (folder / kind / name for name, kind in FOLDERS.items())
    if lacking != "punkt_tab":
        (punkt / "english").mkdir(parents=True)
        for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
            (punkt / "english" / name).write_text("")
    if lacking != "averaged_perceptron_tagger_eng":
        tagger.mkdir(parents=True)
        tags = {word: tag for tag, words in WORDS.items() for word in words.split()}
        for kind, content in (("weights", {}), ("tagdict", tags), ("classes", sorted(WORDS))):
            (tagger / f"averaged_perceptron_tagger_eng.{kind}.json").write_text(json.dumps(content))

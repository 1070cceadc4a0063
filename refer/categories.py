"""Rules that find a phrase's category, for data sets whose files name none, and the class names of sentences."""
import re
from collections.abc import Iterable, Mapping
from functools import cache

OTHER = "other"  # a phrase that names no category

# Categories by id, and the other words that mean them.
RULES: dict[str, tuple[tuple[str, ...], Mapping[str, str]]] = {
    "refsegrs": (("road", "vehicle", "car", "van", "building", "truck", "trailer", "bus", "road marking", "bikeway",
                  "sidewalk", "tree", "low vegetation", "impervious surface"), {}),
    "risbench": (
        ("expressway service area", "expressway toll station", "ground track field", "basketball court",
         "container crane", "roundabout", "windmill", "overpass", "stadium", "bridge", "soccer ball field",
         "baseball diamond", "train station", "golf field", "airport", "harbor", "dam", "ship", "helipad", "vehicle",
         "chimney", "airplane", "helicopter", "tennis court", "storage tank", "swimming pool"),
        {"plane": "airplane", "aircraft": "airplane", "baseball field": "baseball diamond", "car": "vehicle",
         "truck": "vehicle", "bus": "vehicle", "vessel": "ship", "boat": "ship", "golf course": "golf field",
         "dock": "harbor", "pier": "harbor", "soccer field": "soccer ball field", "cooling tower": "chimney",
         "toll station": "expressway toll station"}),
}

# The names of a data set's classes as FIANet's word masks look for them in its sentences (see `bert.phrases`).
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "rrsisd": ("airplane", "airport", "golf field", "expressway service area", "baseball field", "stadium",
               "ground track field", "storage tank", "basketball court", "chimney", "tennis court", "overpass",
               "train station", "ship", "expressway toll station", "dam", "harbor", "bridge", "vehicle", "windmill"),
    **{rule: names for rule, (names, _) in RULES.items()},
}


def class_names(dataset: str, categories: Iterable[str]) -> tuple[str, ...]:
    """A data set's class names as sentences spell them: those known of it, else its categories in lower case."""
    return CLASS_NAMES.get(dataset) or tuple(category.lower() for category in categories)


def names_of(rule: str) -> tuple[str, ...]:
    """The categories of a rule by id, `OTHER` last."""
    return (*RULES[rule][0], OTHER)


def category_of_phrase(phrase: str, rule: str) -> str:
    """The category that a phrase names first, the longer of two at one position, or `OTHER` if it names none.

    A plural counts, and so does a name whose words are joined by a hyphen or by nothing.
    """
    pattern, meaning = _compiled(rule)
    found = pattern.search(phrase.lower())
    return meaning[re.sub(r"[\s-]", "", found[1])] if found else OTHER


@cache
def _compiled(rule: str) -> tuple[re.Pattern[str], dict[str, str]]:
    names, aliases = RULES[rule]
    meaning = {**{name: name for name in names}, **aliases}
    longest_first = sorted(meaning, key=len, reverse=True)
    spelt = "|".join(name.replace(" ", r"[\s-]*") for name in longest_first)
    return re.compile(rf"\b({spelt})(?:e?s)?\b"), {name.replace(" ", ""): own for name, own in meaning.items()}

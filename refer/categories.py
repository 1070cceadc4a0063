"""Categories of phrases, for data sets whose files name none: rules over words."""
import re
from collections.abc import Mapping
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


def names_of(rule: str) -> tuple[str, ...]:
    """The categories of a rule by id, `OTHER` last."""
    return (*RULES[rule][0], OTHER)


def category_of_phrase(phrase: str, rule: str) -> str:
    """The category that a phrase names first, by position; of two at one place the longer; else `OTHER`.

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

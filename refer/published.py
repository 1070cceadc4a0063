"""Whether a split has the size that its data set's authors published. This module imports no other package."""
from refer.layouts import DATASETS


def other_size(dataset: str, split_by: str, split: str, refs: int, sentences: int) -> str:
    """A sentence that says how a split differs in size from the published one; '' if it does not, or if none is known.

    `refs` and `sentences` are the numbers of this split.
    """
    layout = DATASETS.get(dataset)
    if layout is None:
        return ""
    published = layout.published_refs.get(split_by, {}).get(split)
    here, unit = refs, "refs"
    if published is None:
        published, here, unit = layout.published_sentences.get(split), sentences, "sentences"
    if published in (None, here):
        return ""
    return (f"{layout.title}'s {split} split has {published:,} {unit}, this one {here:,}: published figures are not of "
            "these samples")

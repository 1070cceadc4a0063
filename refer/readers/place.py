"""Where a data set's files lie."""
import os
from dataclasses import dataclass

from refer.layouts import Layout
from refer.own import SPLITS


@dataclass(frozen=True)
class Place:
    """A data set under one way of splitting it, below a data root."""

    data_root: str | os.PathLike
    dataset: str
    layout: Layout
    split_by: str

    @property
    def folder(self) -> str:
        """Folder of its annotation files."""
        return os.path.join(self.data_root, self.layout.folder or self.dataset)

    @property
    def image_dir(self) -> str:
        """Folder of its images."""
        return os.path.join(self.data_root, self.layout.image_folder)

    def files_of_splits(self, pattern: str) -> dict[str, str]:
        """{split: path} of the files in its folder that `pattern` names with {split}."""
        paths = {split: os.path.join(self.folder, pattern.format(split=split)) for split in SPLITS}
        return {split: path for split, path in paths.items() if os.path.isfile(path)}

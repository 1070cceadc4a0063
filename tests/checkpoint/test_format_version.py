"""Files of newer code are refused by their number; files without one are of the first version."""
import json

import pytest
import torch

from lib.checkpoint import read_checkpoint
from lib.checkpoint.settings import describe_model
from lib.evaluation.result_files import read_results
from lib.segmentation import ModelConfig
from tests.conftest import TEXT
from utils import UserError


@pytest.mark.parametrize("version", [2, 0, "1"])
def test_a_newer_checkpoint_or_result_is_one_line(tmp_path, version):
    checkpoint, results = tmp_path / "new.pth", tmp_path / "new.json"
    torch.save({"format_version": version, "model": {}}, checkpoint)
    results.write_text(json.dumps({"format_version": version, "samples": []}))
    for read, path in ((read_checkpoint, checkpoint), (read_results, str(results))):
        with pytest.raises(UserError, match=rf"new\.\w+ has format version {version!r}, and this code reads versions "
                                            "up to 1: take the code that wrote it, or a newer one"):
            read(path)


def test_what_is_written_now_has_the_version_and_older_files_need_none(tokenizer, tmp_path):
    config = ModelConfig("lavt", "nano", 4, 64, (1, 1, 1, 1), 0.0, TEXT)
    assert describe_model(config, tokenizer)["format_version"] == 1
    torch.save({"model": {}}, path := tmp_path / "old.pth")
    assert read_checkpoint(path) == {"model": {}}

"""What the tests of text encoders share."""
from pathlib import Path

import pytest

from tests.bert.encoder_folders import save_encoder, save_tokenizer


@pytest.fixture(scope="package")
def clip(tmp_path_factory) -> Path:
    """The folder of a small CLIP with random weights and its tokenizer. Tests only read it."""
    folder = tmp_path_factory.mktemp("clip")
    save_encoder(folder, "clip")
    save_tokenizer(folder, "clip")
    return folder

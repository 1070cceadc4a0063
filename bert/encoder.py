"""BERT as the text encoder: its configuration, its weights, its last hidden state."""
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from utils import UserError

BASE_UNCASED = "bert-base-uncased"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class TextEncoder(nn.Module):
    """BERT without a pooler: token_ids, token_mask (B, N) int64 -> words (B, N, L), L = `config.hidden_size`.

    Without `dropout_in_training` it stays in evaluation mode while the network around it trains; its weights train
    all the same.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout_in_training = True

    def train(self, mode: bool = True) -> "TextEncoder":
        """As `nn.Module.train`, with BERT's dropouts only if they are wanted."""
        return super().train(mode and self.dropout_in_training)

    @property
    def config(self) -> BertConfig:
        return self.bert.config

    @property
    def width(self) -> int:
        """L, channels of a word."""
        return self.config.hidden_size

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        # A mask that is 4-D already is used as it is; a 2-D one would cost a look at its values.
        mask = token_mask[:, None, None, :].bool()
        return self.bert(token_ids, attention_mask=mask).last_hidden_state


def load_text_config(source: str) -> BertConfig:
    """The configuration named by `--ck_bert`: a folder with config.json, or a name of the Hugging Face hub.

    `bert-base-uncased` needs no file: its configuration is transformers' default. Raises `UserError` when
    there is no such folder and the hub does not answer.
    """
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise UserError(f"--ck_bert {source}: the folder has no config.json; a text encoder's folder holds "
                            f"config.json and one of {', '.join(WEIGHT_FILES)}")
    elif source == BASE_UNCASED:
        return BertConfig()
    try:
        return BertConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(not_loadable("--ck_bert", source)) from error


def load_text_weights(encoder: TextEncoder, source: str) -> bool:
    """Copies the weights of `source` (see `load_text_config`) into `encoder`, every key accounted for.

    Returns False, leaving `encoder` as it is, for a folder that has a configuration but no weights (a
    text encoder to be trained from scratch). Raises `UserError` when the weights cannot be had or do not fit.
    """
    if Path(source).is_dir() and not any((Path(source) / name).is_file() for name in WEIGHT_FILES):
        return False
    try:
        pretrained, report = BertModel.from_pretrained(source, add_pooling_layer=False, dtype=torch.float32,
                                                       output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(not_loadable("--ck_bert", source)) from error
    if report["missing_keys"]:
        raise UserError(f"--ck_bert {source}: the weights lack {len(report['missing_keys'])} entries of BERT, "
                        f"the first is {sorted(report['missing_keys'])[0]}")
    encoder.bert.load_state_dict(pretrained.state_dict())
    return True


def not_loadable(flag: str, source: str) -> str:
    """The text of the error for a model that is neither a folder nor to be had from the hub."""
    return (f"{flag} {source}: no such folder, and the Hugging Face hub did not provide it; see "
            f"pretrained_weights/README.md for what to download, then give the folder's path")

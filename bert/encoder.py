"""BERT as the text encoder: its configuration, its weights, its last hidden state."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import find_adapter_config_file, logging

from bert.adapters import beside_adapters, layers_with_adapters
from schema import Range, Rule, check, shown
from utils import UserError, hub, read_json

BASE_UNCASED = "bert-base-uncased"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
OTHER_WEIGHTS = ("*.h5", "*.msgpack", "*.ckpt*", "*.onnx", "*.index.json")   # TensorFlow's, Flax's, …, a file in parts
LFS_POINTER = b"version https://git-lfs"


Report = dict[str, Any]   # missing_keys: names; mismatched_keys: (name, the file's shape, the needed shape)


def load_pretrained(kind: Any, source: str, local_only: bool, **options: Any) -> tuple[PreTrainedModel, Report]:
    """A model of a class of transformers with the weights of a folder or a hub name, and a report on them.

    Raises `UserError` if they come with adapters of peft, which name another model that would be read in their place.
    """
    if found := find_adapter_config_file(source, local_files_only=local_only):
        raise UserError(f"{source} has adapters of peft ({Path(found).name}): merge them into the weights first "
                        "(peft's merge_and_unload), and save these")
    return kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
                                local_files_only=local_only, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' reports on files, a line for each weight of another part; what is missing is an error."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@dataclass
class TextSettings:
    """The entries that BERT's configuration may have, in a folder or a checkpoint, as `BertConfig` names them."""

    vocab_size: Annotated[int, Range(1, 2**20)] = 30522
    hidden_size: Annotated[int, Range(1, 8192)] = 768
    num_hidden_layers: Annotated[int, Range(0, 96)] = 12
    num_attention_heads: Annotated[int, Range(1, 128)] = 12
    intermediate_size: Annotated[int, Range(1, 32768)] = 3072
    hidden_act: Annotated[str, Rule(lambda name: name in ACT2FN, "the name of an activation")] = "gelu"
    hidden_dropout_prob: Annotated[float, Range(0, 1)] = 0.1
    attention_probs_dropout_prob: Annotated[float, Range(0, 1)] = 0.1
    max_position_embeddings: Annotated[int, Range(1, 2**16)] = 512
    type_vocab_size: Annotated[int, Range(1, 16)] = 2
    initializer_range: Annotated[float, Range(0, 1)] = 0.02
    layer_norm_eps: Annotated[float, Range(0, 1)] = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: Literal["absolute"] = "absolute"   # the other kinds make another network
    is_decoder: Literal[False] = False
    add_cross_attention: Literal[False] = False

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide a hidden_size of {self.hidden_size}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is outside the vocabulary of {self.vocab_size} words")


def bert_config(values: dict[str, Any], source: str) -> BertConfig:
    """BERT's configuration from plain data. Entries that `TextSettings` lacks do not change the network.

    Raises `UserError`, which names the `source`, for values that no text encoder can have.
    """
    check(TextSettings, values, source)
    # JSON writes 0.0 as 0 at times; BertConfig accepts no whole number where it expects a fraction.
    settings: dict[str, Any] = {field.name: float(values[field.name]) if isinstance(field.default, float)
                                else values[field.name] for field in fields(TextSettings) if field.name in values}
    return BertConfig(**settings)


class TextEncoder(nn.Module):
    """BERT without a pooler: token_ids, token_mask (B, N) int64 -> words (B, N, L), L = `config.hidden_size`.

    If the token mask of a sentence is 0 throughout, the encoder attends to every token, as if the mask were 1.
    Unless `dropout_in_training` is set, BERT's dropouts stay off while the network trains. Its weights always train.
    """

    name = "BERT"

    def __init__(self, config: BertConfig):
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout_in_training = True

    def train(self, mode: bool = True) -> "TextEncoder":
        """Sets the mode as `nn.Module.train` does; without `dropout_in_training`, always to evaluation."""
        return super().train(mode and self.dropout_in_training)

    @property
    def network(self) -> PreTrainedModel:
        """The encoder as transformers has it."""
        return self.bert

    @property
    def layers(self) -> nn.ModuleList:
        """The layers, the first of which reads the embeddings."""
        return self.bert.encoder.layer

    @property
    def after_layers(self) -> nn.Module:
        """What follows the last layer; BERT has nothing there."""
        return nn.Identity()

    def pretrained(self, source: str, local_only: bool) -> tuple[dict[str, Tensor], Report]:
        """The weights of a folder or a hub name for `network`, and transformers' report on their names and shapes."""
        model, report = load_pretrained(BertModel, source, local_only, add_pooling_layer=False)
        return model.state_dict(), report

    @property
    def config(self) -> PreTrainedConfig:
        """The encoder's configuration."""
        return self.network.config

    @property
    def dim(self) -> int:
        """L, the number of channels of a word."""
        return self.config.hidden_size

    def forward(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        return self.bert(token_ids, attention_mask=self.attention_mask(token_mask)).last_hidden_state

    def attention_mask(self, token_mask: Tensor) -> Tensor:
        """The tokens that may be attended to: (B, N) int64 -> (B, 1, 1, N) bool."""
        real = token_mask.bool()
        # BERT subtracts the same large number from every masked score, so masking all tokens masks none.
        real = real | ~real.any(dim=-1, keepdim=True)
        # BERT uses a 4-D mask unchanged. It would inspect the values of a 2-D mask, and so wait for the GPU.
        return real[:, None, None, :]


def load_text_config(source: str) -> BertConfig:
    """The configuration named by `--ck_bert`: a folder with config.json, or a name of the Hugging Face hub.

    `bert-base-uncased` needs no file: its configuration is transformers' default. Raises `UserError` when
    there is no such folder, when the hub does not answer, and for an encoder of another type.
    """
    if source == BASE_UNCASED and not Path(source).is_dir():
        return BertConfig()
    values, named = read_config("--ck_bert", source)
    kind = values.get("model_type", "bert") if isinstance(values, dict) else "bert"
    if kind != "bert":   # RoBERTa's weights would load into BERT and compute something else
        raise UserError(f"{named} describes a text encoder of the type {shown(kind)}; this code has BERT's alone under "
                        f"--ck_bert: give --text_encoder {source}, which takes other types, too")
    return bert_config(values, named)


def read_config(flag: str, source: str) -> tuple[Any, str]:
    """The contents of config.json in a folder or under a hub name, and the flag with its place for messages.

    Raises `UserError` when they cannot be had.
    """
    if Path(source).is_dir():
        if not (file := Path(source) / "config.json").is_file():
            raise UserError(f"{flag} {source}: the folder has no config.json; a text encoder's folder holds "
                            f"config.json and one of {', '.join(WEIGHT_FILES)}")
        return read_json(file), f"{flag} {file}"
    # The dict as it is: `from_pretrained` would make a BERT of another kind's configuration.
    return hub.load(flag, source, lambda local: BertConfig.get_config_dict(
        source, local_files_only=local)[0]), f"{flag} {source}"


def load_text_weights(encoder: TextEncoder, source: str, flag: str = "--ck_bert") -> bool:
    """Copies the weights of `source`, a folder or a hub name, into `encoder` and accounts for every key.

    Returns False, leaving `encoder` as it is, for a folder that has a configuration but no weights (a
    text encoder to be trained from scratch). Raises `UserError`, which names the `flag`, when the weights cannot be had
    or do not fit.
    """
    folder = Path(source)
    if folder.is_dir():
        files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
        if not files:
            if others := sorted(path.name for pattern in OTHER_WEIGHTS for path in folder.glob(pattern)):
                raise UserError(f"{flag} {source}: its weights are {others[0]}, of another program; needed is "
                                f"{' or '.join(WEIGHT_FILES)}, or a folder without weights for random ones")
            return False
        if pointer := next((path for path in files if path.read_bytes()[:len(LFS_POINTER)] == LFS_POINTER), None):
            raise UserError(f"{flag} {source}: {pointer.name} is a pointer of Git LFS and not the file: fetch "
                            "it with `git lfs pull`, or download it")
    with quiet():
        weights, report = hub.load(flag, source, lambda local: encoder.pretrained(source, local))
    if reshaped := sorted(report["mismatched_keys"]):
        name, given, needed = reshaped[0]
        raise UserError(f"{flag} {source}: {len(reshaped)} of the weights have another shape than the configuration "
                        f"says: {name} is {tuple(given)}, needed {tuple(needed)}; give the configuration that belongs "
                        "to the weights")
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{flag} {source}: the weights lack {len(missing)} entries of {encoder.name}, the first is "
                        f"{missing[0]}")
    own = encoder.network.state_dict()   # new adapters stay as they are
    encoder.network.load_state_dict({**own, **beside_adapters(weights, layers_with_adapters(own))})
    return True

"""Folders of small text encoders with random weights, as transformers writes them, and tokenizers for them."""
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SIZES = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32, "max_position_embeddings": 40}
DISTIL = {"vocab_size": 16, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 40}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 16}
FEW_WORDS = ("a", "gray", "left", "on", "ship", "the")

# model_type: the class that is saved, its sizes, what frames a sentence, the padding
KINDS: dict[str, tuple[str, dict, str, str]] = {
    "bert": ("Bert", SIZES, "[CLS] $A [SEP]", "[PAD]"),
    "distilbert": ("DistilBert", DISTIL, "[CLS] $A [SEP]", "[PAD]"),
    "electra": ("Electra", {**SIZES, "embedding_size": 8}, "[CLS] $A [SEP]", "[PAD]"),
    "roberta": ("Roberta", SIZES, "<s> $A </s>", "<pad>"),
    "xlm-roberta": ("XLMRoberta", SIZES, "<s> $A </s>", "<pad>"),
    "mpnet": ("MPNet", SIZES, "<s> $A </s>", "<pad>"),
    "modernbert": ("ModernBert", {**SIZES, "local_attention": 4, "layer_types": ["full_attention", "sliding_attention"],
                                  "pad_token_id": 0}, "[CLS] $A [SEP]", "[PAD]"),
    "clip": ("CLIP", {**SIZES, "eos_token_id": 2}, "<|startoftext|> $A <|endoftext|>", "<|endoftext|>"),
    "siglip": ("Siglip", SIZES, "$A </s>", "</s>"),
    "siglip2": ("Siglip2", SIZES, "$A </s>", "<pad>"),
}
SPECIAL = {"[PAD]": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],   # by what pads
           "<pad>": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
           "<|endoftext|>": ["<unk>", "<|startoftext|>", "<|endoftext|>"], "</s>": ["<unk>", "</s>"]}


def save_encoder(folder: Path, kind: str, **sizes) -> torch.nn.Module:
    """Saves a small model with random weights and returns it: for CLIP and SigLIP the whole of it, not text alone."""
    name, usual, _, _ = KINDS[kind]
    sizes = {**usual, **sizes}
    torch.manual_seed(7)
    config = getattr(transformers, f"{name}Config")
    if kind in ("clip", "siglip", "siglip2"):
        vision = {**VISION, "num_patches": 4} if kind == "siglip2" else VISION
        sizes = {"text_config": sizes, "vision_config": vision}
    model = getattr(transformers, f"{name}Model")(config(**sizes)).eval()
    model.save_pretrained(folder)
    return model


def save_tokenizer(folder: Path, kind: str, words: Sequence[str] = FEW_WORDS, **settings) -> list[str]:
    """Saves a tokenizer of whole words, framed and padded as the kind's are; returns its vocabulary in order."""
    frame, pad = KINDS[kind][2:]
    vocabulary = [*SPECIAL[pad], *words]
    ids = {word: place for place, word in enumerate(vocabulary)}
    unknown = next(word for word in vocabulary if word in ("[UNK]", "<unk>"))
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIAL[pad])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(word, ids[word]) for word in frame.split() if word != "$A"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad, "unk_token": unknown, **settings}))
    return vocabulary

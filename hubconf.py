"""Entry points of `torch.hub.load(REPOSITORY, …)`; with source="local" REPOSITORY is a checkout."""
from typing import Any

dependencies = ["torch", "torchvision", "transformers", "tokenizers", "safetensors", "pycocotools"]


def predictor(source: str, **options: Any) -> Any:
    """A trained network as a `lib.predictor.Predictor`: `predictor.segment(image, sentence)`.

    `source` is a checkpoint, a model folder or the hub's USER/NAME; `options` are those of `Predictor`.
    """
    from lib.predictor import Predictor
    return Predictor.from_pretrained(source, **options)

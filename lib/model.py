"""The whole network: words and pixels in, the logits of the object meant out (the overview figure of both papers).

Shapes: B batch, S S' the image's height and width, N tokens, L width of the text encoder.
"""
import torch.nn.functional as F
from torch import Tensor, nn

from utils import UserError


class ReferringSegmenter(nn.Module):
    """RMSIN when it has a `cross_scale` module, LAVT when it has none.

    `cross_scale(features, words, word_mask)` lets the four maps interact before the decoder reads them. `image_size`
    is the side in pixels that the network was built for, or None if it takes any size, as LAVT does.
    """

    def __init__(self, text_encoder: nn.Module, backbone: nn.Module, decoder: nn.Module,
                 cross_scale: nn.Module | None = None, image_size: int | None = None):
        super().__init__()
        self.text_encoder = text_encoder
        self.backbone = backbone
        self.cross_scale = cross_scale
        self.decoder = decoder
        self.image_size = image_size

    def encode(self, image: Tensor, token_ids: Tensor, token_mask: Tensor) -> list[Tensor]:
        """The four language-aware maps (B, C, H, W) that the decoder reads, finest first."""
        height, width = image.shape[-2:]
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise UserError(f"this network was built for images of {self.image_size}×{self.image_size} px and was "
                            f"given {height}×{width} px: resize the image, or build and train with another --img_size")
        words = self.text_encoder(token_ids, token_mask)         # (B, N, L)
        features = self.backbone(image, words, token_mask)
        return features if self.cross_scale is None else self.cross_scale(features, words, token_mask)

    def forward(self, image: Tensor, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """Logits of background (class 0) and the referred object (class 1).

        image (B, 3, S, S') float, normalised with ImageNet's mean and standard deviation; token_ids and
        token_mask (B, N) int64, mask 1 for real tokens -> (B, 2, S, S') float. Raises `UserError` when an
        RMSIN is given another size than it was built for.
        """
        logits = self.decoder(self.encode(image, token_ids, token_mask))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)

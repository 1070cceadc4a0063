"""The whole network, from image and tokens to the logits of the referred object (the overview figure of both papers).

Shapes: B batch, S S' the image's height and width, N tokens, L width of the text encoder.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert import TextEncoder
from lib.backbone import Backbone
from lib.decoder import Decoder
from lib.object_position import Phrases
from utils import UserError


class ReferringSegmenter(nn.Module):
    """The frame of every model; the parts determine which model it is (`lib.segmentation.MODELS`).

    `cross_scale(features, words, word_mask)`, if present, lets the four maps interact before the decoder reads them.
    `image_size` is the side in pixels that the network is built for, or None if it takes any size, as LAVT does. A
    network with `reads_phrases`, such as FIANet, needs masks of the sentence's phrases at every call.
    """

    def __init__(self, text_encoder: TextEncoder, backbone: Backbone, decoder: Decoder,
                 cross_scale: nn.Module | None = None, image_size: int | None = None, reads_phrases: bool = False):
        super().__init__()
        self.text_encoder = text_encoder
        self.backbone = backbone
        self.cross_scale = cross_scale
        self.decoder = decoder
        self.image_size = image_size
        self.reads_phrases = reads_phrases

    def read(self, token_ids: Tensor, token_mask: Tensor, phrase_masks: Tensor | None) -> tuple[Tensor, Phrases | None]:
        """Encodes the words (B, N, L) and, if the network reads them, the phrases: arguments of `forward`.

        A phrase is the whole sentence encoded under the mask of the phrase. As in FIANet, sentence and phrases are
        encoded in one batch.
        """
        if not self.reads_phrases:
            return self.text_encoder(token_ids, token_mask), None
        if phrase_masks is None:
            raise UserError("this network reads a sentence's phrases: call it as model(image, token_ids, token_mask, "
                            "phrase_masks) with the masks of object and position, (B, 2, N)")
        masks = torch.cat([token_mask[:, None], phrase_masks], dim=1)                        # (B, 3, N)
        ids = token_ids[:, None].expand_as(masks)
        words = self.text_encoder(ids.flatten(0, 1), masks.flatten(0, 1)).unflatten(0, masks.shape[:2])
        return words[:, 0], (words[:, 1:], phrase_masks)

    def encode(self, image: Tensor, token_ids: Tensor, token_mask: Tensor,
               phrase_masks: Tensor | None = None) -> list[Tensor]:
        """The four language-aware maps (B, C, H, W) that the decoder reads, finest first: arguments of `forward`."""
        height, width = image.shape[-2:]
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise UserError(f"this network was built for images of {self.image_size}×{self.image_size} px and was "
                            f"given {height}×{width} px: resize the image, or build and train with another --img_size")
        words, phrases = self.read(token_ids, token_mask, phrase_masks)
        features = self.backbone(image, words, token_mask, phrases)
        return features if self.cross_scale is None else self.cross_scale(features, words, token_mask)

    def forward(self, image: Tensor, token_ids: Tensor, token_mask: Tensor,
                phrase_masks: Tensor | None = None) -> Tensor:
        """Logits of background (class 0) and the referred object (class 1).

        image (B, 3, S, S') float, normalised with ImageNet's mean and standard deviation; token_ids and
        token_mask (B, N) int64, mask 1 for real tokens; phrase_masks (B, 2, N) int64, 1 for the tokens of the object's
        name and of its position, all 0 without such tokens, used only by a network with `reads_phrases`
        -> (B, 2, S, S') float.

        Raises `UserError` if the image has another size than RMSIN is built for, or if phrase masks are missing.
        """
        logits = self.decoder(self.encode(image, token_ids, token_mask, phrase_masks))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=True)

"""MaskRIS's training (Lee et al., 2024) for any network: a second pass on a disturbed sample, distilled from the first.

    loss = ½ · loss(first pass, truth) + ½ · cross-entropy(second pass, softmax of the first pass's logits)

The two halves are the two passes of `Updater(passes=2)`, which averages them. Shapes: B batch, N tokens, S S' the
image's height and width.
"""
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from bert.tokenizer import mask_token
from utils import UserError

PATCH_PX, PATCH_SHARE = 32, 0.75                        # side of an image patch, share of hidden patches
TOKEN_SHARE, MASK_SHARE, RANDOM_SHARE = 0.15, 0.8, 0.1  # chosen tokens; of these masked, exchanged


class Disturbance:
    """Hides patches of images and replaces tokens of sentences at random.

    The draws come from torch's generators, which a resumed run restores. Raises `UserError` for a tokenizer without
    [MASK].
    """

    def __init__(self, tokenizer: Tokenizer):
        named = [tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")]
        framing = tokenizer.encode("").ids   # other encoders have other names for them
        self.kept = list(dict.fromkeys(token for token in (*named, *framing) if token is not None))
        name = mask_token(tokenizer)
        hidden = tokenizer.token_to_id(name) if name else None
        if hidden is None:
            raise UserError("--masked_pass needs a tokenizer with a token [MASK] or <mask>, which this one lacks: give "
                            "another --bert_tokenizer or --text_encoder, or leave the flag out")
        self.mask_token: int = hidden
        self.vocabulary = tokenizer.get_vocab_size()

    def __call__(self, image: Tensor, token_ids: Tensor, token_mask: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """The network's arguments with image and token_ids disturbed; token_mask and the others stay as they are."""
        return self.hide_patches(image), self.replace_tokens(token_ids, token_mask), token_mask, *others

    def hide_patches(self, image: Tensor) -> Tensor:
        """Sets each patch of 32 × 32 pixels to 0, the normalised mean, with probability 0.75: (B, 3, S, S') -> same."""
        height, width = image.shape[-2:]
        grid = (len(image), 1, -(-height // PATCH_PX), -(-width // PATCH_PX))
        shown = (torch.rand(grid, device=image.device) >= PATCH_SHARE).to(image.dtype)
        pixels = shown.repeat_interleave(PATCH_PX, dim=2).repeat_interleave(PATCH_PX, dim=3)
        return image * pixels[:, :, :height, :width]

    def replace_tokens(self, token_ids: Tensor, token_mask: Tensor) -> Tensor:
        """token_ids and token_mask (B, N) int64 -> (B, N) int64; each word's token is chosen with probability 0.15."""
        special = torch.zeros_like(token_ids, dtype=torch.bool)
        for token in self.kept:   # a tensor of them would have to be copied to the device, which waits
            special |= token_ids == token
        chosen = (torch.rand(token_ids.shape, device=token_ids.device) < TOKEN_SHARE) & (token_mask == 1) & ~special
        fate = torch.rand(token_ids.shape, device=token_ids.device)
        others = torch.randint_like(token_ids, self.vocabulary)
        exchanged = torch.where(fate < MASK_SHARE + RANDOM_SHARE, others, token_ids)
        return torch.where(chosen, torch.where(fate < MASK_SHARE, self.mask_token, exchanged), token_ids)


def taught_loss(second: Tensor, first: Tensor) -> Tensor:
    """Mean over pixels of the second pass's cross-entropy with the first pass's softmax; both (B, 2, S, S')."""
    return F.cross_entropy(second, first.detach().softmax(dim=1))

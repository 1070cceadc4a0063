"""Joint transforms of image and mask, and the preparation of the network's inputs."""
from functools import cache, lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BOX_SIDE_PX = 32
BOXES = (20, 60)  # smallest and largest number of black squares on an image


def resize(image: Image.Image, mask: np.ndarray, size_px: int) -> tuple[Tensor, Tensor]:
    """Resizes both to size_px × size_px, the image bilinearly, the mask by nearest neighbour, each from its own size.

    image RGB, mask (H, W) uint8 of 0 and 1 -> image (3, S, S) uint8, mask (S, S) uint8.
    """
    return resize_image(image, size_px), resize_mask(mask, size_px, size_px)


def resize_image(image: Image.Image, size_px: int) -> Tensor:
    """An RGB image of any size, bilinear: -> (3, S, S) uint8."""
    pixels = np.asarray(TF.resize(image, [size_px, size_px], InterpolationMode.BILINEAR))
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def resize_mask(mask: np.ndarray, height: int, width: int) -> Tensor:
    """Resizes a mask (H, W) uint8 of 0 and 1 by nearest neighbour: -> (height, width) uint8."""
    # Only the selected pixels are read, column by column as masks are stored in memory.
    rows, columns = nearest(mask.shape[0], height), nearest(mask.shape[1], width)
    return torch.from_numpy(np.ascontiguousarray(mask.T[columns][:, rows].T))


@lru_cache(maxsize=64)
def nearest(length: int, size: int) -> np.ndarray:
    """The index, among `length` pixels, that Pillow's nearest neighbour selects for each of `size`: (size,) int32."""
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[:, None])
    return np.asarray(ramp.resize((1, size), Image.Resampling.NEAREST))[:, 0]


def normalize(image: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) of 0 … 255 -> float32, normalised by ImageNet's mean and standard deviation."""
    # torchvision's `normalize` looks for zeros in the standard deviation, for which it waits for the device.
    mean, std = image_statistics(image.device)
    return (image.float() / 255).sub_(mean).div_(std)


@cache
def image_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and standard deviation, (3, 1, 1) each; copied only once, because a copy waits for the device."""
    with torch.inference_mode(False):   # tensors made in inference mode could not be used in training
        mean, std = (torch.tensor(numbers, device=device)[:, None, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std


def network_inputs(batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """The network's arguments, on `device`, from a batch of samples (see `data.dataset`).

    -> image (B, 3, S, S) float32, normalised; token ids and token mask (B, N) int64; phrase masks (B, 2, N) int64 if
    the samples have them.
    """
    image, *words = (batch[name].to(device, non_blocking=True)
                     for name in ("image", "token_ids", "token_mask", "phrase_masks") if name in batch)
    return normalize(image), *words


def add_random_boxes(image: Image.Image, generator: torch.Generator) -> Image.Image:
    """A copy with 20 to 60 black squares of 32 px (RMSIN's augmentation, before resizing).

    As in the original code, both coordinates of a corner are drawn from the image's *width* less 32; the parts of
    squares below a wide image are cut.
    """
    image = image.copy()
    count = int(torch.randint(BOXES[0], BOXES[1] + 1, (), generator=generator))
    corners = torch.randint(0, max(1, image.width - BOX_SIDE_PX + 1), (count, 2), generator=generator).tolist()
    for x, y in corners:
        image.paste(0, (x, y, x + BOX_SIDE_PX, y + BOX_SIDE_PX))
    return image

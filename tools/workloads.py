"""What tools/benchmark.py measures: forward pass, training step, evaluation and data loading, of this code and plain.

Each function makes the network or the loaders that the flags ask for and returns a function that does the work once,
and how many images it takes.
"""
import gc
from argparse import Namespace
from collections.abc import Callable

import torch
from torch import Tensor

from bert import load_tokenizer
from data import TrainSet, train_loader
from lib.accelerate import WholeBatches, accelerate, autocast, compiled, prepare_for_inference
from lib.evaluation.metrics import evaluate
from lib.losses import segmentation_loss
from lib.model import ReferringSegmenter
from lib.segmentation import build_model
from lib.training.masked_pass import Disturbance, taught_loss
from lib.training.optimizer import freeze_text, make_optimizer, recompute_activations
from lib.training.update_step import Updater
from refer.refer import REFER
from transforms import network_inputs
from utils import UserError
from utils.image_files import open_image

VOCABULARY = 90   # token ids below it are drawn


def make_batch(args: Namespace, size: int, device: torch.device, phrases: bool) -> dict[str, Tensor]:
    """Random pictures, words and masks as the loaders give them; phrase masks for a network that reads them."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, args.img_size, args.img_size)
    batch = {"image": torch.randint(0, 256, (size, 3, *shape[1:]), generator=generator, dtype=torch.uint8),
             "target": torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8),
             "token_ids": torch.randint(1, VOCABULARY, (size, args.max_tokens), generator=generator),
             "token_mask": torch.ones(size, args.max_tokens, dtype=torch.int64), "index": torch.arange(size)}
    if phrases:
        batch["phrase_masks"] = torch.randint(0, 2, (size, 2, args.max_tokens), generator=generator)
    return {key: value.to(device) for key, value in batch.items()}


def fresh_model(args: Namespace, device: torch.device, plain: bool) -> ReferringSegmenter:
    """The network that the flags ask for, with the same weights each time."""
    torch.manual_seed(0)
    model = build_model(args).to(device)
    return model if plain else accelerate(model, device, args.channels_last)


def forward(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that runs one forward pass in evaluation mode, and the images in it."""
    model = fresh_model(args, device, plain).eval()
    batch = make_batch(args, args.batch_size, device, model.reads_phrases)
    if not plain:
        prepare_for_inference(model, args.amp, args.fuse)
        if args.compile:
            model = compiled(model, device)

    @torch.inference_mode()
    def run() -> None:
        with autocast(device, "off" if plain else args.amp):
            model(*network_inputs(batch, device))
    return run, args.batch_size


def train(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that runs one training step, and the images in it."""
    model = fresh_model(args, device, plain).train()
    batch = make_batch(args, args.batch_size, device, model.reads_phrases)
    if plain:
        return plain_train(model, batch, args), args.batch_size
    return training_step(model, batch, args, device)[0], args.batch_size


def training_step(model: ReferringSegmenter, batch: dict[str, Tensor], args: Namespace,
                  device: torch.device) -> tuple[Callable[[], None], Updater]:
    """A function that runs one training step of a network in training mode as train.py does, and its updater."""
    freeze_text(model, args.bert_layers, args.train_embeddings, args.bert_dropout, args.text_layers)
    if args.checkpoint_activations:
        recompute_activations(model)
    optimizer, schedule = make_optimizer(model, args.lr, args.weight_decay, 10_000)
    updater = Updater(compiled(model, device) if args.compile else model, optimizer, schedule, device, args.amp,
                      passes=1 + args.masked_pass)
    disturb = Disturbance(load_tokenizer(args.bert_tokenizer)) if args.masked_pass else None

    def run() -> None:
        inputs = network_inputs(batch, device)
        logits = updater.forward(*inputs)
        updater.backward(segmentation_loss(logits, batch["target"].long(), args.loss))
        if disturb:
            updater.backward(taught_loss(updater.forward(*disturb(*inputs)), logits))
    return run, updater


def plain_train(model: ReferringSegmenter, batch: dict[str, Tensor], args: Namespace) -> Callable[[], None]:
    """A step of the original training loop: all parameters take a gradient, the loss is read, garbage is collected."""
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=args.weight_decay)

    def run() -> None:
        logits = model(*network_inputs(batch, batch["image"].device))
        loss = segmentation_loss(logits, batch["target"].long(), args.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        gc.collect()
        if batch["image"].is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
    return run


def evaluation(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that evaluates at least 16 random images: in batches, or one by one as in the original code."""
    model, images = fresh_model(args, device, plain).eval(), max(16, args.batch_size)
    size = 1 if plain else min(images, args.batch_size)
    batches = [make_batch(args, size, device, model.reads_phrases) for _ in range(images // size)]
    if not plain:
        prepare_for_inference(model, args.amp, args.fuse)
        if args.compile:
            model = WholeBatches(compiled(model, device))
    return lambda: evaluate(model, batches, device, "off" if plain else args.amp), images // size * size


def loading(args: Namespace, device: torch.device, plain: bool) -> tuple[Callable[[], None], int]:
    """A function that loads training samples: it decodes, resizes and collates them.

    It does so in this process, or in as many workers as `--workers` asks for if the flag is given.
    """
    if not args.data:
        raise UserError("loading needs --data FOLDER, a data root with the data set in it")
    refer = REFER(args.data, args.dataset, args.splitBy)
    tokenizer = load_tokenizer(args.bert_tokenizer)
    dataset = TrainSet(refer, "train", tokenizer, args.img_size, args.seed, packed="" if plain else args.packed)
    workers = args.workers if "workers" in args.given else 0
    count = min(len(dataset), 64 * max(1, workers))
    if plain:
        return lambda: plain_load(dataset, count), count
    batches = train_loader(dataset, args.batch_size, workers, False, 0, 1)
    batches.batch_sampler.samples = count
    return lambda: [None for _ in batches], count // args.batch_size * args.batch_size


def plain_load(dataset: TrainSet, count: int) -> None:
    """Like the original: whole mask decoded and converted, image and mask through torchvision, floats normalised."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    from transforms import IMAGENET_MEAN, IMAGENET_STD
    size = [dataset.size_px] * 2
    for row in dataset.refs.rows[:count].tolist():
        image = open_image(dataset.table.image_path(row)).convert("RGB")
        mask = Image.fromarray(dataset.table.mask(row), mode="P")
        pixels = TF.normalize(TF.to_tensor(TF.resize(image, size)), IMAGENET_MEAN, IMAGENET_STD)
        target = torch.as_tensor(TF.pil_to_tensor(TF.resize(mask, size, InterpolationMode.NEAREST)), dtype=torch.int64)
        torch.stack([pixels]), torch.stack([target])


WORKLOADS = {"forward": forward, "train": train, "evaluation": evaluation, "loading": loading}

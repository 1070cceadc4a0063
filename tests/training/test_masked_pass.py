"""MaskRIS's second pass: its masks, its target, and that a run with it resumes exactly."""
import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lib.training.masked_pass import Disturbance, taught_loss
from lib.training.optimizer import freeze_text, make_optimizer
from lib.training.update_step import Updater
from tests.conftest import make_inputs
from utils import UserError


@pytest.fixture(scope="module")
def disturb(tokenizer) -> Disturbance:
    return Disturbance(tokenizer)


def test_three_quarters_of_the_patches_are_hidden(disturb):
    torch.manual_seed(0)
    image = torch.ones(8, 3, 32 * 20, 32 * 19 + 7)    # the last column of patches is cut
    shown = disturb.hide_patches(image)
    assert shown.shape == image.shape and set(shown.unique().tolist()) == {0.0, 1.0}
    patches = shown[:, :, ::32, ::32]                  # (8, 3, 20, 20)
    assert torch.equal(patches.repeat_interleave(32, 2).repeat_interleave(32, 3)[..., :615], shown)   # whole squares
    assert torch.equal(patches[:, 0], patches[:, 2])   # all three channels
    hidden, deviation = 1 - patches[:, 0].mean().item(), math.sqrt(0.75 * 0.25 / 3200)
    assert abs(hidden - 0.75) < 4 * deviation


def test_tokens_of_words_are_replaced_and_no_others(disturb, tokenizer):
    torch.manual_seed(0)
    cls, sep, mask = (tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    word = tokenizer.token_to_id("ship")
    ids = torch.zeros(2000, 20, dtype=torch.int64)
    ids[:, 0], ids[:, 1:16], ids[:, 16] = cls, word, sep
    real = (torch.arange(20) < 17).long().expand(2000, 20)
    replaced = disturb.replace_tokens(ids, real)
    assert torch.equal(replaced[:, [0, 16, 17, 18, 19]], ids[:, [0, 16, 17, 18, 19]])
    words = replaced[:, 1:16]
    masked = (words == mask).float().mean().item()
    other = ((words != mask) & (words != word)).float().mean().item()
    places, vocabulary = words.numel(), tokenizer.get_vocab_size()
    for share, expected in ((masked, 0.15 * (0.8 + 0.1 / vocabulary)), (other, 0.15 * 0.1 * (1 - 2 / vocabulary))):
        assert abs(share - expected) < 4 * math.sqrt(expected / places)
    assert words.min() >= 0 and words.max() < vocabulary and len(words.unique()) > vocabulary / 2


def test_masks_and_whatever_else_the_network_is_given_stay(disturb):
    image, ids, real = make_inputs(2, 64)
    phrases = torch.randint(0, 2, (2, 2, 20))
    seen = disturb(image, ids, real, phrases)
    assert len(seen) == 4 and seen[2] is real and seen[3] is phrases and not torch.equal(seen[0], image)
    assert len(disturb(image, ids, real)) == 3


def test_the_draws_follow_torchs_generator(disturb):
    inputs = make_inputs(4, 64)
    torch.manual_seed(3)
    state, first = torch.get_rng_state(), disturb(*inputs)
    assert not torch.equal(disturb(*inputs)[0], first[0])
    torch.set_rng_state(state)
    assert all(torch.equal(again, before) for again, before in zip(disturb(*inputs), first, strict=True))


def test_the_second_passs_loss_by_hand():
    """Two pixels: the first pass is sure of neither (¼, ¾), and the second says (½, ½) and (¾, ¼)."""
    first = torch.tensor([1.0, 3.0]).log().view(1, 2, 1, 1).expand(1, 2, 1, 2).clone().requires_grad_()
    second = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log().view(1, 2, 1, 2).requires_grad_()
    by_hand = (math.log(2) + -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))) / 2
    taught_loss(second, first).backward()
    assert taught_loss(second, first).item() == pytest.approx(by_hand)
    assert first.grad is None and second.grad.any()    # the first pass teaches, and is not taught by the second


def test_an_update_takes_half_of_each_pass(nano):
    """The step of train.py: the gradient is that of ½ · loss + ½ · taught loss, over accumulated batches their mean."""
    image, *words = make_inputs(4, 64)
    other = torch.roll(image, 1, 0).double()
    batches = [(image.double()[part], [word[part] for word in words], other[part])
               for part in (slice(0, 2), slice(2, 4))]
    gradients = []
    for passes in (1, 2):
        model = nano("lavt").double()
        freeze_text(model, layers=2, embeddings=True)
        optimizer, schedule = make_optimizer(model, lr=0.0, weight_decay=0.0, total_iterations=10)
        updater = Updater(model, optimizer, schedule, torch.device("cpu"), accumulate=2, passes=passes)
        kept = []
        optimizer.register_step_pre_hook(
            lambda *_, kept=kept, model=model: kept.extend(p.grad.clone() for p in model.parameters()
                                                           if p.grad is not None))
        for number, (picture, said, disturbed) in enumerate(batches):
            first = updater.forward(picture, *said)
            loss = first.square().mean()
            if passes == 1:
                assert updater.backward((loss + taught_loss(model(disturbed, *said), first)) / 2) == (number == 1)
            else:
                assert not updater.backward(loss) and updater.waiting == number
                second = updater.forward(disturbed, *said)
                assert updater.backward(taught_loss(second, first)) == (number == 1)
        gradients.append((torch.cat([gradient.flatten() for gradient in kept]), updater.loss_sum))
        assert updater.waiting == 0 and schedule.last_epoch == 1
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(UserError, match=r"--masked_pass needs a tokenizer with a token \[MASK\]"):
        Disturbance(Tokenizer(WordLevel({"[PAD]": 0, "[CLS]": 1}, unk_token="[PAD]")))

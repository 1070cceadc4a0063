"""The straightforward network of tools/plain.py, which speed is measured against, computes the same numbers."""
import pytest
import torch

from tests.conftest import make_inputs
from tools.plain import make_plain


@pytest.mark.parametrize(("model", "size", "heads"), [("rmsin", 96, (1, 1, 1, 1)), ("lavt", (72, 100), (1, 2, 4, 8))])
@pytest.mark.parametrize("training", [False, True])
def test_the_plain_network_gives_the_same_logits_and_gradients(nano, model, size, heads, training):
    """36 windows at the first stage, padding at the others; ARC with angles of both signs."""
    results = []
    for plain in (False, True):
        network = nano(model, 96, fusion_heads=heads).double()
        for level in network.decoder.levels:
            if model == "rmsin":
                torch.nn.init.normal_(level.conv2.router.angle.weight, std=30)   # turns by large angles
        network.train(training)
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        image, token_ids, token_mask = make_inputs(4, size)
        logits = (make_plain(network) if plain else network)(image.double(), token_ids, token_mask)
        logits.square().mean().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        results.append((logits, torch.cat([gradients[name].flatten() for name in sorted(gradients)])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-12)

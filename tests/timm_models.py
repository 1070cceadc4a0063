"""Small models of timm's hierarchical families, registered with timm for the tests."""
from timm.models import register_model
from timm.models.swin_transformer import _create_swin_transformer
from timm.models.swin_transformer_v2 import _create_swin_transformer_v2

SIZES = {"embed_dim": 16, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4, "img_size": 128}


@register_model
def test_swin(pretrained=False, **settings):
    """Swin of the sizes of tests/conftest.py's narrow nano."""
    return _create_swin_transformer("swin_tiny_patch4_window7_224", pretrained, **{**SIZES, **settings})


@register_model
def test_swinv2(pretrained=False, **settings):
    return _create_swin_transformer_v2("swinv2_tiny_window8_256", pretrained, **{**SIZES, **settings})


SWIN_V2 = "test_swinv2"
SMALL = ("test_swin", SWIN_V2, "test_convnext", "test_mambaout", "test_resnet")

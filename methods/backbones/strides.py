"""Which backbones the grid stride of a preset is meant for; importing this imports no torch."""

import re

# Stride removal is published for these families; every other network keeps its own stride unless the user sets one.
_PUBLISHED = re.compile(r"^(resnet\d|resnext|wide_resnet|vgg\d|inception_v3|test_resnet)")


def takes_preset_stride(backbone: str) -> bool:
    """Whether a preset may set the grid stride of this timm name (tag included or not)."""
    return _PUBLISHED.match(backbone) is not None

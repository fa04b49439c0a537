"""Image heads: from a grid of features to the logits of the classes. Each stands once and is shared by methods."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...benchmark.core.errors import BenchError

HEADS = ("gap", "attention")


class GapHead(nn.Linear):
    """Mean over positions and a linear layer: logits = W mean_p(A_p) + b."""

    form = "gap"

    def forward(self, input: Tensor) -> Tensor:
        """Logits (B, K) of a grid (B, D, h, w)."""
        return super().forward(input.mean((2, 3)))


class AttentionHead(nn.Module):
    """Attention pooling, one attention map a class: logit_c = u_c^T sum_p a_c(p) A_p + b_c.

    a_c = softmax over positions of w_c^T tanh(V A_p + v), or, gated, of w_c^T (tanh(V A_p + v) * sigmoid(U A_p + u)).
    The softmax and the sum over positions are done in float32, as 1/n is small. A bias of w_c would change nothing.
    Ilse et al., Attention-based Deep Multiple Instance Learning, ICML 2018, equations 8 and 9.
    """

    form = "attention"
    shaped_by = ("gated", "width")  # options of methods that change it

    def __init__(self, depth: int, num_classes: int, width: int = 128, gated: bool = False) -> None:
        super().__init__()
        if width < 1:
            raise BenchError(f"The attention of an image head needs a width of at least 1, not {width}.")
        self.hidden = nn.Conv2d(depth, width, kernel_size=1)
        self.gate = nn.Conv2d(depth, width, kernel_size=1) if gated else None
        self.score = nn.Conv2d(width, num_classes, kernel_size=1, bias=False)
        self.linear = nn.Linear(depth, num_classes)

    def forward(self, grid: Tensor) -> Tensor:
        """Logits (B, K) of a grid (B, D, h, w)."""
        return self.evidence(grid).sum((2, 3)) + self.linear.bias

    def attention(self, grid: Tensor) -> Tensor:
        """a_c(p), (B, K, h, w) float32; each class sums to 1 over the positions."""
        hidden = torch.tanh(self.hidden(grid))
        if self.gate is not None:
            hidden = hidden * torch.sigmoid(self.gate(grid))
        return self.score(hidden).float().flatten(2).softmax(2).view(len(grid), -1, *grid.shape[2:])

    def evidence(self, grid: Tensor) -> Tensor:
        """a_c(p) u_c^T A_p, (B, K, h, w) float32, signed; its sum over the positions is the logit without its bias."""
        votes = F.conv2d(grid, self.linear.weight[:, :, None, None])
        return self.attention(grid) * votes.float()


def make_head(form: str, depth: int, num_classes: int, width: int = 128, gated: bool = False) -> nn.Module:
    """An image head on a grid of `depth` channels; width and gated concern attention. Raises BenchError for a form."""
    if form not in HEADS:
        raise BenchError(f"There is no image head '{form}'; choose {' or '.join(HEADS)}.")
    return GapHead(depth, num_classes) if form == "gap" else AttentionHead(depth, num_classes, width, gated)

"""Mean teacher as a method file of one's own: a student that agrees with the average of its own past.

Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from wsolbench.methods.base import Method, Prediction, register


@register(
    "mean-teacher", family="test", kind="score", supervision="image", backbone=("grid",), class_specific=True,
    views=2, options={"decay": 0.9, "consistency": 1.0},
)  # fmt: skip
class MeanTeacher(Method):
    """Labels on one view; on it also the softmax of the teacher, which sees the other view. The teacher predicts."""

    def __init__(self, backbone, num_classes, options):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.dims[-1], num_classes, 1)
        self.teacher = copy.deepcopy(nn.ModuleList([self.backbone, self.head])).requires_grad_(False)
        self.decay, self.consistency = options.decay, options.consistency

    def setup(self, context):
        self.teacher.load_state_dict(self.student.state_dict())  # the backbone has its weights by now

    @property
    def student(self):
        return nn.ModuleList([self.backbone, self.head])

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def on_step_end(self, context):
        for kept, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            kept.lerp_(new, 1 - self.decay)
        for kept, new in zip(self.teacher.buffers(), self.student.buffers(), strict=True):
            kept.copy_(new)

    def lr_scale(self, context):
        return 0.5 * (1 + math.cos(math.pi * context.progress))

    def loss(self, batch, context):
        logits = self.head(self.backbone.grid(batch.views[0])).mean((2, 3))
        with torch.no_grad():
            backbone, head = self.teacher
            wanted = head(backbone.grid(batch.views[1])).mean((2, 3)).softmax(1)
        image, agreement = F.cross_entropy(logits, batch.labels), F.mse_loss(logits.softmax(1), wanted)
        return {
            "total": image + self.consistency * context.progress * agreement,
            "image": image,
            "consistency": agreement,
        }

    def predict(self, images, classes=None):
        backbone, head = self.teacher
        maps = head(backbone.grid(images))
        logits = maps.mean((2, 3))
        asked = logits.argmax(1) if classes is None else classes
        return Prediction(logits, maps[torch.arange(len(maps), device=maps.device), asked])

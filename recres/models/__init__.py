"""The networks: residual networks for images, recurrent ones for video, and baselines."""

from .baselines import AveragePooling, average_pooling
from .recurrent import (
    POSITIONS,
    READOUTS,
    RECURRENT_GRADIENTS,
    SKIPS,
    RecurrentResNet,
    recurrent_resnet,
)
from .resnet import (
    DEPTHS,
    STAGES,
    TRUNCATIONS,
    VERSIONS,
    ResNet,
    VideoResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from .streaming import Stream

__all__ = [
    "DEPTHS",
    "POSITIONS",
    "READOUTS",
    "RECURRENT_GRADIENTS",
    "SKIPS",
    "STAGES",
    "TRUNCATIONS",
    "VERSIONS",
    "AveragePooling",
    "RecurrentResNet",
    "ResNet",
    "Stream",
    "VideoResNet",
    "average_pooling",
    "recurrent_resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]

"""Networks by name: an example, and the teacher of a table in docs/results.md."""
import torchvision
from torch import nn


def resnet18(num_classes: int) -> nn.Module:
    """ResNet-18 of torchvision for small images: its stem is a 3x3 convolution of stride 2, no pooling."""
    net = torchvision.models.resnet18(num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net

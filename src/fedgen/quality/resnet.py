"""The ResNet-20 for CIFAR-10 (He et al. 2016, shortcuts of kind A), without its last layer."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


class ResNet20(nn.Module):
    """From normalised pictures [n, 3, 32, 32] to 64 features, averaged over the picture; names are those on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16)
        self.layer2 = _stage(16, 32)
        self.layer3 = _stage(32, 64)

    def forward(self, pictures: Tensor) -> Tensor:
        """Features [n, 64]."""
        seen = F.relu(self.bn1(self.conv1(pictures)))
        return cast(Tensor, self.layer3(self.layer2(self.layer1(seen)))).mean((2, 3))


class Block(nn.Module):
    """Two convolutions beside a shortcut without weights: where channels double, every other pixel and zeros."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = after // before
        self.conv1 = nn.Conv2d(before, after, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)

    def forward(self, seen: Tensor) -> Tensor:
        """What is seen after the block."""
        changed = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(seen)))))
        new = (changed.shape[1] - seen.shape[1]) // 2
        return F.relu(changed + F.pad(seen[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, new, new)))


def _stage(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(Block(before, after), Block(after, after), Block(after, after))

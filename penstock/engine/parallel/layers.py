"""Linear layers of which a rank has a part. What is inside is a plain linear layer, or what a backend makes of it."""

from torch import Tensor, nn

from penstock.engine.parallel.group import Group


class Reduced(nn.Module):
    """Around a linear layer that has a part of the inputs: the sum over the ranks."""

    def __init__(self, linear: nn.Linear, group: Group) -> None:
        super().__init__()
        self.linear = linear
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return self.group.sum(self.linear(x))


class Gathered(nn.Module):
    """Around a linear layer that gives a part of the outputs: the ranks' parts side by side."""

    def __init__(self, linear: nn.Linear, group: Group) -> None:
        super().__init__()
        self.linear = linear
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        return self.group.gather(self.linear(x))

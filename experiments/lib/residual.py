"""Residual networks, whose BatchNorm keeps statistics: see `models.ARCHITECTURES`."""

from flax import nnx


class _PreActBlock(nnx.Module):
    def __init__(self, inputs, outputs, stride, *, rngs):
        self.norms = nnx.List([nnx.BatchNorm(inputs, rngs=rngs), nnx.BatchNorm(outputs, rngs=rngs)])
        self.convs = nnx.List([
            nnx.Conv(inputs, outputs, (3, 3), (stride, stride), use_bias=False, rngs=rngs),
            nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs),
        ])  # fmt: skip
        narrow = stride == 1 and inputs == outputs
        self.shortcut = None if narrow else nnx.Conv(inputs, outputs, (1, 1), (stride, stride), use_bias=False, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.norms[0](x))
        skip = x if self.shortcut is None else self.shortcut(h)
        h = self.convs[0](h)
        return skip + self.convs[1](nnx.relu(self.norms[1](h)))


class _PreActResNet(nnx.Module):
    """Stages of pre-activation blocks, global average pooling, a linear head (He et al., 2016)."""

    def __init__(self, input_shape, num_classes, *, first, widths, num_blocks, rngs):
        self.stem = nnx.Conv(input_shape[-1], first, (3, 3), use_bias=False, rngs=rngs)
        blocks, inputs = [], first
        for stage, outputs in enumerate(widths):
            for block in range(num_blocks):
                blocks.append(_PreActBlock(inputs, outputs, 2 if block == 0 and stage > 0 else 1, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.norm = nnx.BatchNorm(inputs, rngs=rngs)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(self.norm(x)).mean(axis=(1, 2)))


class PreActResNet18(_PreActResNet):
    """Four stages of two blocks, 64 to 512 channels."""

    def __init__(self, input_shape, num_classes, *, rngs):
        super().__init__(input_shape, num_classes, first=64, widths=(64, 128, 256, 512), num_blocks=2, rngs=rngs)


class WideResNet2810(_PreActResNet):
    """WRN-28-10: three stages of four blocks, 160 to 640 channels (Zagoruyko & Komodakis, 2016)."""

    def __init__(self, input_shape, num_classes, *, rngs):
        super().__init__(input_shape, num_classes, first=16, widths=(160, 320, 640), num_blocks=4, rngs=rngs)


class _Block(nnx.Module):
    def __init__(self, inputs, outputs, stride, *, rngs):
        self.convs = nnx.List([
            nnx.Conv(inputs, outputs, (3, 3), (stride, stride), use_bias=False, rngs=rngs),
            nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs),
        ])  # fmt: skip
        self.norms = nnx.List([nnx.BatchNorm(outputs, rngs=rngs) for _ in range(2)])
        narrow = stride == 1 and inputs == outputs
        self.shortcut = None if narrow else nnx.Conv(inputs, outputs, (1, 1), (stride, stride), use_bias=False, rngs=rngs)
        self.norm = None if narrow else nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x):
        h = nnx.relu(self.norms[0](self.convs[0](x)))
        skip = x if self.shortcut is None else self.norm(self.shortcut(x))
        return nnx.relu(skip + self.norms[1](self.convs[1](h)))


class _CifarResNet(nnx.Module):
    """Three stages of 16, 32 and 64 channels for images of 32x32, with projections where they meet (He et al., 2016)."""

    def __init__(self, input_shape, num_classes, *, num_blocks, rngs):
        self.stem = nnx.Conv(input_shape[-1], 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        blocks, inputs = [], 16
        for stage, outputs in enumerate((16, 32, 64)):
            for block in range(num_blocks):
                blocks.append(_Block(inputs, outputs, 2 if block == 0 and stage > 0 else 1, rngs=rngs))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, num_classes, rngs=rngs)

    def __call__(self, x):
        """[B, H, W, C] -> [B, C]."""
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class ResNet20(_CifarResNet):
    """Three blocks a stage."""

    def __init__(self, input_shape, num_classes, *, rngs):
        super().__init__(input_shape, num_classes, num_blocks=3, rngs=rngs)


class ResNet110(_CifarResNet):
    """Eighteen blocks a stage: the network of randomized smoothing's papers on CIFAR-10."""

    def __init__(self, input_shape, num_classes, *, rngs):
        super().__init__(input_shape, num_classes, num_blocks=18, rngs=rngs)

"""LightningModules as people write them, which know nothing of the monitor, and data of all kinds to go with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

CLASSES, SIZE, TRAIN, VAL = 4, 12, 48, 48


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """``[count, 3, 12, 12]`` noise with a bright quarter, and which quarter it is."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    half = SIZE // 2
    for image, label in zip(noise, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, row * half : (row + 1) * half, column * half : (column + 1) * half] += 1
    return noise, labels


class Items(Dataset[Any]):
    """Images and labels, given out as ``make(index, image, label)``."""

    def __init__(self, count: int, seed: int, make: Callable[[int, Tensor, int], Any]) -> None:
        self.images, self.labels = images(count, seed)
        self.make = make

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.make(index, self.images[index], int(self.labels[index]))


def pair(index: int, image: Tensor, label: int) -> Any:
    return image, label


def loaders(make: Callable[[int, Tensor, int], Any] = pair, **settings: Any) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """A training and a validation loader."""
    train = DataLoader(Items(TRAIN, 0, make), batch_size=16, shuffle=True, **settings)
    return train, DataLoader(Items(VAL, 1, make), batch_size=16)


def backbone(outputs: int = CLASSES, channels: int = 3) -> nn.Sequential:
    """Two convolutions with maps of 12x12, and one with maps of 6x6."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, outputs),
    )


class Base(pl.LightningModule):
    """Training and validation by one ``step``; subclasses say what it is."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = backbone() if net is None else net

    def step(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        x, y = batch[:2]
        return F.cross_entropy(self(x), y)


class DictBatch(Base):
    """A batch with keys of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["photo"]), batch["kind"])


class Triple(Base):
    """``(id, image, label)``."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        _, x, y = batch
        return F.cross_entropy(self(x), y)


class TwoInputs(Base):
    """An image and numbers that belong to it, then the label."""

    def __init__(self) -> None:
        super().__init__(backbone(8))
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor, more: Tensor) -> Tensor:
        return self.head(torch.cat([self.net(x), more], 1))

    def step(self, batch: Any) -> Tensor:
        x, more, y = batch
        return F.cross_entropy(self(x, more), y)


class ForwardBatch(Base):
    """``forward`` takes the whole batch."""

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch["image"])

    def step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch), batch["label"])


class NoForward(Base):
    """No ``forward`` at all, and a criterion that is a module; metrics first, and more is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(CLASSES)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        logits = self.net(x)
        self.accuracy(logits, y)
        self.log("accuracy", self.accuracy)
        return self.criterion(logits, y)


class FeaturesToo(Base):
    """``forward`` returns ``(features, logits)``."""

    def __init__(self) -> None:
        super().__init__(backbone(16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net(x)
        return features, self.head(F.relu(features))

    def step(self, batch: Any) -> Tensor:
        features, logits = self(batch[0])
        return F.cross_entropy(logits, batch[1]) + 1e-3 * features.square().mean()


class DictOutputs(FeaturesToo):
    """``forward`` returns a dict, with a name of its own for the logits."""

    def forward(self, x: Tensor) -> Any:
        features = self.net(x)
        return {"features": features, "scores": self.head(F.relu(features))}

    def step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0])["scores"], batch[1])


class Siamese(Base):
    """Are both images of one class?"""

    def __init__(self) -> None:
        super().__init__(backbone(8))
        self.head = nn.Linear(8, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.head((self.net(one) - self.net(other)).abs())

    def step(self, batch: Any) -> Tensor:
        (one, other), same = batch
        return F.binary_cross_entropy_with_logits(self(one, other).squeeze(1), same.float())


class Embedding(Base):
    """Pairs of embeddings, without logits."""

    def step(self, batch: Any) -> Tensor:
        (one, other), same = batch
        return F.cosine_embedding_loss(self.net(one), self.net(other), 2 * same - 1)


class TwoViews(Base):
    """Two views of an image make one answer."""

    def step(self, batch: Any) -> Tensor:
        (one, other), y = batch
        return F.cross_entropy((self.net(one) + self.net(other)) / 2, y)


class Binary(Base):
    def __init__(self) -> None:
        super().__init__(backbone(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x).squeeze(1), y.float())


class Probability(Binary):
    """The same with a sigmoid in the network, and the loss of probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).sigmoid()

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy(self(x), y.float().unsqueeze(1))


class Multilabel(Base):
    def __init__(self) -> None:
        super().__init__(backbone(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)


class Regression(Base):
    def __init__(self) -> None:
        super().__init__(backbone(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x).squeeze(1), y)


class Segmentation(Base):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)


class Autoencoder(Base):
    """No label anywhere: the target is the image."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)))

    def step(self, batch: Any) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[0])


class SoftLabels(Plain):
    """``y`` may be probabilities, which ``F.cross_entropy`` takes."""


class LogProbabilities(Base):
    def step(self, batch: Any) -> Tensor:
        x, y = batch
        return F.nll_loss(F.log_softmax(self.net(x / 2), 1), y)


class Manual(Plain):
    """Manual optimisation with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.step(batch))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        parts = [*self.net[:5].parameters()], [*self.net[5:].parameters()]
        return [torch.optim.SGD(part, 0.1) for part in parts]


class SeveralLoaders(Plain):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.step(batch))


class Data(pl.LightningDataModule):
    """The same images, from a DataModule."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loaders()[0]

    def val_dataloader(self) -> DataLoader[Any]:
        return loaders()[1]


class Tokens(nn.Module):
    """A small vision transformer: patches of 2x2, a class token, two blocks of attention and MLP."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 37, width) * 0.1)
        self.blocks = nn.ModuleList([TokenBlock(width) for _ in range(2)])
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Heads(nn.Module):
    """Attention as it is mostly written: by one call of torch, or, where ``fused`` is off, by two products."""

    def __init__(self, width: int, count: int = 4) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)
        self.count, self.fused = count, True

    def forward(self, x: Tensor, *_: Tensor, need_weights: bool = False) -> tuple[Tensor]:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.count, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = self.drop((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)) @ v
        return (self.proj(x.transpose(1, 2).reshape(batch, tokens, width)),)


class TokenBlock(nn.Module):
    """Attention and an MLP, each added to what they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention: nn.Module = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


def sequence_net() -> nn.Module:
    """One-dimensional convolutions over the pixels, row by row."""
    return nn.Sequential(
        nn.Flatten(2),
        nn.Conv1d(3, 6, 3, 2),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Conv1d(6, 8, 3, 2),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool1d(3),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def volume_net() -> nn.Module:
    """Three-dimensional convolutions, with the channels as depth."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv3d(1, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(6, 8, 3, 2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(2),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


def layer_net() -> nn.Module:
    """Linear layers alone."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(432, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, CLASSES)
    )

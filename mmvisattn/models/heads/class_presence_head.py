"""An auxiliary loss on pooled features: which classes are in the image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...errors import UserError
from ...registry import MODELS
from ..checks import check_numbers
from ..layers import at_least_float32


@MODELS.register_module()
class ClassPresenceHead(BaseModule):
    """Tell from the mean of a map which classes are present in the image, as an ``auxiliary_head`` of mmseg.

    The auxiliary loss of `De-focus Attention Networks <https://arxiv.org/abs/2406.04342>`_ brought from classification
    to dense prediction: it gives every token a gradient, where a causal network would rely on few. The prediction is
    multi-label, with a sigmoid for each class.

    mmdet has no place for it: only the heads of a detector see the labels, it has one for each task, and that of DINO
    is given the states of the decoder instead of the map.

    Args:
        in_channels (int): Number of channels C of the map.
        num_classes (int): Number of classes.
        in_index (int): Which of the maps that the neck, or the backbone where there is none, returns. Defaults to the
            last.
        ignore_index (int): Label of pixels that count for no class. Defaults to 255.
        loss_weight (float): Weight of the loss. Defaults to 0.4.
        init_cfg (dict | list[dict], optional): mmengine's initialisation config. Defaults to normal (0.01).

    Raises:
        UserError: If a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        in_index: int = -1,
        ignore_index: int = 255,
        loss_weight: float = 0.4,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Normal', layer='Linear', std=0.01))
        check_numbers(
            'ClassPresenceHead',
            in_channels=in_channels,
            num_classes=num_classes,
            in_index=in_index,
            ignore_index=ignore_index,
            loss_weight=loss_weight,
        )
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.in_index = in_index
        self.ignore_index = ignore_index
        self.loss_weight = loss_weight
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Predict the presence of each class.

        Args:
            inputs (Sequence[Tensor]): Maps, (B, C_i, H_i, W_i).

        Returns:
            Tensor: Logits, (B, num_classes).

        Raises:
            UserError: If there is no map ``in_index``, or it has another number of channels.
        """
        if not -len(inputs) <= self.in_index < len(inputs):
            raise UserError(
                f'ClassPresenceHead: `in_index` is {self.in_index} and there are {len(inputs)} maps to choose from; '
                'set it to one of them'
            )
        x = inputs[self.in_index]
        if x.shape[1] != self.in_channels:
            raise UserError(
                f'ClassPresenceHead: map {self.in_index} has {x.shape[1]} channels; set `in_channels`, now '
                f'{self.in_channels}, to that'
            )
        return self.fc(at_least_float32(x).mean((2, 3)))

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: Sequence, train_cfg: dict | None = None) -> dict:
        """Compute the loss; the interface of mmseg's heads.

        Args:
            inputs (Sequence[Tensor]): Maps, (B, C_i, H_i, W_i).
            batch_data_samples (Sequence): One ``SegDataSample`` an image, with labels (1, H, W) in ``gt_sem_seg``.
            train_cfg (dict, optional): Not used.

        Returns:
            dict: ``loss_presence``: binary cross entropy, averaged over images and classes, times ``loss_weight``.
        """
        logits = at_least_float32(self(inputs))
        present = torch.stack([self.presence(sample.gt_sem_seg.data) for sample in batch_data_samples])
        loss = F.binary_cross_entropy_with_logits(logits, present.to(logits.dtype))
        return dict(loss_presence=self.loss_weight * loss)

    def presence(self, labels: Tensor) -> Tensor:
        """Which classes a map of labels shows: any shape → (num_classes,), boolean.

        Raises:
            UserError: If a label is neither a class nor ``ignore_index``.
        """
        labels = labels[labels != self.ignore_index].long()
        counts = torch.bincount(labels, minlength=self.num_classes)
        if len(counts) > self.num_classes:
            raise UserError(
                f'ClassPresenceHead: there is a label {len(counts) - 1} and there are {self.num_classes} classes; set '
                f'`num_classes` to that of the dataset, or `ignore_index`, now {self.ignore_index}, to that label'
            )
        return counts > 0

"""Say that a picture is too large for the memory before the memory runs out."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..inference.memory import check_labels_fit
from ..registry import HOOKS


@HOOKS.register_module()
class PictureSizeHook(Hook):
    """Refuse pictures whose labels cannot be made in the memory that is free, in validation and test of segmentors.

    mmseg brings the values of all classes to the size of the picture. Detectors are not looked at.

    Raises:
        UserError: With what is needed and what is free.
    """

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the sizes of the batch."""
        self.before_test_iter(runner, batch_idx, data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Look at the sizes of the batch."""
        # Of DistributedDataParallel, or of test-time augmentation, which has several views of a picture.
        model = getattr(runner.model, 'module', runner.model)
        samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
        for sample in samples:
            sample = sample[0] if isinstance(sample, list) else sample
            if (size := getattr(sample, 'ori_shape', None)) is not None:
                check_labels_fit(model, *size)

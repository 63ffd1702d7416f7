"""Say what a checkpoint fills when the runner loads, tests or resumes from it."""

import re

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..checkpoint.loading import compare, log_report, weights_of
from ..errors import UserError
from ..registry import HOOKS


@HOOKS.register_module()
class CheckpointReportHook(Hook):
    """Report what a checkpoint of a whole detector or segmentor fills; refuse one that fills nothing.

    Without it mmengine only warns when not a single key fits, and a test goes on with random weights. Weights under
    ``model`` or at the top of the file, as some authors keep them, are put where mmengine looks for them.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the file with the model, before mmengine loads it.

        Raises:
            UserError: If no key of the file fits the model.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        weights = weights_of(checkpoint)
        expected = model.state_dict()
        report = compare(expected, weights)
        source = f'weights of {type(model).__name__} from the checkpoint'
        if not report.loaded:
            raise UserError(
                f'{source}: not one of its {len(weights)} keys fits the model; it has names such as '
                f'{list(weights)[:3]}, the model such as {list(expected)[:3]}; give a checkpoint of this config'
            )
        log_report(report, source)
        if 'state_dict' not in checkpoint:
            for key in [key for key in checkpoint if key in weights or re.match(r'module\.', key)]:
                del checkpoint[key]
            checkpoint['state_dict'] = weights

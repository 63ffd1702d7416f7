"""What libraries do over and over, each time longer than most trainings of the tests take; done once, or not at all.

Importing this module is enough. Commands that start afresh (``run_command``) have mmengine as it is.
"""

import functools
from types import SimpleNamespace

from mmengine.config import config, utils
from mmengine.runner import loops
from torch.utils.data import _utils

# A run writes its config down six times. Their layout, for which yapf takes a third of a second each, is of no matter.
config.FormatCode = lambda text, **style: (text, True)
# For each `_base_` of a toolbox, all its metafiles are read.
utils.load = functools.cache(utils.load)
# Two seconds after each pass over the data that goes by iteration.
loops.time = SimpleNamespace(sleep=lambda seconds: None)
# A loader that is left to the collection of garbage together with its queues can no longer tell its workers to end, and
# waits for each as long as this. Five seconds else.
_utils.MP_STATUS_CHECK_INTERVAL = 0.5

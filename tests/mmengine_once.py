"""What mmengine does over and over, each time longer than most trainings of the tests take; done once, or not at all.

Importing this module is enough. Commands that start afresh (``run_command``) have mmengine as it is.
"""

import functools

from mmengine.config import config, utils

# A run writes its config down six times. Their layout, for which yapf takes a third of a second each, is of no matter.
config.FormatCode = lambda text, **style: (text, True)
# For each `_base_` of a toolbox, all its metafiles are read.
utils.load = functools.cache(utils.load)

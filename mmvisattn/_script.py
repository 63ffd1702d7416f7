"""The script of ``python -m mmvisattn SCRIPT``, as main module.

A process that is spawned imports the main module of its parent anew, by name. This one's name lies inside of the
package, so that the measures of :mod:`mmvisattn.compat` are in place before the script's own imports there, too.
"""

import os
import sys
from pathlib import Path

from mmvisattn.__main__ import SCRIPT

__package__ = None  # type: ignore[assignment]  # as of any script
__file__ = sys.argv[0] = os.environ[SCRIPT]
exec(compile(Path(__file__).read_bytes(), __file__, 'exec'))

"""Run any script with the measures of :mod:`mmvisattn.compat` in place.

``python -m mmvisattn SCRIPT [ARGS...]`` is for scripts that import ``mmcv.ops`` before they read a config, such as
the toolboxes' own ``train.py`` and ``test.py``.
"""

import os
import runpy
import sys
from pathlib import Path

from .cli import check_file, one_line_errors

SCRIPT = 'MMVISATTN_SCRIPT'  # environment variable that tells spawned processes the script of their main module


@one_line_errors
def main() -> None:
    """Run the script named first, with the arguments after it."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        sys.exit('usage: python -m mmvisattn SCRIPT [ARGS...]')
    del sys.argv[0]
    check_file(sys.argv[0], 'script')
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    os.environ[SCRIPT] = os.path.abspath(sys.argv[0])
    runpy.run_module('mmvisattn._script', run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()

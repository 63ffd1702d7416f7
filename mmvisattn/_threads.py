"""Settings of torch's threads, made as this module is imported, which has to be before torch is.

A thread that has done its part of an operator spins for some milliseconds before it sleeps. Nothing is lost by that on
a machine of one's own, and much where processes share the cores: one spins where another has work. So threads spin but
shortly, here and in the processes that are started, unless the user has set any of the variables that tell libgomp,
which torch brings on Linux, how to wait; ``MMVISATTN_THREADS=off`` leaves that to libgomp itself. To sleep at once
would help still more on a busy machine, and takes 1.4 times as long on an idle one.
"""

import os
import sys

CHOICES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'MMVISATTN_THREADS')

if 'torch' not in sys.modules and not any(name in os.environ for name in CHOICES):
    os.environ['GOMP_SPINCOUNT'] = '10000'

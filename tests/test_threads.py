import os
import subprocess
import sys

import pytest

CHOICES = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'MMVISATTN_THREADS')
POLICY = 'import os; print(os.environ.get("GOMP_SPINCOUNT"))'


def policy(code, **environment):
    """The policy of waiting after some code has run in a fresh process."""
    env = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, '-c', f'{code}\n{POLICY}'], env=env | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]


def test_threads_spin_shortly_in_this_process_and_in_those_that_it_starts():
    assert policy('import mmvisattn') == '10000'
    assert policy('from mmvisattn import cli') == '10000'
    child = f"import mmvisattn, subprocess, sys; subprocess.run([sys.executable, '-c', {POLICY!r}], check=True); '''"
    assert policy(f"{child}'''") == '10000'


def test_torch_is_loaded_after_the_choice():
    """What is set later libgomp never reads."""
    watch = (
        'import os, sys\n'
        'class Watch:\n'
        '    def find_spec(self, name, *args):\n'
        '        if name == "torch": print("torch", os.environ["GOMP_SPINCOUNT"])\n'
        'sys.meta_path.insert(0, Watch())\n'
        'import mmvisattn; del os.environ["GOMP_SPINCOUNT"]; print("torch" in sys.modules)'
    )
    assert policy(f'{watch}\nos.environ["GOMP_SPINCOUNT"] = "x"') == 'x'


@pytest.mark.parametrize(
    'name, value', [('OMP_WAIT_POLICY', 'ACTIVE'), ('GOMP_SPINCOUNT', '7'), ('MMVISATTN_THREADS', 'off')]
)
def test_the_choice_of_the_user_stays(name, value):
    assert policy('import mmvisattn', **{name: value}) == (value if name == 'GOMP_SPINCOUNT' else 'None')


def test_too_late_nothing_is_changed():
    assert policy('import torch, mmvisattn') == 'None'

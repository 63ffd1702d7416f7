"""Spawned processes, in an interpreter of their own each: the start method is a property of the whole process."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# As the toolboxes' own tools: the operators are asked for before anything imports the package.
SCRIPT = """
import argparse, json, os, sys
from mmcv.ops import nms
from beside import VALUE
from torch.utils.data import DataLoader, Dataset

class Squares(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return [index**2, VALUE, os.getpid()]

if __name__ == '__main__':
    loader = DataLoader(Squares(), num_workers=1, multiprocessing_context='spawn', collate_fn=list)
    squares, values, workers = zip(*(item for batch in loader for item in batch))
    print(json.dumps([squares, values, os.getpid() not in workers, sys.argv, __file__]))
"""

# As a tool that does not know the package, and a config that imports it.
CONFIG_IMPORTS = """
import multiprocessing

if __name__ == '__main__':
    import mmvisattn
    import beside

    multiprocessing.set_start_method('spawn')
    for context in [multiprocessing, *map(multiprocessing.get_context, multiprocessing.get_all_start_methods())]:
        process = context.Process(target=beside.work, args=(context.get_start_method(),))
        process.start()
        process.join()
"""
IMPORTED_AFTER = """
import sys

assert 'mmvisattn' in sys.modules

def work(name):
    print(name, flush=True)
"""

DIES = """
import multiprocessing

class Dataset:
    def __init__(self):
        self.annotations = bytes(10_000_000)  # more than a pipe holds

    def __reduce__(self):
        return open, ('nowhere.json',), self.annotations

if __name__ == '__main__':
    import mmvisattn
    from torch.utils.data import DataLoader
    next(iter(DataLoader(Dataset(), sampler=[0], num_workers=1, multiprocessing_context='spawn')))
"""


def run(folder, script, beside='', module=False):
    (folder / 'script.py').write_text(script)
    (folder / 'beside.py').write_text(beside)
    module = ['-m', 'mmvisattn'] if module else []
    return subprocess.run(
        [sys.executable, *module, 'script.py', '--flag'],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_workers_of_a_script_that_the_package_runs(tmp_path):
    done = run(tmp_path, SCRIPT, 'VALUE = 7', module=True)
    assert done.returncode == 0, done.stderr
    *numbers, elsewhere, argv, file = json.loads(done.stdout)
    assert numbers == [[0, 1, 4], [7, 7, 7]] and elsewhere
    assert argv[1:] == ['--flag'] and file == str(tmp_path / 'script.py')


def test_workers_of_a_script_that_does_not_know_the_package(tmp_path):
    done = run(tmp_path, CONFIG_IMPORTS, IMPORTED_AFTER)
    assert done.stderr == ''
    assert sorted(done.stdout.split()) == sorted(['spawn', *multiprocessing.get_all_start_methods()])


def test_worker_that_dies_before_it_has_read_its_data_ends_the_run(tmp_path):
    done = run(tmp_path, DIES)
    assert done.returncode == 1
    assert "No such file or directory: 'nowhere.json'" in done.stderr
    assert 'ended with exit status 1 before it had read what it is to work on' in done.stderr.splitlines()[-1]

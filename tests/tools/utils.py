"""Running tools and reading what they wrote."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.visualization import Visualizer

from tests import processes

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'

ARCH = 'dict(embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))'


def load_tool(name: str) -> ModuleType:
    """A tool by its path below ``tools``, such as ``'analysis/benchmark'``."""
    return importlib.import_module(f'tools.{name.replace("/", ".")}')


def run_tool(name: str, *args: object) -> None:
    """Run a tool in this process, as far apart from earlier runs as in one of its own."""
    words = [str(arg) for arg in args]
    processes.wait_for_a_new_second(words, Path.cwd())
    managers = [Visualizer, MMLogger, MessageHub]
    while managers:
        manager = managers.pop()
        manager._instance_dict.clear()
        managers += manager.__subclasses__()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are too small for more
    try:
        load_tool(name).main(words)
    finally:
        torch.set_num_threads(threads)


def run_command(*args: object, first_on_path: str = '', timeout: int = 800, **env: str) -> subprocess.CompletedProcess:
    """Run a command in a fresh process, with this Python first on the path."""
    folders = [first_on_path, str(Path(sys.executable).parent), os.environ['PATH']]
    path = {'PYTHONPATH': str(ROOT), 'PATH': os.pathsep.join(filter(None, folders))}
    return subprocess.run(
        [str(arg) for arg in args],
        env={**os.environ, **path, 'OMP_NUM_THREADS': '1', **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_python(*args: object, timeout: int = 800) -> subprocess.CompletedProcess:
    """Run Python with these arguments in a process that has imported the toolboxes."""
    return processes.run([str(arg) for arg in args], Path.cwd(), {**os.environ, 'PYTHONPATH': str(ROOT)}, timeout)


def read_log(work_dir: Path, index: int = -1) -> list[dict]:
    """The training steps that the run wrote down; runs are counted in the order of time."""
    logs = sorted(work_dir.glob('*/vis_data/*.json'), key=lambda path: path.stat().st_mtime_ns)
    logs = [log for log in logs if log.name == 'scalars.json']
    return [json.loads(line) for line in logs[index].read_text().splitlines()]


def read_metrics(work_dir: Path) -> dict:
    """What the latest test measured."""
    latest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(latest.read_text().splitlines()[-1])

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmengine
import pytest
import torch

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, 'Adafactor'), reason='came with torch 2.5')

CHECK = """
from mmengine.optim import OPTIMIZERS
import torch, transformers
assert OPTIMIZERS.get('Adafactor') is transformers.Adafactor
assert OPTIMIZERS.get('TorchAdafactor') is torch.optim.Adafactor
assert OPTIMIZERS.get('AdamW') is torch.optim.AdamW
assert 'register_module' not in vars(OPTIMIZERS)
"""


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """An mmengine that does not know of torch's Adafactor, as 0.10.5 does not, and something called transformers."""
    folder = tmp_path_factory.mktemp('site')
    shutil.copytree(Path(mmengine.__file__).parent, folder / 'mmengine')
    builder = folder / 'mmengine' / 'optim' / 'optimizer' / 'builder.py'
    text = builder.read_text().replace("module_name == 'Adafactor'", 'False').replace('TorchAdafactor', 'Never')
    builder.write_text(text)
    (folder / 'transformers.py').write_text('import torch\nclass Adafactor(torch.optim.SGD):\n    pass\n')
    return {**os.environ, 'PYTHONPATH': os.pathsep.join([str(folder), str(ROOT)])}


def run(code, environment):
    return subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)


def test_import_works(environment):
    result = run('import mmvisattn\n' + CHECK, environment)
    assert result.returncode == 0, result.stderr


def test_import_works_after_it_has_failed(environment):
    failed = (
        'try:\n'
        '    import mmengine.optim\n'
        'except KeyError as error:\n'
        '    assert "Adafactor is already registered" in str(error)\n'
        'else:\n'
        '    raise SystemExit("stock mmengine should have failed")\n'
        'import mmvisattn\n'
    )
    result = run(failed + CHECK, environment)
    assert result.returncode == 0, result.stderr


def test_not_needed_where_mmengine_knows(environment, tmp_path):
    folder = Path(environment['PYTHONPATH'].split(os.pathsep)[0])
    shutil.copy(folder / 'transformers.py', tmp_path)
    known = 'TorchAdafactor' in (Path(mmengine.__file__).parent / 'optim' / 'optimizer' / 'builder.py').read_text()
    code = f'import mmvisattn\nassert (mmvisattn.compat._records["adafactor"].state == "not needed") is {known}\n'
    result = run(code + CHECK, {**environment, 'PYTHONPATH': os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert result.returncode == 0, result.stderr

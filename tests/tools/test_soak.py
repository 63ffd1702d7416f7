"""tools/analysis/soak.py sees what grows."""

import re

import pytest

from .utils import load_tool, run_tool


def test_a_short_one(seg_config, capsys):
    run_tool('analysis/soak', seg_config, '--minutes', 0.01, '--interval', 1, '--tolerance', 1)
    assert re.search(r'^[6-9] cycles in 0\.0\d hours; .* MiB, (\d+) and \1 open files', capsys.readouterr().out, re.M)


def test_growth_is_seen(capsys):
    soak = load_tool('analysis/soak')
    for memory, files, flat in ([100] * 9, [7] * 9, True), ([100] * 6 + [110] * 3, [7] * 9, False), (
        [100] * 9, [7] * 8 + [8], False):  # fmt: skip
        soak.CYCLES[:] = [(float(i), m, n) for i, (m, n) in enumerate(zip(memory, files))]
        assert soak.compare(0.03) is flat


def test_a_training_by_epoch_is_refused(det_config, capsys):
    with pytest.raises(SystemExit):
        run_tool('analysis/soak', det_config)
    assert 'trains by epoch; give a config with `train_cfg.max_iters`' in capsys.readouterr().err

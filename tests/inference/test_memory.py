from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.inference import check_labels_fit, memory

import pytest
import torch
from torch import nn


def segmentor(classes: int) -> nn.Module:
    model = nn.Linear(1, 1)
    model.out_channels = classes
    return model


def test_labels_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(memory, 'free_memory', lambda device: 100 * 100 * 3 * 4)
    check_labels_fit(segmentor(3), 100, 100)
    with pytest.raises(UserError, match=r'labels of 101×100 pixels and 3 classes take .* GiB of memory'):
        check_labels_fit(segmentor(3), 100, 101)
    with pytest.raises(UserError):
        check_labels_fit(segmentor(3), 100, 100, others=1)
    check_labels_fit(nn.Linear(1, 1), 10**6, 10**6)  # no segmentor
    monkeypatch.setattr(memory, 'free_memory', lambda device: None)
    check_labels_fit(segmentor(3), 10**6, 10**6)


def test_free_memory_of_the_cpu():
    before = memory.free_memory(torch.device('cpu'))
    assert before is None or 2**20 < before < 2**50
    assert memory.free_memory(torch.device('meta')) is None


def test_memory_that_runs_out_is_told(capsys):
    for attempt in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**62), gpu):
        with pytest.raises(SystemExit) as ended:
            cli.one_line_errors(attempt)()
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.startswith('error: memory ran out: ') and told.count('\n') == 1
    with pytest.raises(RuntimeError, match='another'):
        cli.one_line_errors(other)()


def gpu() -> None:
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')


def other() -> None:
    raise RuntimeError('another')

import pytest

from tools.analysis import expected_cost, get_flops

from .utils import ROOT

NAME = 'fcvit-tiny_fpn_4xb8-40k_ade20k-512x512'


def test_a_row_follows_the_rule(monkeypatch, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('before\n\n<!-- expected-cost -->\n<!-- end -->\n\nafter\n')
    monkeypatch.setattr(expected_cost, 'PAGE', page)
    expected_cost.main(['--only', NAME])
    before, table, after = page.read_text().split('<!--')
    (row,) = [line for line in table.splitlines() if NAME in line]
    cost = get_flops.count(str(ROOT / f'configs/fcvit/{NAME}.py'), (512, 512))
    gibibytes = (16 * cost.parameters[''] + 8 * 10 * cost.activations['']) / 2**30
    gpu_hours = 40_000 * 32 * 3 * cost.flops[''] / 10e12 / 3600
    assert [cell.strip() for cell in row.split('|')[2:-1]] == [
        f'{cost.parameters[""] / 1e6:.0f}',
        f'{cost.flops[""] / 1e9:.0f}',
        '4 × 8',
        f'{gibibytes:.0f}',
        f'{gpu_hours:.0f}',
    ]
    assert before.strip() == 'before' and after.endswith('after\n')


def test_rows_of_others_stay_in_the_order_of_the_metafiles():
    names = [model['Name'] for model in expected_cost.read_models()]
    page = '<!-- expected-cost -->\n\n<!-- end -->\n'
    page = expected_cost.fill(page, {names[3]: f'| [{names[3]}](x) | old |'})
    page = expected_cost.fill(page, {names[1]: f'| [{names[1]}](x) | new |'})
    assert page.index('new') < page.index('old')


def test_the_page_has_every_model():
    page = expected_cost.PAGE.read_text()
    assert [model['Name'] for model in expected_cost.read_models() if f'[{model["Name"]}]' not in page] == []


def test_no_model_of_that_name(capsys):
    with pytest.raises(SystemExit):
        expected_cost.main(['--only', 'fcvitt'])
    assert 'no model has this in its name; there are dino-4scale' in capsys.readouterr().err

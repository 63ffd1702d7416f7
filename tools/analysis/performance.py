"""Measure what docs/performance.md tells, and fill its tables in.

The page is written by hand but for what stands between a line ``<!-- NAME -->`` and the next ``<!-- end -->``: there go
the tables of the report docs/performance/NAME.json. Without arguments the page is made anew from the reports that are
there; with names these are measured first, on a machine that has nothing else to do.

Examples:
    python tools/analysis/performance.py
    python tools/analysis/performance.py fcvit-train fcvit-peers
    python tools/analysis/performance.py all
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError, nearest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import report as reports
from tools.driver import ROOT, run_script

PAGE = ROOT / 'docs/performance.md'
REPORTS = ROOT / 'docs/performance'
PLOT = ROOT / 'docs/images/growth.png'

MINI = 'configs/mini/mask-rcnn_fcvit-mini_fpn_coco.py'
MINI_NECK = 'configs/mini/mask-rcnn_fcvit-mini_fpn_flexattention_coco.py'
MINI_STEP = '--step train --batch 8 --sizes 128x160 --rounds 15'
MAMBA = 'DefocusMamba:base,token_order=raster'
SCANS = f'reference:{MAMBA} {MAMBA},scan_backend=torch {MAMBA},scan_backend=cpu'
SEQUENCES = f'{MAMBA} DefocusRetNet:base,token_order=raster DefocusViT:base,token_order=raster'
VIT = 'timm:vit_base_patch16_224'
SIDES = (256, 512, 768, 1024, 1280, 1536)
# Tool and arguments of each report.
RUNS = {
    'fcvit-forward': 'benchmark.py reference:FCViT:b12 FCViT:b12',
    'fcvit-train': 'benchmark.py reference:FCViT:b12 FCViT:b12 --step train',
    'fcvit-peers': 'benchmark.py FCViT:b12 --peers --step train',
    'fcvit-mini': f'benchmark.py reference:{MINI} {MINI} {MINI_STEP}',
    'depthwise': 'benchmark_operators.py depthwise',
    'scan': 'benchmark_operators.py scan --rounds 5',
    'scan-growth': 'benchmark_operators.py scan-growth --rounds 5',
    'mamba-forward': f'benchmark.py {SCANS} --rounds 3',
    'mamba-train': f'benchmark.py {SCANS} --step train --rounds 3',
    'window': f'benchmark.py {MAMBA} DefocusMamba:base,token_order=window --rounds 5',
    'attention': 'benchmark_operators.py attention --rounds 25',
    'flex-cost': 'flex_cost.py --sizes 512x512 768x768 1024x1024 800x1344 --batches 1 2 --rounds 2',
    'flex-train': f'benchmark.py FlexViT:base {VIT} --step train --sizes 1024x1024 --rounds 3',
    'neck': f'benchmark.py {MINI} {MINI_NECK} {MINI_STEP}',
    'growth': f'benchmark.py FCViT:b12 {SEQUENCES} FlexViT:base {VIT} --rounds 3 '
    f'--sizes {" ".join(f"{side}x{side}" for side in SIDES)}',
}


def measure(name: str) -> None:
    """Make a report anew."""
    plot = ['--plot', PLOT] if name == 'growth' else []
    run_script(*f'tools/analysis/{RUNS[name]}'.split(), *plot, '--json', REPORTS / f'{name}.json')


def fill(page: str) -> str:
    """The page with the tables of its reports.

    Raises:
        UserError: If it asks for a report that nobody makes or that is not there.
    """

    def replace(match: re.Match) -> str:
        name = match[1]
        if name not in RUNS:
            raise UserError(f'{PAGE.name} asks for {name!r}; the reports are {sorted(RUNS)}')
        lines = '\n'.join(reports.lines(reports.read(REPORTS / f'{name}.json')))
        return f'<!-- {name} -->\n\n{lines}\n\n<!-- end -->'

    return re.sub(r'<!-- ([\w-]+) -->\n(?:(?!<!-- ).*\n)*<!-- end -->', replace, page)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'reports to make anew: all, {", ".join(RUNS)}')
    args = parser.parse_args(argv)
    for name in args.names:
        if name not in ('all', *RUNS):
            raise UserError(f'there is no report {name!r}{nearest(name, RUNS)}; give all, or some of {", ".join(RUNS)}')

    REPORTS.mkdir(exist_ok=True)
    for name in list(RUNS) if 'all' in args.names else args.names:
        measure(name)
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == '__main__':
    main()

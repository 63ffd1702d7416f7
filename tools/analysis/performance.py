"""Fill the tables of docs/performance.md in, and measure them.

The page is written by hand but for what stands between a line ``<!-- NAME -->`` and the next ``<!-- end -->``: there go
the tables of the report docs/performance/NAME.json, which a tool of this folder wrote with ``--json``. Without
arguments the page is made anew from the reports that are there; those that are named are measured first, by the
commands that stand in them, on a machine that has nothing else to do. ``gpu`` can be measured where there is a GPU.

Examples:
    python tools/analysis/performance.py
    python tools/analysis/performance.py fcvit-train fcvit-peers
    python tools/analysis/performance.py all
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError, nearest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import measurements as reports
from tools.driver import ROOT, run_script

PAGE = ROOT / 'docs/performance.md'
REPORTS = ROOT / 'docs/performance'
# Those that may not have been made yet.
COMMANDS = {
    'compiled': 'python tools/analysis/compiled.py --step train',
    'gpu': 'python tools/analysis/gpu.py',
}


def measure(name: str) -> None:
    """Make a report anew."""
    path = REPORTS / f'{name}.json'
    command = reports.read(path)['command'] if path.is_file() or name not in COMMANDS else COMMANDS[name]
    run_script(*shlex.split(command)[1:], '--json', path)


def fill(page: str) -> str:
    """The page with the tables of its reports.

    Raises:
        UserError: If it asks for a report that is not there.
    """

    def replace(match: re.Match) -> str:
        lines = '\n'.join(reports.lines(reports.read(REPORTS / f'{match[1]}.json')))
        return f'<!-- {match[1]} -->\n\n{lines}\n\n<!-- end -->'

    return re.sub(r'<!-- ([\w-]+) -->\n(?:(?!<!-- ).*\n)*<!-- end -->', replace, page)


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and write the page."""
    known = sorted(path.stem for path in REPORTS.glob('*.json'))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'reports to make anew: all, {", ".join(known)}')
    args = parser.parse_args(argv)
    possible = sorted({*known, *COMMANDS})
    for name in args.names:
        if name not in ('all', *possible):
            raise UserError(f'there is no report {name!r}{nearest(name, possible)}; give all, or some of {possible}')
    for name in known if 'all' in args.names else args.names:
        measure(name)
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == '__main__':
    main()

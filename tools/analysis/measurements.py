"""Reports of the tools of this folder: a command, the machine it ran on, and tables; printed, and kept as JSON."""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmvisattn import cli

import torch

from .measure import CLOCKS, describe_machine, parse_count, parse_device, parse_output


def add_arguments(parser: argparse.ArgumentParser, rounds: int = 9) -> None:
    """The arguments of all tools that measure.

    Args:
        parser (argparse.ArgumentParser): Their parser.
        rounds (int): Default of ``--rounds``.
    """
    parser.add_argument('--rounds', type=parse_count, default=rounds, help=f'timed rounds; default: {rounds}')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', type=parse_device, default=device, help='default: the GPU, if any')
    parser.add_argument('--json', type=parse_output, metavar='FILE', help='write all that was measured to this file')


def add_clock(parser: argparse.ArgumentParser) -> None:
    """The argument of what times are told by."""
    told = 'seconds of the day, or of the processor, for a machine that others use as well; default: wall'
    parser.add_argument('--clock', choices=CLOCKS, default='wall', help=told)


def start(file: str, argv: Sequence[str] | None, args: argparse.Namespace) -> dict:
    """A report without tables.

    Args:
        file (str): The tool, one of this folder.
        argv (Sequence[str] | None): Its arguments, or None for those of the process; that of the file for the report is
            not kept.
        args (argparse.Namespace): What they were read as.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if '--json' in words:
        del words[words.index('--json') : words.index('--json') + 2]
    return {
        'command': shlex.join(['python', f'tools/analysis/{Path(file).name}', *words]),
        'machine': describe_machine(args.device),
        'rounds': args.rounds,
        **({'clock': 'cpu'} if getattr(args, 'clock', 'wall') == 'cpu' else {}),
        'tables': [],
    }


def add_table(report: dict, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Add a table and print it."""
    report['tables'].append(dict(title=title, columns=list(columns), rows=[list(row) for row in rows]))
    print('\n'.join(_table_lines(report['tables'][-1])), flush=True)


def milliseconds(seconds: Sequence[float], digits: int = 1) -> str:
    """A cell of times: the median with minimum and maximum."""
    median, low, high = (f(seconds) * 1e3 for f in (statistics.median, min, max))
    return f'{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})'


def describe(report: dict) -> Iterator[str]:
    """The lines that tell how a report came about."""
    machine = dict(report['machine'])
    device, threads, date = machine.pop('device'), machine.pop('threads'), machine.pop('date')
    versions = ', '.join(f'{name} {version}' for name, version in machine.items())
    yield f'`{report["command"]}`'
    yield ''
    clock = '; times are those of the processor' if report.get('clock') == 'cpu' else ''
    counts = [f'{n} {noun}{"s" * (n != 1)}' for n, noun in ((threads, 'thread'), (report['rounds'], 'round'))]
    yield f'{device}, {counts[0]}; {versions}; {date}; {counts[1]}{clock}.'


def lines(report: dict) -> Iterator[str]:
    """All lines of a report."""
    yield from describe(report)
    for table in report['tables']:
        yield from _table_lines(table)


def _table_lines(table: dict) -> Iterator[str]:
    yield from ('', table['title'], '', _row(table['columns']), '|' + '---|' * len(table['columns']))
    yield from map(_row, table['rows'])


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def write(report: dict, path: Path | None) -> None:
    """Keep a report, if a file for it is named."""
    if path:
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + '\n')


def read(path: Path) -> dict:
    """A report that ``--json`` wrote.

    Raises:
        UserError: If it is not there.
    """
    cli.check_file(str(path), 'report')
    return json.loads(path.read_text())

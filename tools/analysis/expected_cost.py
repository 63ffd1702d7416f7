"""Fill the table of expected memory and time in docs/train.md: what a training should need, by a rule from its FLOPs.

Parameters, FLOPs and activations of a whole model are those of ``get_flops.py`` for an image of 800×1344 pixels (COCO)
or 512×512 (ADE20K). From these follow

- memory of a GPU = 16 bytes a parameter (weight, gradient, two moments of AdamW)
  + images a GPU × activations × 10 bytes (6 in mixed precision);
- GPU hours = images seen × 3 × FLOPs / 10 TFLOP/s, a backward counting as two forwards.

They are estimates to choose a machine by, not measurements. The models, epochs and iterations come from the metafiles,
the images a GPU from the configs.

Examples:
    python tools/analysis/expected_cost.py
    python tools/analysis/expected_cost.py --only fcvit-b12
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError

import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis import get_flops
from tools.driver import ROOT

PAGE = ROOT / 'docs/train.md'
SIZES = {'COCO': (800, 1344), 'ADE20K': (512, 512)}
COCO_IMAGES = 117_266  # of train2017 with an object
BYTES_PER_PARAMETER = 16
BYTES_PER_ACTIVATION = {False: 10, True: 6}  # by whether precision is mixed
SUSTAINED = 10e12  # FLOP/s of a GPU
HEADER = (
    '| config | M parameters | GFLOPs an image | GPUs × images | GiB a GPU | GPU hours |\n|---|---|---|---|---|---|'
)


def read_models() -> list[dict]:
    """The entries of all metafiles."""
    paths = sorted(ROOT.glob('configs/*/metafile.yml'))
    return [model for path in paths for model in yaml.safe_load(path.read_text())['Models']]


def memory(parameters: int, activations: int, images: int, mixed: bool) -> float:
    """Bytes that a GPU should need."""
    return BYTES_PER_PARAMETER * parameters + images * BYTES_PER_ACTIVATION[mixed] * activations


def hours(flops: int, images: int) -> float:
    """GPU hours that a training on so many images, counted each time, should take."""
    return images * 3 * flops / SUSTAINED / 3600


def row(model: dict) -> str:
    """The row of a model in the table."""
    metadata = model['Metadata']
    cfg = cli.load_config(str(ROOT / model['Config']))
    size = SIZES[metadata['Training Data']]
    cost = get_flops.count(str(ROOT / model['Config']), size)
    parameters, flops, activations = cost.parameters[''], cost.flops[''], cost.activations['']
    images = cfg.train_dataloader.batch_size
    mixed = 'Amp' in cfg.optim_wrapper.type
    seen = metadata['Epochs'] * COCO_IMAGES if 'Epochs' in metadata else metadata['Iterations'] * metadata['Batch Size']
    name = f'[{model["Name"]}](../{model["Config"]})' + (' (mixed)' if mixed else '')
    return (
        f'| {name} | {parameters / 1e6:.0f} | {flops / 1e9:.0f} | {metadata["Batch Size"] // images} × {images} '
        f'| {memory(parameters, activations, images, mixed) / 2**30:.0f} | {hours(flops, seen):.0f} |'
    )


def fill(page: str, rows: dict[str, str]) -> str:
    """The page with these rows, by name of the model, in the place of its own; others stay."""
    start, old, end = re.split(r'(?<=<!-- expected-cost -->\n)(.*?)(?=<!-- end -->)', page, flags=re.DOTALL)
    kept = {match[1]: match[0] for match in re.finditer(r'^\| \[([^]]+)\].*$', old, re.MULTILINE)}
    lines = {**kept, **rows}
    order = [model['Name'] for model in read_models() if model['Name'] in lines]
    return start + '\n' + '\n'.join([HEADER, *(lines[name] for name in order)]) + '\n\n' + end


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', metavar='TEXT', help='models whose name contains this; default: all')
    args = parser.parse_args(argv)
    models = [model for model in read_models() if args.only in model['Name']]
    if not models:
        names = ', '.join(model['Name'] for model in read_models())
        raise UserError(f'--only {args.only!r}: no model has this in its name; there are {names}')
    for model in tqdm(models, desc='counting'):
        counted = {model['Name']: row(model)}  # takes a while, in which the page may change
        PAGE.write_text(fill(PAGE.read_text(), counted))


if __name__ == '__main__':
    main()

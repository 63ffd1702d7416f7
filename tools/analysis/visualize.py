"""Draw what a network looks at, over any picture: similarity, chosen cells, receptive fields, filters, feature maps.

It works on whole models of a config and on backbones by name, ours, those of the toolboxes and timm's, trained or not.
A model that tests crop by crop gets a row for each crop. What is drawn, by ``--show``:

- similarity, context: FCViT, the signed weights of each head and what the global context adds;
- questions, cells: FlexAttention, the glance, the answers of the learned questions, the chosen cells; of several
  pictures also how often each region was chosen;
- over-focus, filters: De-focus, what the last token depends on layer by layer with the share of the tokens that this
  spreads over, and the bandpass filters in time and in frequency;
- features, field: any network, feature maps, and the effective receptive field of the middle of each map.

Examples:
    python tools/analysis/visualize.py CONFIG street.jpg --checkpoint CHECKPOINT --out-dir pictures
    python tools/analysis/visualize.py CONFIG --num-images 100 --checkpoint CHECKPOINT --show cells
    python tools/analysis/visualize.py CONFIG street.jpg --show similarity --layers "stage 3" --width 1000
    python tools/analysis/visualize.py CONFIG street.jpg --checkpoint EARLY.pth LATE.pth --show similarity
    python tools/analysis/visualize.py timm:resnet50 street.jpg --size 224x224 --show features field
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmvisattn import cli
from mmvisattn.errors import UserError
from mmvisattn.visualization import KINDS, Look, Map, Recorder, draw_layers, effective_receptive_field, stack_rows
from mmvisattn.visualization.filters import draw_filters
from mmvisattn.visualization.panels import caption, fit, join_panels, overlay
from mmvisattn.visualization.receptive_field import side_of_mass
from mmvisattn.visualization.recorder import available_kinds, feature_maps
from mmvisattn.visualization.token_fields import sequence_backbones, token_fields

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.device import get_device
from mmengine.visualization import Visualizer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the clone, of which `tools` is a package

from tools.analysis.measure import parse_count
from tools.analysis.subjects import Subject, add_arguments, check_images, stem

PANEL = 160  # longer side of a panel, pixels, where there are many
MORE_KINDS = ('over-focus', 'filters', 'field')  # beside those that a recorder notes
FIELD_SHARE = 0.5
CHANNELS = (2, 4)  # rows and columns of single channels of a feature map


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        '--checkpoint', nargs='+', default=[None], metavar='FILE', help='weights; several are drawn side by side'
    )
    parser.add_argument(
        '--show', nargs='+', choices=[*KINDS, *MORE_KINDS], help='what to draw; default: all that the network has'
    )
    parser.add_argument(
        '--layers',
        default='',
        metavar='TEXT',
        help='only layers with this in the name that the drawing has; default: all',
    )
    parser.add_argument('--width', type=parse_count, metavar='PIXELS', help='shrink drawings that are wider')
    parser.add_argument('--out-dir', default='work_dirs/looks', help='where the drawings go; default: %(default)s')
    return parser.parse_args(argv)


def has(subject: Subject) -> list[str]:
    """What can be drawn of a network."""
    sequences = any(sequence_backbones(subject.model))
    return [*available_kinds(subject.model), *(MORE_KINDS if sequences else ('field',))]


class Artist:
    """Draws what one network looks at.

    Args:
        subject (Subject): The network.
        kinds (Sequence[str]): What to draw.
        layers (str): What the name of a layer has in it to be drawn. Defaults to ``''``, all.
    """

    def __init__(self, subject: Subject, kinds: Sequence[str], layers: str = '') -> None:
        self.subject, self.kinds, self.layers = subject, kinds, layers
        self.recorder = Recorder(subject.model, [kind for kind in kinds if kind in KINDS])
        self.frequency: np.ndarray | None = None  # how often each cell was chosen
        self.looks = 0

    def draw(self, image: str) -> dict[str, np.ndarray]:
        """Show the network a picture, and draw a sheet for each kind but ``'filters'``."""
        self.recorder.take()  # what the fields of the last picture made the network look at
        sample = self.subject.show(image)
        looks = self.recorder.take()
        content = None if sample is None else sample.img_shape
        sheets: dict[str, list[np.ndarray]] = {}
        for look in looks:
            picture = self.subject.picture(look.image, content)
            for kind in self.kinds:
                rows = self._rows(kind, look, picture)
                if rows:
                    sheets.setdefault(kind, []).extend(rows)
        if looks and 'cells' in self.kinds:
            self._count(looks)
        return {kind: stack_rows(rows) for kind, rows in sheets.items()}

    def _rows(self, kind: str, look: Look, picture: np.ndarray) -> list[np.ndarray]:
        maps = [one for one in look.of_kind(kind) if self.layers in one.layer]
        if look.of_kind(kind) and not maps:
            names = dict.fromkeys(one.layer for one in look.of_kind(kind))
            raise UserError(
                f'--layers {self.layers!r}: no layer of {kind} has this in its name; there are {"; ".join(names)}'
            )
        if kind == 'field':
            return [self._fields(look, picture)]
        if kind == 'over-focus':
            return [self._token_fields(look, picture)]
        if kind == 'cells':
            return [draw_layers(picture, *label(one), {layer_of(one): one.values}, one.cell) for one in maps]
        if kind == 'features':
            return [features_row(picture, one) for one in maps]
        rows = []
        for layer in dict.fromkeys(one.layer for one in maps):
            panels = [caption(fit(picture, PANEL), layer)]
            if kind == 'questions' and look.glance is not None and layer.startswith('FlexViT'):
                zoom = self.subject.backbone.zoom  # without what fills up the batch and the last cells
                glance = self.subject.picture(look.glance, [-(-side // zoom) for side in picture.shape[:2]])
                panels.append(caption(fit(glance, PANEL), 'glance'))
            for one in maps:
                if one.layer == layer:
                    drawn = overlay(picture, one.values, one.cell, signed=kind == 'similarity')
                    panels.append(caption(fit(drawn, PANEL), one.head))
            rows.append(join_panels(panels))
        return rows

    def _fields(self, look: Look, picture: np.ndarray) -> np.ndarray:
        backbone = self.subject.backbone
        with torch.no_grad():
            levels = len(feature_maps(backbone(look.image[None])))
        panels = [caption(fit(picture, PANEL), 'receptive fields')]
        for level in range(levels):
            field = effective_receptive_field(backbone, look.image, level)
            side = side_of_mass(field, FIELD_SHARE)
            values = field[: picture.shape[0], : picture.shape[1]].cpu().numpy()
            drawn = overlay(picture, np.log10(np.maximum(values, values.max() * 1e-4)), (1, 1))
            panels.append(caption(fit(drawn, PANEL), f'level {level}: {FIELD_SHARE:.0%} in {side}'))
        return join_panels(panels)

    def _token_fields(self, look: Look, picture: np.ndarray) -> np.ndarray:
        (network,) = sequence_backbones(self.subject.model)
        panels = [caption(fit(picture, PANEL), 'seen by the last token')]
        for layer, values, share in token_fields(network, look.image):
            if self.layers not in layer:
                continue
            side = network.patch_embed.projection.stride[0]
            drawn = overlay(picture, np.log10(np.maximum(values, values.max() * 1e-4)), (side, side))
            panels.append(caption(fit(drawn, PANEL), f'{layer}: {share:.1%} of the others'))
        return join_panels(panels)

    def _count(self, looks: Sequence[Look]) -> None:
        """Add up chosen cells; grids of other shapes are brought to that of the first."""
        for look in looks:
            for one in look.of_kind('cells')[-1:]:
                values = one.values.astype(np.float32)
                if self.frequency is None:
                    self.frequency = np.zeros_like(values)
                if values.shape != self.frequency.shape:
                    values = cv2.resize(values, self.frequency.shape[::-1], interpolation=cv2.INTER_LINEAR)
                self.frequency += values
                self.looks += 1

    def draw_frequency(self) -> np.ndarray:
        """How often each region was chosen in all pictures so far."""
        share = self.frequency / self.looks
        panel = np.full((24 * share.shape[0], 24 * share.shape[1], 3), 255, np.uint8)
        text = f'chosen in {share.min():.0%} to {share.max():.0%} of {self.looks}'
        return caption(fit(overlay(panel, share, (24, 24))), text)


def label(one: Map) -> tuple[str]:
    """The network's name in the layer of a map."""
    return (one.layer.partition(',')[0],)


def layer_of(one: Map) -> int:
    """The number at the end of the layer of a map."""
    return int(one.layer.rpartition(' ')[2])


def features_row(picture: np.ndarray, one: Map) -> np.ndarray:
    """The mean over the channels of a feature map, and its strongest channels, as mmengine draws them."""
    values = torch.from_numpy(one.values)
    rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    height, width = (round(side * n) for side, n in zip(one.cell, values.shape[1:]))
    padded = cv2.copyMakeBorder(
        rgb, 0, max(height - len(rgb), 0), 0, max(width - rgb.shape[1], 0), cv2.BORDER_CONSTANT, value=(0, 0, 0)
    )[:height, :width]
    spread = F.interpolate(values[None], size=(height, width), mode='bilinear')[0]
    mean = Visualizer.draw_featmap(spread, padded, channel_reduction='squeeze_mean')
    mean = mean[: len(rgb), : rgb.shape[1]]
    topk = min(CHANNELS[0] * CHANNELS[1], len(values))
    # Enlarged: mmengine writes the numbers of the channels into the maps.
    large = F.interpolate(values[None], scale_factor=max(1, 160 / values.shape[2]), mode='bilinear')[0]
    single = Visualizer.draw_featmap(large, None, channel_reduction=None, topk=topk, arrangement=CHANNELS)
    title = f'{one.layer}: {"×".join(map(str, values.shape))}'
    panels = [caption(fit(picture), title), caption(fit(cv2.cvtColor(mean, cv2.COLOR_RGB2BGR)), 'mean of channels')]
    channels = cv2.cvtColor(single, cv2.COLOR_RGB2BGR)
    return join_panels([*panels, caption(fit(channels, 2 * len(panels[0])), f'{topk} strongest channels')])


def shrunk(sheet: np.ndarray, width: int | None) -> np.ndarray:
    """A drawing that is no wider than that."""
    if width is None or sheet.shape[1] <= width:
        return sheet
    return cv2.resize(sheet, (width, round(len(sheet) * width / sheet.shape[1])), interpolation=cv2.INTER_AREA)


def find_targets(images: Sequence[str], kinds: Sequence[str], out_dir: Path) -> dict[tuple[str, str], Path]:
    """Where the drawing of each picture and kind is to be written.

    Raises:
        UserError: If one would overwrite a picture or another drawing.
    """
    targets: dict[tuple[str, str], Path] = {}
    for image in images:
        for kind in kinds:
            target = out_dir / f'{stem(image)}-{kind}.jpg'
            if target in targets.values() or any(target.exists() and target.samefile(other) for other in images):
                raise UserError(f'drawing {image!r} would overwrite {str(target)!r}; give another --out-dir')
            targets[image, kind] = target
    return targets


@cli.one_line_errors
def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print the path of each drawing."""
    args = parse_args(argv)
    check_images(args.images)
    device = args.device or get_device()
    subjects = [Subject(args.network, path, device, args.cfg_options, args.size) for path in args.checkpoint]
    kinds = args.show or has(subjects[0])
    for kind in kinds:
        if kind not in has(subjects[0]):
            raise UserError(f'--show {kind}: this network has {", ".join(has(subjects[0]))}')
    out_dir = Path(args.out_dir)
    images = args.images or ([] if kinds == ['filters'] else subjects[0].test_images(args.count))
    targets = find_targets(images, [kind for kind in kinds if kind != 'filters'], out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    if 'filters' in kinds:
        for number, subject in enumerate(subjects, 1):
            written.append(out_dir / f'filters{f"-{number}" if len(subjects) > 1 else ""}.png')
            draw_filters(subject.model, written[-1], layers=args.layers)
    artists = [Artist(subject, [kind for kind in kinds if kind != 'filters'], args.layers) for subject in subjects]
    for image in tqdm(images, desc='pictures', disable=len(images) < 2):
        drawn = [artist.draw(image) for artist in artists]
        for kind in drawn[0]:
            sheets = [sheets[kind] for sheets in drawn]
            if len(sheets) > 1:
                sheets = [caption(sheet, Path(path).name) for sheet, path in zip(sheets, args.checkpoint)]
            written.append(targets[image, kind])
            sheet = shrunk(join_panels(sheets), args.width)
            cv2.imwrite(str(written[-1]), sheet, [cv2.IMWRITE_JPEG_QUALITY, 90])
    if len(images) > 1 and all(artist.frequency is not None for artist in artists):
        written.append(out_dir / 'chosen-often.jpg')
        cv2.imwrite(str(written[-1]), join_panels([artist.draw_frequency() for artist in artists]))
    for path in written:
        print(path)


if __name__ == '__main__':
    main()

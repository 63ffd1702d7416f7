import io
import zipfile

from mmvisattn.datasets import read_detection, read_segmentation

import numpy as np
import pytest
from PIL import Image

from .utils import run_tool


@pytest.fixture
def wheel(tmp_path):
    """A wheel with a picture of 16 bits and numbered discs in place of nuclei."""
    rows, columns = np.mgrid[:256, :256]
    labels = np.zeros((256, 256), np.uint16)
    for number, (y, x) in enumerate([(40, 40), (60, 200), (128, 128), (200, 60), (220, 220)], 1):
        labels[(rows - y) ** 2 + (columns - x) ** 2 < 100] = number
    path = tmp_path / 'stardist-0.whl'
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in (('img2d', labels * 40), ('mask2d', labels)):
            buffer = io.BytesIO()
            Image.fromarray(content).save(buffer, 'TIFF')
            file.writestr(f'stardist/data/images/{name}.tif', buffer.getvalue())
    return path


def test_every_format_says_the_same(wheel, tmp_path, capsys):
    out = tmp_path / 'nuclei'
    run_tool('data/make_nuclei', wheel, out)
    assert '4 tiles' in capsys.readouterr().out
    boxes = {}
    for name in ('coco', 'voc', 'yolo'):
        splits = read_detection(out / name).splits.values()
        files = {id(split): {image['id']: image['file_name'][-11:] for image in split.images} for split in splits}
        objects = [(files[id(split)][one['image_id']], one['bbox']) for split in splits for one in split.annotations]
        boxes[name] = sorted((file, [round(value) for value in box]) for file, box in objects)
    # The disc in the middle is cut in four.
    assert len(boxes['coco']) == 8 and boxes['coco'] == boxes['voc'] == boxes['yolo']
    masks = read_segmentation(out / 'masks')
    content = read_detection(out / 'coco')
    area = sum(one['area'] for split in content.splits.values() for one in split.annotations)
    assert masks.pixels[1] == area == masks.histogram[255]


def test_what_is_refused(wheel, tmp_path, capsys):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/a').touch()
    (tmp_path / 'other.whl').write_bytes(b'no wheel')
    for args, words in (
        ((wheel, tmp_path / 'full'), 'holds something'),
        ((tmp_path / 'other.whl', tmp_path / 'new'), 'is no wheel of stardist'),
        ((tmp_path / 'nowhere.whl', tmp_path / 'new'), 'does not exist'),
    ):
        with pytest.raises(SystemExit) as ended:
            run_tool('data/make_nuclei', *args)
        assert ended.value.code == 2 and words in capsys.readouterr().err

"""Installation of mmvisattn with its configs, in ``.mim``, where OpenMMLab looks for them; the tools need a clone."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


version: dict[str, str] = {}
exec((ROOT / 'mmvisattn' / 'version.py').read_text(), version)

setup(
    name='mmvisattn',
    version=version['__version__'],
    description="Attention backbones and necks for OpenMMLab's detectors and segmentors",
    license='Apache-2.0',
    packages=find_packages(include=['mmvisattn', 'mmvisattn.*']),
    license_files=['LICENSE'],
    package_data={
        'mmvisattn': [
            'py.typed',
            'ops/selective_scan/*.cpp',
            '.mim/model-index.yml',
            '.mim/configs/**/*.py',
            '.mim/configs/*/*.md',
            '.mim/configs/*/metafile.yml',
        ]
    },
    python_requires='>=3.10,<3.13',
    install_requires=requirements('runtime'),
    # A compiled mmcv must not be overwritten, so mmcv-lite is an extra that the user asks for.
    extras_require={
        'det': requirements('det'),
        'seg': requirements('seg'),
        'lite': requirements('lite'),
        'tests': requirements('tests'),
        'docs': requirements('docs'),
    },
)

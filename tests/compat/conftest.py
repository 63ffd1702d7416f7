"""The measures are in place before any test module imports mmcv, mmdet or mmseg."""

import mmvisattn  # noqa: F401

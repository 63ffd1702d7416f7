import mmvisattn  # noqa: F401  in place before any test module imports mmcv, mmdet or mmseg

import torch

# The tensors are small; a second thread costs more in waiting than it saves, much more on a busy machine.
torch.set_num_threads(1)

"""Sharded training that can be resumed."""

from typing import Any

import torch
from mmengine._strategy import FSDPStrategy as StockFSDPStrategy
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from packaging.version import Version
from torch.distributed.fsdp import FullyShardedDataParallel

from ..errors import UserError
from ..registry import STRATEGIES

# Seen with 2.8.0 and not with 2.15.0; what lies between has not been tried.
CRASHES_ON_CPU = Version(torch.__version__).release[:2] == (2, 8)


@STRATEGIES.register_module()
class FSDPStrategy(StockFSDPStrategy):
    """mmengine's ``FSDPStrategy``, whose checkpoints any number of processes can resume.

    Of mmengine 0.10 it mends

    - resuming: the state of the optimizer goes to torch in an order of arguments that torch no longer has;
    - saving on a CPU: torch gathers one kind of state after another, such as AdamW's two moments, in the same memory,
      which on a GPU is copied and on a CPU is not, so that all have the values of the last.

    Args:
        state_dict_cfg (str | dict): As of mmengine's. Defaults to ``'full'``, one file of whole weights; mmengine's
            default is a folder with the parts of each process.
        **kwargs (Any): As of mmengine's.

    Raises:
        UserError: If checkpoints would be in parts, or on a CPU with torch 2.8, which ends in a segmentation fault when
            it gathers the weights there.
    """

    def __init__(self, *, state_dict_cfg: str | dict = 'full', **kwargs: Any) -> None:
        super().__init__(state_dict_cfg=state_dict_cfg, **kwargs)
        if not self._is_full_state_dict():
            raise UserError(
                f'mmvisattn.FSDPStrategy saves whole weights, and `strategy.state_dict_cfg` is {state_dict_cfg!r}; '
                "leave it out, or take mmengine's FSDPStrategy, whose checkpoints in parts it cannot resume either"
            )
        if CRASHES_ON_CPU and get_device() == 'cpu':
            raise UserError(
                f'torch {torch.__version__} crashes when it saves weights that are sharded over CPUs; update torch, or '
                'take `strategy` out of the config'
            )

    def optim_state_dict(self) -> dict:
        """The state of the optimizer, one kind after another, each in memory of its own.

        Returns:
            dict: ``state`` by the names of the parameters, and ``param_groups``; empty in all processes but the first.
        """
        own = self.optim_wrapper.state_dict()
        here = {name for state in own['state'].values() for name in state}
        kinds = sorted(set().union(*all_gather_object(here)))  # a process may hold no part that has any
        whole = FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper, {**own, 'state': {}})
        for kind in kinds:
            state = {key: {kind: value[kind]} for key, value in own['state'].items() if kind in value}
            gathered = FullyShardedDataParallel.optim_state_dict(
                self.model, self.optim_wrapper, {**own, 'state': state}
            )
            for name, values in gathered.get('state', {}).items():
                value = values[kind].clone() if isinstance(values[kind], torch.Tensor) else values[kind]
                whole['state'].setdefault(name, {})[kind] = value
        return whole

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Give each process its part of the optimizer's state.

        Args:
            state_dict (dict): What :meth:`optim_state_dict` has returned in the first process.
        """
        own = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
        )
        self.optim_wrapper.load_state_dict(own)

from .cell_loss_hook import CellLossHook
from .cell_rule_hook import CellRuleHook
from .checkpoint_report_hook import CheckpointReportHook, report_checkpoint
from .compile_hook import CompileHook
from .cpu_amp_optim_wrapper import CpuAmpOptimWrapper
from .durable_checkpoint_hook import DurableCheckpointHook
from .finite_hook import FiniteHook
from .flex_ramp_hook import FlexRampHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .padding_hook import PaddingHook, watch_images
from .picture_size_hook import PictureSizeHook
from .resume_hook import ResumeHook
from .scheduled_drop_path_hook import ScheduledDropPathHook

__all__ = [
    'CellLossHook',
    'CellRuleHook',
    'CheckpointReportHook',
    'CompileHook',
    'CpuAmpOptimWrapper',
    'DurableCheckpointHook',
    'FiniteHook',
    'FlexRampHook',
    'LayerDecayOptimWrapperConstructor',
    'PaddingHook',
    'PictureSizeHook',
    'ResumeHook',
    'ScheduledDropPathHook',
    'report_checkpoint',
    'watch_images',
]

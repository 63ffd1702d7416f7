from .cell_rule_hook import CellRuleHook
from .checkpoint_report_hook import CheckpointReportHook, report_checkpoint
from .flex_ramp_hook import FlexRampHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .scheduled_drop_path_hook import ScheduledDropPathHook

__all__ = [
    'CellRuleHook',
    'CheckpointReportHook',
    'FlexRampHook',
    'LayerDecayOptimWrapperConstructor',
    'ScheduledDropPathHook',
    'report_checkpoint',
]

from .checkpoint_report_hook import CheckpointReportHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .scheduled_drop_path_hook import ScheduledDropPathHook

__all__ = ['CheckpointReportHook', 'LayerDecayOptimWrapperConstructor', 'ScheduledDropPathHook']

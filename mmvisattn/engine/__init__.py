from .checkpoint_report_hook import CheckpointReportHook, report_checkpoint
from .durable_checkpoint_hook import DurableCheckpointHook
from .flex_ramp_hook import FlexRampHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .resume_hook import ResumeHook
from .scheduled_drop_path_hook import ScheduledDropPathHook

__all__ = [
    'CheckpointReportHook',
    'DurableCheckpointHook',
    'FlexRampHook',
    'LayerDecayOptimWrapperConstructor',
    'ResumeHook',
    'ScheduledDropPathHook',
    'report_checkpoint',
]

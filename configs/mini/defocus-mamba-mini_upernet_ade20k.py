# UPerNet with a small De-focus Mamba on generated scenes, minutes on a CPU.
_base_ = [
    '../_base_/runtime.py',
    '../_base_/models/mini_upernet.py',
    '../_base_/datasets/mini_ade20k_2x.py',
    '../_base_/schedules/mini_800.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(256, 320)),
    backbone=dict(
        _delete_=True,
        type='mmvisattn.DefocusMamba',
        arch=dict(embed_dims=128, depth=4, d_inner=256, d_state=8, dt_rank=8, group_norm_size=64),
        pretrain_size=64,
        rope_scale=1.0,
        delta_scale=1.0,
        drop_path_rate=0.1,
    ),
    auxiliary_head=[
        _base_.model.auxiliary_head,
        dict(type='mmvisattn.ClassPresenceHead', in_channels=64, in_index=2, num_classes=11, loss_weight=0.4),
    ],
)

optim_wrapper = dict(optimizer=dict(lr=3e-3))
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvisattn.ScheduledDropPathHook', start=0.0, end=0.1, by_epoch=False),
]

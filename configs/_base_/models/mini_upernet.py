# UPerNet with heads of 64 channels for the eleven classes of the generated scenes, behind the simple pyramid of a plain
# backbone; the backbone is the config's.
_base_ = ['../mmvisattn.py', 'mmseg::_base_/models/upernet_r50.py']

model = dict(
    data_preprocessor=dict(size=(128, 160)),
    pretrained=None,
    neck=dict(type='mmvisattn.SimpleFPN', in_channels=128, out_channels=64, num_outs=4, start_level=1),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64, num_classes=11),
    auxiliary_head=dict(in_channels=64, channels=64, num_classes=11),
)

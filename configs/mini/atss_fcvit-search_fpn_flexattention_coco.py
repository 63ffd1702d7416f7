# The same with FlexAttention between FPN and head: from stride 32, of 8×8 tokens, to stride 8. A cell is 32×32 pixels;
# there are 64, of which a tenth is taken.
_base_ = ['./atss_fcvit-search_fpn_coco.py', '../_base_/models/mini_flexattention_neck.py']

model = dict(neck=[_base_.model.neck, dict(**_base_.flexattention, select_ratio=0.1)])
custom_hooks = [*_base_.custom_hooks, *_base_.flexattention_hooks]

# FlexAttention between FPN and heads of the small Mask R-CNN. The scenes are small: the coarse level is stride 16, of
# 10×8 tokens, and a quarter of its cells is selected.
_base_ = ['./mask-rcnn_fcvit-mini_fpn_coco.py', '../_base_/models/mini_flexattention_neck.py']

model = dict(neck=[_base_.model.neck, dict(**_base_.flexattention, select_ratio=0.25)])
custom_hooks = [*_base_.custom_hooks, *_base_.flexattention_hooks]

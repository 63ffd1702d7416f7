# First among the bases of every config here: with the package imported the `mmdet::` and `mmseg::` bases after it
# resolve on today's setuptools, and mmcv's operators exist before a head asks for them. (An import statement would make
# this a config of mmengine's other style, which cannot be mixed with those of the toolboxes.)
__import__('mmvisattn')

custom_imports = dict(imports=['mmvisattn'], allow_failed_imports=False)
custom_hooks = [dict(type='mmvisattn.CheckpointReportHook')]

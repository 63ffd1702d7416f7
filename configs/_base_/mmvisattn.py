# First among the bases: with the package imported the `mmdet::` and `mmseg::` bases after it resolve on today's
# setuptools, and mmcv's operators exist before a head asks for them. (An import statement would make this a config of
# mmengine's other style, which cannot be mixed with those of the toolboxes.) It sets no key: two bases of one config
# must not set the same.
__import__('mmvisattn')

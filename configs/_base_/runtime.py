# What all configs here share, for stock bases that set neither key.
_base_ = './mmvisattn.py'

custom_imports = dict(imports=['mmvisattn'], allow_failed_imports=False)
custom_hooks = [dict(type='mmvisattn.CheckpointReportHook'), dict(type='mmvisattn.ResumeHook')]

"""Numeric kernels: one function each, several backends; torch alone, nothing of OpenMMLab."""

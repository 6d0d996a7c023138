"""Operators that may run as accelerator kernels, each behind one function."""

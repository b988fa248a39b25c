"""The GPU kernels, in Triton: one module per family, imported when the first CUDA tensor arrives."""

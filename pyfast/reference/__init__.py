"""What every operator means, in plain PyTorch: any dtype, no speed. The tests believe this package and nothing else."""

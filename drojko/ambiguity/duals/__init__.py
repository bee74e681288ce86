"""What the sets that reweight share: duals at given points, their numerics, kernels."""

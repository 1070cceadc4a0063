"""What is faster and not the figure: CPU kernels, BatchNorm folding, weights in low precision."""

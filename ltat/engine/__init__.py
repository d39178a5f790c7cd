"""How a network runs: precision, working copies, CUDA graphs. It imports no attack."""

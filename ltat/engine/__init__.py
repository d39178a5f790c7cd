"""How a network is run: precision, working copies, CUDA graphs. It knows no attack and no method."""

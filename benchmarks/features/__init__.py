"""Features of many examples beside torch.func's Jacobians and dattri's projection of them."""

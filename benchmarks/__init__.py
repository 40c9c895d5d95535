"""Timings of the operator against memory's own speed, eager PyTorch and torch.compile."""

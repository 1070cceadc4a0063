"""Shared by all tests: one thread, so that figures do not depend on the machine's cores."""
import torch

torch.set_num_threads(1)

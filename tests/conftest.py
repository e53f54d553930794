"""Settings for all tests."""

import torch

# Tests run in several processes at once; threads on top of them only get into each other's way.
torch.set_num_threads(1)

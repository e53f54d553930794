"""Settings for all tests."""

import os

# Triton reads this when it is first imported, which torch and Lightning may do: so before them.
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch

if torch.cuda.is_available():
    # Where there is a GPU the compiled kernels are what should be tested.
    os.environ["TRITON_INTERPRET"] = "0"

# Tests run in several processes at once; threads on top of them only get into each other's way.
torch.set_num_threads(1)

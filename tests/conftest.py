"""Without a GPU Triton runs in its interpreter, said before anything imports it; and no test depends on the clock."""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

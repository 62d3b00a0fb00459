"""Group masking for PyTorch: hide connected groups of patches and fill them with zeros, noise or other images."""

from .describe import Description, describe
from .filling.fills import Alien, Fill, Mean, Noise, Shuffle, Zeros
from .grid import keep_indices, masked_indices, patch_to_pixel
from .labels import mix_labels
from .plan import MaskPlan
from .scores import from_scores
from .shapes import block_sizes
from .transform import GroupMask, Masked

__version__ = "0.2.0"

__all__ = [
    "Alien",
    "Description",
    "Fill",
    "GroupMask",
    "MaskPlan",
    "Masked",
    "Mean",
    "Noise",
    "Shuffle",
    "Zeros",
    "block_sizes",
    "describe",
    "from_scores",
    "keep_indices",
    "masked_indices",
    "mix_labels",
    "patch_to_pixel",
]

"""Criteria for clipping, and the schedules that they give."""

from ._best import BestClip as BestClip, best_clip as best_clip
from ._ceiling import ceiling as ceiling
from ._fisher import fisher_information as fisher_information
from ._scaling import (
    ComputeOptimal as ComputeOptimal,
    ScalingLaw as ScalingLaw,
    compute_optimal as compute_optimal,
    scaling_law as scaling_law,
)
from ._schedules import heuristic as heuristic, max_ccc as max_ccc
from ._score import score as score
from ._setting import Setting as Setting
from ._stable_lr import stable_lr as stable_lr

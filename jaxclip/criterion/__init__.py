"""Criteria for clipping, and the schedules that they give."""

from ._best import BestClip as BestClip, best_clip as best_clip
from ._ceiling import ceiling as ceiling
from ._fisher import fisher_information as fisher_information
from ._schedules import (
    heuristic_clip as heuristic_clip,
    max_ccc as max_ccc,
    score_clip as score_clip,
)
from ._stability import stable_lr as stable_lr

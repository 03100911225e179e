"""Losses that are functions of the parameters alone."""

from ._base import AbstractLandscape as AbstractLandscape, Landscape as Landscape
from ._two_wells import TwoWells as TwoWells

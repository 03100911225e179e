"""The verdict on a data set, with its numbers and its figure."""

from ._advice import Advice as Advice
from ._advise import advise as advise

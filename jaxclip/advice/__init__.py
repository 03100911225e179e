"""The verdict on a data set, with its numbers and its figure."""

from ._advice import Advice as Advice
from ._advise import advise as advise
from ._law import MomentTable as MomentTable
from ._measure import Gain as Gain
from ._outcome import Outcome as Outcome
from ._predict import Guess as Guess, Prediction as Prediction
from ._prepare import prepare as prepare
from ._recipe import Recipe as Recipe
from ._reference import Reference as Reference
from ._residuals import ResidualLaw as ResidualLaw
from ._runs import Settings as Settings
from ._table import Table as Table
from ._verdict import Verdict as Verdict

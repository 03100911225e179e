"""Whether clipping per example helps any JAX model now, from its gradients."""

from ._diagnose import diagnose as diagnose
from ._diagnosis import Diagnosis as Diagnosis, Estimate as Estimate

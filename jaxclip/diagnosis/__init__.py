"""Whether clipping helps a JAX model now, by example or batch, from its gradients; and
whether the links of an optax chain go together."""

from ._chain import ChainCheck as ChainCheck, ClipUse as ClipUse, Finding as Finding
from ._check_chain import check_chain as check_chain
from ._diagnose import diagnose as diagnose
from ._diagnosis import Diagnosis as Diagnosis, Estimate as Estimate

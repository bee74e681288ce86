"""Your own training loop: robust losses and worst-case inputs for any torch module."""

from drojko.nn.robust_loss import RobustLoss
from drojko.nn.worst_inputs import worst_inputs

__all__ = ["RobustLoss", "worst_inputs"]

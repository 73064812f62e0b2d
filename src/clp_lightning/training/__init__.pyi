from .clp import ClpModule as ClpModule
from .reward_model import train_reward_model as train_reward_model
from .sft import SftModule as SftModule
from .trainer import StepModule as StepModule
from .trainer import fit as fit

__all__ = ["ClpModule", "SftModule", "StepModule", "fit", "train_reward_model"]

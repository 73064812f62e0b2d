from .reward_set import Monitors as Monitors
from .reward_set import ReferenceReward as ReferenceReward
from .reward_set import Reward as Reward
from .reward_set import RewardSet as RewardSet
from .reward_set import measure_normalization as measure_normalization

__all__ = ["Monitors", "ReferenceReward", "Reward", "RewardSet", "measure_normalization"]

"""CLP Lightning: one language model that takes the trade-off between its rewards as an input."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clp_lightning.policy.steerable import SteerablePolicy

__all__ = ["SteerablePolicy"]


def __getattr__(name: str) -> Any:
    """Import `SteerablePolicy` at first use: torch takes seconds, and most commands do not need it."""
    if name == "SteerablePolicy":
        from clp_lightning.policy.steerable import SteerablePolicy

        return SteerablePolicy
    raise AttributeError(f"module 'clp_lightning' has no attribute {name!r}")

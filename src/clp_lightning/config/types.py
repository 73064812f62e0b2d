"""What the sections of `params.yaml` are built from: frozen mappings and the ranges of their values."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from clp_lightning.config.problems import NAME

Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen mapping of `params.yaml`; keys it does not know are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

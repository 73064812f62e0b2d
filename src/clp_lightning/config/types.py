"""What the sections of `params.yaml` are built from: frozen mappings and the ranges of their values."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from clp_lightning.config.problems import NAME

Name = Annotated[str, Field(pattern=NAME)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def _function(value: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError(f"must be module:function, as in scoring:politeness, but found {value!r}")
    return value


FunctionName = Annotated[str, AfterValidator(_function)]  # of the project, or of an installed module


class Section(BaseModel):
    """A frozen mapping of `params.yaml`; keys it does not know are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

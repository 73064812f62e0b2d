"""Base models that the tests of steering share: one of every family, and the smallest alone."""

import pytest
from tiny_models import FAMILIES, write_model


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param) / "reference")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("llama") / "reference")

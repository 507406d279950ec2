import doctest
import importlib
import pkgutil

import pytest

import lightning_attr.ground_truth.metrics as metrics

MODULES = [module.name for module in pkgutil.iter_modules(metrics.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"lightning_attr.ground_truth.metrics.{name}"))
    assert result.attempted > 0
    assert result.failed == 0

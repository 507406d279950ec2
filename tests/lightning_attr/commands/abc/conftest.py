"""An AbC set that is made, once for all tests."""

import pytest
from abc_plans import Planned
from miniature import Project

from lightning_attr.commands.abc import main


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, project: Project) -> Planned:
    planned = Planned(tmp_path_factory.mktemp("abc"), project)
    main(["make", "-c", str(planned.plan)])
    return planned

# SPDX-License-Identifier: Apache-2.0
"""Each test here is run on the machine in memory, and on the real one."""

from collections.abc import Iterator

import pytest

from tapster.kernel.port import Namespace
from tapster.testing import Stranger
from tests.contract import labs
from tests.contract.labs import Lab
from tests.contract.strangers import RealStranger


@pytest.fixture(
    params=[
        pytest.param(labs.fake, id="fake"),
        pytest.param(labs.real, id="real", marks=pytest.mark.kernel),
    ]
)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with request.param() as lab:
        yield lab


@pytest.fixture
def namespace(lab: Lab) -> Iterator[Namespace]:
    namespace = lab.system.netns(None)
    yield namespace
    namespace.close()


@pytest.fixture
def others(lab: Lab) -> Stranger | RealStranger:
    return lab.others()

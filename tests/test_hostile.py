"""Every script against hostile inputs; see hostile.py."""

import pytest

import hostile

CASES = list(hostile.cases())


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return hostile.zoo(tmp_path_factory.mktemp("hostile"))


def test_there_are_cases_for_every_script():
    scripts = {case.script for case in CASES}
    assert len(CASES) >= 500
    tools = {f"tools/{path.name}" for path in hostile.ROOT.glob("tools/*.py")}
    assert scripts >= tools - {"tools/lite.py"}  # which starts other scripts
    assert scripts >= {f"{name}.py" for name in "dataset_tool train val predict export_model infer".split()}


# Each third case is enough to notice a fault while one works; the others are left to test-all.
SHARED_OUT = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if place % 3 else []) for place, case in enumerate(CASES)
]


@pytest.mark.parametrize("case", SHARED_OUT)
def test_it_ends_as_it_should(case, zoo, tmp_path):
    assert not hostile.faults_of(case, *zoo, tmp_path)

"""The interceptors of the examples that keep positions, each against a server that tells them.

(That in TypeScript is among the tests of its package: `tests/hosts/test_retries.py`.)
"""

import pytest

from tests.examples.test_route import ROOT, run


def test_go() -> None:
    assert "ok" in run("go", "test", "./positions", "-count=1", cwd=ROOT / "examples/go")


@pytest.mark.timeout(600)
def test_java() -> None:
    command = "mvn --quiet --batch-mode test-compile exec:java -Dexec.classpathScope=test"
    main = "-Dexec.mainClass=wfe.examples.PositionsTest"
    assert "ok" in run(*command.split(), main, cwd=ROOT / "examples/java")

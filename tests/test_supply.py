"""What is installed and run by others' hands: pinned by content, and kept from what may publish."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LISTS = (ROOT / "requirements.txt", ROOT / "benchmarks" / "requirements.txt")


def jobs(text: str) -> list[str]:
    """The jobs of a workflow, each with the line that names it."""
    return re.split(r"^  (?=[a-z])", text.partition("\njobs:\n")[2], flags=re.M)[1:]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_get_no_credentials(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []
    assert text.count("persist-credentials: false") == text.count("uses: actions/checkout@")
    assert "\npermissions:\n  contents: read\n" in text  # of every job that asks for nothing else


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_what_may_write_runs_nothing_of_the_project(path: Path) -> None:
    found = jobs(path.read_text(encoding="utf-8"))
    assert found
    for job in found:
        if ": write" in job:
            assert "run:" not in job
            assert "checkout" not in job


def test_the_only_workflow_that_may_write_publishes() -> None:
    may = [path.name for path in WORKFLOWS if any(": write" in job for job in jobs(path.read_text(encoding="utf-8")))]
    assert may == ["publish.yml"]


@pytest.mark.parametrize("path", LISTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_installed_is_pinned_with_its_hashes(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    pins = re.split(r"\n(?=\S)", "\n".join(lines))
    assert len(pins) > 3
    for pin in pins:
        first, *hashes = (line.rstrip(" \\").strip() for line in pin.splitlines())
        assert re.match(r"[\w.-]+==[\w.+!]+", first), pin
        assert hashes, first
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), first


def test_the_tests_run_on_every_python_that_is_allowed() -> None:
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert 'python: ["3.11", "3.12", "3.13"]' in text
    assert "which: [lowest, newest]" in text
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")

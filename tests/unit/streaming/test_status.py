"""The end of a command as it is told: version 4 in JSON, before that in words."""

import json

import pytest

from polypod.streaming import status


def test_success():
    assert json.loads(status.exited(0, as_json=True)) == {"metadata": {}, "status": "Success"}
    assert status.exited(0, as_json=False) == b""


def test_an_exit_code_as_client_go_reads_it():
    told = json.loads(status.exited(7, as_json=True))
    assert told["status"] == "Failure"
    assert told["reason"] == "NonZeroExitCode"
    assert told["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    assert status.exited(7, as_json=False) == told["message"].encode()


def test_a_command_that_could_not_be_run():
    told = json.loads(status.failed("no such program", as_json=True))
    assert (told["status"], told["reason"], told["code"]) == ("Failure", "InternalError", 500)
    assert "no such program" in told["message"]


def test_an_unknown_code_is_never_success():
    assert json.loads(status.exited(None, as_json=True))["status"] == "Failure"
    assert status.exited(None, as_json=False) != b""


@pytest.mark.parametrize("code", [0, 1, 137, 255])
def test_a_client_reads_the_code(code):
    assert status.read(status.exited(code, as_json=True))[0] == code


@pytest.mark.parametrize(
    "told",
    [
        b"words",
        b"{}",
        b"[1]",
        b"\xff",
        b'{"status": "Failure"}',
        b'{"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "x"}]}}',
        b'{"status": "Failure", "details": 5}',
        status.failed("no", as_json=True),
    ],
)
def test_a_failure_without_a_code_is_1(told):
    assert status.read(told)[0] == 1

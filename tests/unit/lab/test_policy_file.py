"""The policies of a kept mesh as a file: its form, its changes, and how a change is waited for."""

from pathlib import Path

import pytest

from tests.fakes.trio_test import trio_test
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.lab.policy_file import PolicyFile, parse
from ztunnel_trio.lab.resources import policy, text_match
from ztunnel_trio.pb.authorization_pb2 import Match

KEEP_OUT = policy("keep-foo-out", Match(namespaces=[text_match("foo")]), deny=True)
OTHER = policy("other", namespace="bar", scope="GLOBAL")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = PolicyFile(tmp_path)

    text = file.write([KEEP_OUT, OTHER])

    assert file.text() == text
    assert parse(text) == [KEEP_OUT, OTHER]
    assert "action: DENY" in text
    assert parse("") == []


@pytest.mark.parametrize("name", ["keep-foo-out", "default/keep-foo-out"])
def test_a_policy_is_deleted_by_its_name_with_or_without_namespace(tmp_path: Path, name: str) -> None:
    file = PolicyFile(tmp_path)
    file.write([KEEP_OUT, OTHER])

    assert parse(file.delete(name)) == [OTHER]
    with pytest.raises(ConfigError, match="no policy keep-foo-out; there are bar/other"):
        file.delete("keep-foo-out")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "no YAML"),
        ("name: x", "a list of policies is expected"),
        ("- name: x", "policy 0: name and namespace are required"),
        ("- {name: x, namespace: y, action: FORBID}", "policy 0: .*action"),
        ("- {name: x, namespace: y, rule: []}", 'policy 0: .*no field named "rule"'),
    ],
)
def test_a_broken_text_is_told_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text)


def test_a_file_that_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*policies\.yaml"):
        PolicyFile(tmp_path).text()


@trio_test
async def test_who_waits_for_a_text_gets_the_complaint_about_that_text(tmp_path: Path) -> None:
    file = PolicyFile(tmp_path)
    file.note("one", "bad")

    assert await file.wait_taken("one") == "bad"

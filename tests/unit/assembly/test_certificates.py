from pathlib import Path

import pytest

from ztunnel_trio.assembly.certificates import check_readable
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.model.source import FromFile, Literal, SystemRoots


def test_a_root_file_must_be_readable_where_there_is_one(tmp_path: Path) -> None:
    for fine in (SystemRoots(), Literal("anything"), FromFile("/dev/null")):
        check_readable("CA_ROOT_CA", fine)

    with pytest.raises(ConfigError, match=rf"^CA_ROOT_CA: {tmp_path}: Is a directory \(os error 21\)$"):
        check_readable("CA_ROOT_CA", FromFile(str(tmp_path)))

"""Whatever an operator writes into a variable ends in a value or in a `ConfigError`."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel_trio.config import load
from ztunnel_trio.config.document import dump_config
from ztunnel_trio.config.listeners import LOOPBACK_IPV6_FILE
from ztunnel_trio.config.mesh_file import MESH_FILE
from ztunnel_trio.config.resolver import RESOLV_CONF
from ztunnel_trio.errors import ConfigError
from ztunnel_trio.facts import env
from ztunnel_trio.grammar import parse_cpus, parse_duration, parse_threads, parse_unsigned, parse_uri
from ztunnel_trio.observe.log import Filter

NEAR_VALUES = st.text("0123456789+-*.%mshdwyµ eE_:/[]{}=,infoatrue\n\"'", max_size=12)
ANY_TEXT = st.one_of(st.text(max_size=40), NEAR_VALUES)
NAMES = st.sampled_from(sorted(name.replace("*", "X") for name in env.NAMES))


class Files:
    """A machine with one mesh file."""

    def __init__(self, mesh: str | None) -> None:
        self.files = {RESOLV_CONF: "nameserver 1.1.1.1", LOOPBACK_IPV6_FILE: "0"}
        if mesh is not None:
            self.files[MESH_FILE] = mesh

    def read_text(self, path: str) -> str:
        if path not in self.files:
            raise FileNotFoundError(2, "No such file or directory")
        return self.files[path]

    def exists(self, path: str) -> bool:
        return path in self.files

    def cpu_count(self) -> int:
        return 4


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, ANY_TEXT, max_size=4), st.none() | ANY_TEXT)
def test_any_environment_is_a_configuration_or_a_config_error(
    environ: dict[str, str], mesh: str | None
) -> None:
    try:
        config = load(environ, Files(mesh))
    except ConfigError:
        return
    assert json.loads(json.dumps(dump_config(config)))["proxyMode"] in ("Shared", "Dedicated")


@settings(max_examples=300)
@given(ANY_TEXT)
def test_any_text_is_a_value_or_a_config_error(text: str) -> None:
    for parse in (
        parse_duration,
        parse_cpus,
        parse_uri,
        Filter.parse,
        lambda text: parse_threads(text, 4),
        lambda text: parse_unsigned(text, 32),
    ):
        try:
            value = parse(text)
        except ConfigError as error:
            assert str(error)
        else:
            assert value is not None


@given(st.integers(0, 2**40), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_durations_add_up(hours: int, minutes: int, seconds: int, millis: int) -> None:
    hours %= 10**6
    expected = hours * 3600 + minutes * 60 + seconds + millis / 1000

    assert abs(parse_duration(f"{hours}h{minutes}m {seconds}+{millis}ms") - expected) < 1e-6


@given(
    st.lists(
        st.builds(
            lambda target, level: f"{target}={level}",
            st.text("abc:", min_size=1, max_size=5),
            st.sampled_from(["off", "error", "warn", "info", "debug", "trace"]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_printed_filter_reads_as_itself(directives: list[str]) -> None:
    chosen = Filter.parse(",".join(directives))

    assert Filter.parse(str(chosen)).directives == chosen.directives

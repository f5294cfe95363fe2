import pytest

from ztunnel_trio.errors import ConfigError
from ztunnel_trio.observe.log import Filter
from ztunnel_trio.observe.log.levels import DEBUG, ERROR, INFO, TRACE


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("info", "info"),
        ("", "error"),
        ("INFO", "info"),
        ("4", "debug"),
        ("0", "off"),
        ("access=debug,info", "access=debug,info"),
        ("info,access=debug", "access=debug,info"),
        ("ztunnel::proxy=debug", "ztunnel::proxy=debug"),
        ("ztunnel::proxy", "ztunnel::proxy=trace"),
        ("warning", "warning=trace"),
        ("a=", "a=error"),
        ("a=info,a=debug", "a=debug"),
        ("aa=info,b=debug,bb=warn,off", "bb=warn,aa=info,b=debug,off"),
        ("a[{x,y}]=info,a=warn", "a[{x,y}]=info,a=warn"),
        ("info,,", "error"),
        ("=debug", "=debug"),
    ],
)
def test_a_filter_prints_most_specific_first(text: str, printed: str) -> None:
    assert str(Filter.parse(text)) == printed
    assert str(Filter.parse(printed)) == printed


@pytest.mark.parametrize(
    "text", ["a=warning", "a=loud", "a=b=info", "a[{x=info", "a[{x}]y=info", "a=6", "a= info"]
)
def test_a_malformed_filter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "target", "level", "wanted"),
    [
        ("info", "ztunnel::proxy", INFO, True),
        ("info", "ztunnel::proxy", DEBUG, False),
        ("ztunnel::proxy=debug", "ztunnel::rbac", ERROR, False),
        ("ztunnel::prox=debug", "ztunnel::proxy::inbound", DEBUG, True),  # a string prefix, no module
        ("ztunnel=debug,ztunnel::proxy=warn", "ztunnel::proxy", INFO, False),
        ("access=off,info", "access", ERROR, False),
        ("off", "access", ERROR, False),
        ("trace", "x", TRACE, True),
    ],
)
def test_the_most_specific_directive_decides(text: str, target: str, level: int, *, wanted: bool) -> None:
    chosen = Filter.parse(text)

    assert chosen.wants(target, level, ()) is wanted
    assert (level >= chosen.reach(target)) is wanted


def test_a_directive_with_fields_needs_all_of_them() -> None:
    chosen = Filter.parse("access[{src.addr,error}]=debug,access=warn")

    assert chosen.wants("access", DEBUG, ["src.addr", "error", "x"])
    assert not chosen.wants("access", DEBUG, ["src.addr"])
    assert chosen.reach("access") == DEBUG


@pytest.mark.parametrize(
    ("base", "added", "printed"),
    [
        ("info", "debug", "debug"),
        ("info", "access=debug,info", "access=debug,info"),
        ("info", "off", "off"),
        ("access=debug,info", "ztunnel::proxy=TRACE", "ztunnel::proxy=trace,access=debug,info"),
        ("info", "access:debug", "access=debug,info"),
        ("info", "ztunnel::proxy:debug", "ztunnel::proxy=debug,info"),
        ("info", "a=4", "a=debug,info"),
    ],
)
def test_levels_are_added_to_a_filter(base: str, added: str, printed: str) -> None:
    assert str(Filter.parse(base).with_levels(added)) == printed


@pytest.mark.parametrize("text", ["INFO", "warning", "ztunnel::proxy", "a=loud", "info,", "", "a:loud", "4"])
def test_what_is_no_level_is_refused_when_added(text: str) -> None:
    with pytest.raises(ConfigError):
        Filter.parse("info").with_levels(text)

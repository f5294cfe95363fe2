from ztunnel_trio.observe.metrics.memory import LIBC, give_back, malloc_trim


def test_memory_is_given_back_where_glibc_is() -> None:
    with open("/proc/self/maps") as maps:
        has_glibc = LIBC in maps.read()

    assert give_back() is has_glibc
    assert (malloc_trim() is not None) is has_glibc

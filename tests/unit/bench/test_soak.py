"""What a soak calls a leak, and what not."""

from bench.soak import Outcome, Sample


def grown(*kib, descriptors=(20, 20, 20, 20, 20)):
    samples = [
        Sample(number, {"daemon": each}, {"daemon": fds})
        for number, (each, fds) in enumerate(zip(kib, descriptors, strict=True))
    ]
    return Outcome(5, 1, samples=samples).complaints()


def test_what_settles_is_no_leak():
    assert grown(40_000, 60_000, 62_000, 63_000, 64_000) == []


def test_memory_that_grows_on_is():
    (found,) = grown(40_000, 100_000, 120_000, 140_000, 160_000)
    assert found == "daemon grew by 60000 KiB, from 100000"


def test_descriptors_that_grow_are():
    (found,) = grown(1, 1, 1, 1, 1, descriptors=(20, 20, 40, 60, 80))
    assert found == "daemon has 60 descriptors more than the 20 it had"


def test_errors_and_what_is_left_are_told():
    outcome = Outcome(1, 1, errors={"CriError: no": 3}, left={"links": ["pv1"]})
    assert outcome.complaints() == ["3 times CriError: no", "left behind: links: pv1"]

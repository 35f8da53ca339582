"""Who the process is: numbers decided once, from a database that may be hostile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import ContainerSecurity, SupplementalGroupsPolicy
from polypod.spec.users import MAX_ID, ResolvedUser, UserDatabase, parse_id, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
www:x:33:33::/var/www:/bin/false
app:x:1000:2000:App:/home/app:/bin/sh
app2:x:1000:3000::/home/other:
zero:x:0:0::/z:
short:x:1001
huge:x:4294967296:4294967296::/:
hexa:x:0x0:0::/:
# comment:x:7:7::/:
broken
1234:x:0:0::/evil:
"""
GROUP = b"""root:x:0:
www:x:33:
app:x:2000:
wheel:x:10:root,app
docker:x:998:app,www
video:x:44:www
huge:x:99999999999:
0500:x:77:app
+:::
"""
DATABASE = UserDatabase(PASSWD, GROUP)
STRICT = SupplementalGroupsPolicy.STRICT


def resolve(image_user="", database=DATABASE, **security):
    return resolve_user(ContainerSecurity(**security), image_user, database)


@pytest.mark.parametrize(
    ("image_user", "wanted"),
    [
        ("", ResolvedUser(0, 0, (0, 10), "/root")),
        ("root", ResolvedUser(0, 0, (0, 10), "/root")),
        ("app", ResolvedUser(1000, 2000, (2000, 10, 998, 77), "/home/app")),
        ("1000", ResolvedUser(1000, 2000, (2000, 10, 998, 77), "/home/app")),
        ("app:video", ResolvedUser(1000, 44, (44, 10, 998, 77), "/home/app")),
        ("app:44", ResolvedUser(1000, 44, (44, 10, 998, 77), "/home/app")),
        ("app:", ResolvedUser(1000, 2000, (2000, 10, 998, 77), "/home/app")),
        (":video", ResolvedUser(0, 44, (44, 10), "/root")),
        ("5000", ResolvedUser(5000, 0, (0,), "/")),
        ("5000:6000", ResolvedUser(5000, 6000, (6000,), "/")),
        ("short", None),
        ("000033", ResolvedUser(33, 33, (33, 998, 44), "/var/www")),
    ],
)
def test_user_of_the_image(image_user, wanted):
    if wanted is None:
        with pytest.raises(InvalidArgument, match="gid of 'short'"):
            resolve(image_user)
    else:
        assert resolve(image_user) == wanted


def test_first_entry_of_a_uid_decides():
    assert resolve("1000").home == "/home/app"
    assert resolve("app2").gid == 3000


def test_request_wins_over_the_image_as_a_whole():
    assert resolve("www:video", run_as_user=1000).gid == 2000
    assert resolve("www:video", run_as_user=5000) == ResolvedUser(5000, 0, (0,), "/")
    assert resolve("www", run_as_username="app", run_as_group=7).gid == 7
    assert resolve("www", run_as_user=0).uid == 0


def test_fields_that_contradict_each_other():
    with pytest.raises(InvalidArgument, match="exclude each other"):
        resolve(run_as_user=1, run_as_username="app")
    with pytest.raises(InvalidArgument, match="needs run_as_user"):
        resolve("www", run_as_group=5)


def test_without_a_database():
    empty = UserDatabase()
    assert resolve("", empty) == ResolvedUser(0, 0, (0,), "/")
    assert resolve("7:8", empty) == ResolvedUser(7, 8, (8,), "/")
    with pytest.raises(InvalidArgument, match="no such user"):
        resolve("app", empty)
    with pytest.raises(InvalidArgument, match="no group"):
        resolve("7:app", empty)


def test_e16_merge_adds_the_images_groups():
    groups = resolve("app", supplemental_groups=(10, 5555)).additional_gids
    assert groups == (2000, 10, 998, 77, 5555)


def test_e16_strict_takes_the_requested_groups_alone():
    user = resolve("app", supplemental_groups=(5555,), supplemental_groups_policy=STRICT)
    assert user.additional_gids == (2000, 5555)


def test_e16_primary_group_is_always_a_supplementary_one():
    for security in (
        {},
        {"supplemental_groups_policy": STRICT},
        {"run_as_user": 9, "run_as_group": 8},
    ):
        user = resolve("www" if "run_as_user" not in security else "", **security)
        assert user.gid in user.additional_gids


@pytest.mark.parametrize(
    "text",
    [
        "4294967296",
        "4294967295",
        "2147483648",
        "99999999999",
        "9" * 5000,
        "0x0",
        "0X10",
        "0o7",
        "0b1",
        "1e3",
        "1.0",
        "1_000",
        "+0",
        "-1",
        " 0",
        "0 ",
        "0\n",
        "\t0",
        "\u0660",
        "²",
        "a b",
        "a\nb",
        "a\0",
        "a/b",
        "..",
        "-a",
        "$",
    ],
)
def test_e17_neither_a_number_in_range_nor_a_name(text):
    with pytest.raises(InvalidArgument):
        resolve(text)
    with pytest.raises(InvalidArgument):
        resolve(run_as_username=text)
    with pytest.raises(InvalidArgument):
        resolve(f"0:{text}")


@pytest.mark.parametrize("number", [-1, 2**31, 2**32, 2**63])
def test_e17_numbers_of_the_request_are_checked(number):
    with pytest.raises(InvalidArgument):
        resolve(run_as_user=number)
    with pytest.raises(InvalidArgument):
        resolve(run_as_user=1, run_as_group=number)
    with pytest.raises(InvalidArgument, match="supplemental_groups"):
        resolve(supplemental_groups=(number,))


def test_e17_largest_id():
    assert resolve(str(MAX_ID)).uid == MAX_ID
    assert parse_id(str(MAX_ID), "x") == MAX_ID


def test_e17_digits_are_never_a_name():
    """An image that maps the name "1234" to root does not make uid 1234 root (CVE-2026-46680)."""
    assert resolve("1234") == ResolvedUser(1234, 0, (0,), "/")
    assert resolve("7:0500").gid == 500


@pytest.mark.parametrize("name", ["huge", "hexa"])
def test_e17_numbers_of_the_database_are_checked(name):
    with pytest.raises(InvalidArgument):
        resolve(name)
    assert resolve("zero").uid == 0


def test_e17_group_out_of_range():
    with pytest.raises(InvalidArgument, match="'huge' in /etc/group"):
        resolve("0:huge")


@pytest.mark.parametrize("home", ["/a\x1bb", "relative", "", "/a\tb", "\r"])
def test_e18_damaged_home_is_the_root(home):
    database = UserDatabase(f"u:x:5:5::{home}:/bin/sh\n".encode())
    assert resolve("u", database).home == "/"


def test_e18_newline_in_an_entry_makes_no_second_one_of_that_name():
    database = UserDatabase(b"u:x:5:5::/home\nroot2::0:0::/:\n")
    assert resolve("u", database).home == "/home"
    assert resolve("root2", database).uid == 0  # a line of its own, as the image wrote it


@pytest.mark.parametrize("name", ["passwd", "group"])
def test_i10_database_is_bounded(name):
    with pytest.raises(InvalidArgument, match=f"/etc/{name}"):
        resolve("", UserDatabase(**{name: b"x" * (10 * 1024 * 1024 + 1)}))


@given(st.binary(max_size=300), st.binary(max_size=300), st.sampled_from(["", "root", "5", "a:b"]))
def test_any_database_gives_ids_in_range_or_an_error(passwd, group, user):
    try:
        found = resolve(user, UserDatabase(b"root:x:0:0::/:\n" + passwd, group))
    except InvalidArgument:
        return
    assert all(0 <= number <= MAX_ID for number in (found.uid, found.gid, *found.additional_gids))
    assert found.home.startswith("/")
    assert "\n" not in found.home

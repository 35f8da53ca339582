"""Arguments, environment and working directory."""

import pytest

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.images import ImageConfig
from polypod.plugin.requests import ContainerConfig, ContainerMetadata, ImageSpec
from polypod.spec.process import DEFAULT_PATH, environment, process_args, working_directory


def config(**fields):
    return ContainerConfig(ContainerMetadata("c"), ImageSpec("img"), **fields)


IMAGE = ImageConfig(entrypoint=("/entry", "-e"), cmd=("cmd",), env=("A=image", "B=image"))


@pytest.mark.parametrize(
    ("command", "args", "wanted"),
    [
        ((), (), ("/entry", "-e", "cmd")),
        ((), ("x",), ("/entry", "-e", "x")),
        (("sh",), (), ("sh",)),
        (("sh",), ("-c", "y"), ("sh", "-c", "y")),
    ],
)
def test_kubernetes_rule_of_command_and_args(command, args, wanted):
    assert process_args(config(command=command, args=args), IMAGE) == wanted


@pytest.mark.parametrize("fields", [{}, {"command": ("",)}])
def test_nothing_to_execute_is_an_error_that_names_the_image(fields):
    with pytest.raises(InvalidArgument, match=r"container c: no command.*img"):
        process_args(config(**fields), ImageConfig())


def test_nul_in_an_argument_is_refused():
    with pytest.raises(InvalidArgument, match="NUL"):
        process_args(config(command=("sh", "a\0b")), IMAGE)


def env(image=IMAGE, **fields):
    found = environment(config(**fields), image, hostname="host", home="/root")
    return dict(item.partition("=")[::2] for item in found)


def test_environment_in_layers():
    assert env(envs=(("B", b"request"), ("C", b""))) == {
        "PATH": DEFAULT_PATH,
        "HOSTNAME": "host",
        "HOME": "/root",
        "A": "image",
        "B": "request",
        "C": "",
    }
    assert env(tty=True)["TERM"] == "xterm"


def test_image_and_request_replace_the_defaults():
    image = ImageConfig(env=("PATH=/bin", "HOME=/x", "nothing", "=odd"))
    found = env(image, envs=(("HOSTNAME", b"mine"), ("PATH", b"/opt=1"), ("PATH", b"/last")))
    assert found == {"PATH": "/last", "HOSTNAME": "mine", "HOME": "/x"}


def test_values_are_bytes():
    value = bytes(range(1, 256))
    assert env(envs=(("X", value),))["X"].encode(errors="surrogateescape") == value


@pytest.mark.parametrize("name", ["", "A=B", "A\0B"])
def test_malformed_name_is_refused(name):
    with pytest.raises(InvalidArgument, match="no name of a variable"):
        env(envs=((name, b"x"),))


@pytest.mark.parametrize(
    ("image", "envs"),
    [
        (ImageConfig(env=("A=x\0y",)), ()),
        (ImageConfig(env=("A\0B=x",)), ()),
        (ImageConfig(), (("A", b"x\0y"),)),
    ],
)
def test_nul_in_the_environment_is_refused(image, envs):
    with pytest.raises(InvalidArgument, match="NUL"):
        env(image, envs=envs)


def test_working_directory():
    assert working_directory(config(), ImageConfig()) == "/"
    assert working_directory(config(), ImageConfig(working_dir="srv")) == "/srv"
    assert working_directory(config(working_dir="/a/../b"), ImageConfig(working_dir="/c")) == "/b"


@pytest.mark.parametrize("path", ["/..", "../../etc", "/a/../../b"])
def test_e19_working_directory_stays_inside_the_root(path):
    with pytest.raises(InvalidArgument, match="working_dir"):
        working_directory(config(working_dir=path), ImageConfig())
    with pytest.raises(InvalidArgument, match="WorkingDir"):
        working_directory(config(), ImageConfig(working_dir=path))

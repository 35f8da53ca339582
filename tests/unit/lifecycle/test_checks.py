"""What a handler does not declare, and what contradicts itself, is refused before anything is made."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from polypod.lifecycle import user_namespaces
from polypod.lifecycle.checks import check_container, check_sandbox
from polypod.lifecycle.parts import Handler
from polypod.plugin.errors import InvalidArgument, Unsupported
from polypod.plugin.images import ImageStore
from polypod.plugin.oci import OciIdMapping
from polypod.plugin.requests import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    IdMapping,
    ImageSpec,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    PodMetadata,
    ProfileType,
    SandboxConfig,
    SandboxSecurity,
    SecurityProfile,
    UserNamespace,
)
from polypod.plugin.runtime import Feature, RuntimeBackend, RuntimeType
from polypod.plugin.services import IdMaps
from polypod.spec.users import ResolvedUser

RANGES = (IdMapping(1000, 0, 100),)
USERS = UserNamespace(NamespaceMode.POD, RANGES, RANGES)
MAPS = IdMaps((OciIdMapping(0, 1000, 100),), (OciIdMapping(0, 1000, 100),))
POD = SandboxConfig(PodMetadata("pod", "uid", "tests"))
BOX = ContainerConfig(ContainerMetadata("box"), ImageSpec("image"))


async def _never(_context: object) -> RuntimeBackend:
    raise AssertionError


def handler(*features: Feature) -> Handler:
    offered = RuntimeType("some", "", _never, (), frozenset(features))
    return Handler("some", offered, cast("RuntimeBackend", None), cast("ImageStore", None))


def in_users(userns: UserNamespace | None = USERS, **modes: NamespaceMode) -> SandboxConfig:
    return replace(POD, security=SandboxSecurity(NamespaceOptions(userns=userns, **modes)))


def box(userns: UserNamespace | None) -> ContainerConfig:
    return replace(BOX, security=ContainerSecurity(namespaces=NamespaceOptions(userns=userns)))


@pytest.mark.parametrize("kind", [ProfileType.RUNTIME_DEFAULT, ProfileType.LOCALHOST])
def test_e23_an_apparmor_profile_that_nobody_applies_is_refused(kind):
    confined = replace(BOX, security=ContainerSecurity(apparmor=SecurityProfile(kind, "x")))
    with pytest.raises(Unsupported, match="AppArmor"):
        check_container(handler(), POD, confined)
    check_container(handler(Feature.APPARMOR), POD, confined)
    unconfined = SecurityProfile(ProfileType.UNCONFINED)
    check_container(handler(), POD, replace(BOX, security=ContainerSecurity(apparmor=unconfined)))


def test_e23_an_image_as_a_volume_is_refused():
    mounted = replace(BOX, mounts=(Mount("/v", image=ImageSpec("model")),))
    with pytest.raises(Unsupported, match="images as volumes"):
        check_container(handler(), POD, mounted)
    check_container(handler(Feature.IMAGE_VOLUMES), POD, mounted)


def test_e23_a_user_namespace_is_refused():
    with pytest.raises(Unsupported, match="hostUsers"):
        check_sandbox(handler(), in_users())
    check_sandbox(handler(Feature.USER_NAMESPACES), in_users())


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_a_user_namespace_cannot_share_what_is_the_hosts(kind):
    able = handler(Feature.USER_NAMESPACES, Feature.HOST_PID, Feature.HOST_IPC)
    check_sandbox(able, in_users(None, **{kind: NamespaceMode.NODE}))
    with pytest.raises(InvalidArgument, match=kind):
        check_sandbox(able, in_users(**{kind: NamespaceMode.NODE}))


def test_a_container_agrees_with_its_pod():
    able, node = handler(Feature.USER_NAMESPACES), UserNamespace()
    for pod, asked in (
        (in_users(), USERS),
        (in_users(), None),
        (POD, node),
        (in_users(node), None),
    ):
        check_container(able, pod, box(asked))
    other = replace(USERS, uids=(IdMapping(5000, 0, 100),))
    for pod, asked in ((in_users(), other), (in_users(), node), (POD, USERS)):
        with pytest.raises(InvalidArgument, match="userns_options differ"):
            check_container(able, pod, box(asked))


def test_users_and_groups_must_be_mapped():
    user_namespaces.check_user(ResolvedUser(99, 99, (5,), "/"), MAPS)
    user_namespaces.check_user(ResolvedUser(5000, 5000, (), "/"), None)
    for user, said in (
        (ResolvedUser(100, 0, (), "/"), "user 100"),
        (ResolvedUser(0, 100, (), "/"), "group 100"),
        (ResolvedUser(0, 0, (4711,), "/"), "group 4711"),
    ):
        with pytest.raises(InvalidArgument, match=said):
            user_namespaces.check_user(user, MAPS)

"""The images that a bench makes are what they say, and equal inputs give equal bytes."""

import gzip
import hashlib
import io
import json
import tarfile

import pytest
import zstandard

from bench import images
from polypod.testing.registry import digest_of

TREES = images.Trees(300, 2 << 20)


def unpacked(media_type, blob):
    return (
        zstandard.decompress(blob, max_output_size=1 << 26)
        if media_type.endswith("zstd")
        else gzip.decompress(blob)
    )


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("layers", [1, 6])
def test_a_tree_has_the_files_and_bytes_asked_for(layers, compression):
    made = TREES.image("seed", layers, compression)
    manifest = json.loads(made.manifest)
    config = json.loads(made.blobs[manifest["config"]["digest"]])
    assert len(manifest["layers"]) == layers
    files, size, diff_ids = {}, 0, []
    for each in manifest["layers"]:
        blob = made.blobs[each["digest"]]
        assert (digest_of(blob), len(blob)) == (each["digest"], each["size"])
        assert each["mediaType"].endswith(compression)
        tar = unpacked(each["mediaType"], blob)
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                if member.isfile():
                    assert member.name not in files
                    files[member.name] = member.size
                    size += member.size
    assert diff_ids == config["rootfs"]["diff_ids"]
    assert (len(files), size >= 2 << 20) == (300, True)


def test_equal_seeds_give_equal_images_and_others_share_no_file():
    assert TREES.image("a", 2, "gzip").manifest == TREES.image("a", 2, "gzip").manifest
    one, other = ({file.data for file in TREES.tree(seed)} for seed in ("a", "b"))
    assert not one & other


def test_it_compresses_as_images_do():
    data = b"".join(file.data for file in TREES.tree("a"))
    assert 0.25 < len(gzip.compress(data, 6)) / len(data) < 0.6


def test_an_archive_has_the_name_for_both_servers(tmp_path):
    made = images.image([images.layer([images.File("bin/x", b"x", 0o755)])], ["/bin/x"])
    path = images.write_archive(made, "localhost/x:latest", tmp_path / "x.tar")
    with tarfile.open(path) as archive:
        (at,) = json.load(archive.extractfile("index.json"))["manifests"]
        manifest = archive.extractfile("blobs/" + at["digest"].replace(":", "/")).read()
    assert manifest == made.manifest
    assert set(at["annotations"].values()) == {"localhost/x:latest"}
    assert {"io.containerd.image.name", "org.opencontainers.image.ref.name"} == set(
        at["annotations"]
    )

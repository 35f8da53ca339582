"""Lists in pieces: every item once, no piece larger than it must be."""

from polypod.api.streams import pieces
from polypod.api.v1 import api_pb2 as pb


async def cut(names, limit):
    stream = pieces(
        names,
        lambda name: pb.Container(id=name),
        lambda items: pb.StreamContainersResponse(containers=items),
        limit=limit,
    )
    return [[each.id for each in message.containers] async for message in stream]


async def test_nothing_is_no_message():
    assert await cut([], 10) == []


async def test_pieces_are_filled_and_none_is_lost():
    names = [f"{n:08}" for n in range(10)]  # 10 bytes each on the wire
    assert await cut(names, 1000) == [names]
    assert await cut(names, 40) == [names[:4], names[4:8], names[8:]]
    assert await cut(names, 39) == [names[:3], names[3:6], names[6:9], names[9:]]


async def test_an_item_larger_than_a_piece_goes_alone():
    assert await cut(["a" * 50, "b", "c"], 20) == [["a" * 50], ["b", "c"]]

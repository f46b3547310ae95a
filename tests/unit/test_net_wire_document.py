"""The wire is pinned: golden bytes for every message, and a document that says what the code does.

After a deliberate change run `python tests/unit/test_net_wire_document.py`: it writes the golden frames and the tables
of docs/wire-protocol.md anew, and the difference shows what changed on the wire.
"""

from __future__ import annotations

import enum
import itertools
import re
from pathlib import Path
from types import GenericAlias
from typing import Any, NewType, get_args, get_origin

import msgspec
import pytest

import dfs.master.state.commands as _commands  # registers its numbers, too
from dfs.ids import ChunkHandle
from dfs.net import messages, parts
from dfs.net.auth import ClusterKey, Rights, sign_token
from dfs.net.frames import PREFIX_SIZE, decode_prefix, encode_frame
from dfs.net.messages import Message, Stat, base, decode, encode
from dfs.net.parts import Part
from dfs.net.session import NONCE_SIZE, Handshake, Role

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "data" / "golden_frames.txt"
DOCUMENT = ROOT / "docs" / "wire-protocol.md"
KEY = ClusterKey.from_secret(b"golden secret of thirty-two bytes", "demo")
REQUEST_ID = 0x0102030405060708
TIMEOUT_MS = 30_000
RANGES = {
    0x00: "Any daemon",
    0x01: "Client to master: reads",
    0x02: "Client to master: mutations, replicated as they are",
    0x03: "Chunk server to leader",
    0x04: "To a chunk server",
    0x08: "In the replicated log only; refused at every port",
}


def types() -> list[type[Message]]:
    return [base._TYPES[code] for code in sorted(base._TYPES) if base._TYPES[code].__module__.startswith(SHIPPED)]


SHIPPED = (messages.__name__, parts.__name__, _commands.__name__)


# --- golden bytes -------------------------------------------------------------------------------------


class Sampler:
    """Makes one message of any type; each scalar differs from the ones before it, so that fields cannot be swapped."""

    def __init__(self) -> None:
        self._count = 0

    def struct(self, cls: type[msgspec.Struct]) -> Any:
        return cls(**{field.name: self.value(field.type, field.name) for field in msgspec.structs.fields(cls)})

    def value(self, kind: Any, name: str) -> Any:
        self._count += 1
        if isinstance(kind, NewType):
            return bytes([self._count]) * 16
        if get_origin(kind) is tuple:
            return (self.value(get_args(kind)[0], name),)
        if get_origin(kind) is dict:
            return {f"key{self._count}": f"value{self._count}"}
        if issubclass(kind, enum.Enum):
            return next(iter(kind))
        if issubclass(kind, msgspec.Struct):
            return self.struct(kind)
        scalars = {int: self._count, str: f"{name}{self._count}", bytes: b"%d" % self._count, float: self._count + 0.5}
        return scalars.get(kind, True)


def sample(cls: type[Message]) -> Message:
    made: Message = Sampler().struct(cls)
    return made


def framed(value: Message) -> bytes:
    return encode_frame(value.type_code, encode(value), request_id=REQUEST_ID, timeout_ms=TIMEOUT_MS)


def handshake_bytes() -> dict[str, bytes]:
    first = Handshake(Role.INITIATOR, KEY.handshake_key, KEY.cluster, bytes([1]) * NONCE_SIZE)
    second = Handshake(Role.ACCEPTOR, KEY.handshake_key, KEY.cluster, bytes([2]) * NONCE_SIZE)
    hello = first.start()
    reply = second.receive(hello)
    return {"handshake-1": hello, "handshake-2": reply, "handshake-3": first.receive(reply)}


def golden_now() -> dict[str, str]:
    token = sign_token(KEY, ChunkHandle(bytes(range(16))), Rights.READ, 1_700_000_000_000)
    named = {**handshake_bytes(), "token": token}
    named.update({f"0x{cls.type_code:04x}-{cls.__name__}": framed(sample(cls)) for cls in types()})
    return {name: data.hex() for name, data in named.items()}


def golden_kept() -> dict[str, str]:
    return dict(line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#"))


def test_bytes_on_the_wire_are_the_golden_ones() -> None:
    kept, now = golden_kept(), golden_now()
    changed = sorted(name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name))
    assert not changed, f"the wire changed: {changed}; if that is meant, run python {Path(__file__).name}"


@pytest.mark.parametrize("cls", types(), ids=lambda cls: str(cls.__name__))
def test_golden_frame_means_what_it_meant(cls: type[Message]) -> None:
    data = bytes.fromhex(golden_kept()[f"0x{cls.type_code:04x}-{cls.__name__}"])
    head = decode_prefix(data[:PREFIX_SIZE])
    assert (head.type_code, head.request_id, head.timeout_ms) == (cls.type_code, REQUEST_ID, TIMEOUT_MS)
    head.check_header(data[PREFIX_SIZE:])
    assert decode(head.type_code, data[PREFIX_SIZE:]) == sample(cls)


def test_golden_handshake_is_long_as_documented() -> None:
    assert [len(data) for data in handshake_bytes().values()] == [40, 72, 32]


# --- the document ---------------------------------------------------------------------------------------


def type_text(kind: Any) -> str:
    if isinstance(kind, NewType):
        return str(kind.__name__)
    if get_origin(kind) is tuple:
        return f"{type_text(get_args(kind)[0])}..."
    if isinstance(kind, GenericAlias):
        return str(kind)
    return str(kind.__name__)


def field_text(field: msgspec.structs.FieldInfo) -> str:
    default = ""
    if field.default is not msgspec.NODEFAULT:
        default = f" = {field.default!r}"
    elif field.default_factory is not msgspec.NODEFAULT:
        default = f" = {field.default_factory()!r}"
    return f"`{field.name}: {type_text(field.type)}{default}`"


def row(cls: type[msgspec.Struct]) -> str:
    return f"`{cls.__name__}` | {', '.join(map(field_text, msgspec.structs.fields(cls))) or '–'} |"


def message_tables() -> str:
    lines: list[str] = []
    block = -1
    for cls in types():
        if cls.type_code >> 8 != block:
            block = cls.type_code >> 8
            lines += ["", f"### {RANGES[block]}", "", "| number | message | fields |", "| --- | --- | --- |"]
        lines.append(f"| 0x{cls.type_code:04x} | {row(cls)}")
    return "\n".join(lines).strip()


def piece_table() -> str:
    pieces = sorted(Part.__subclasses__(), key=lambda cls: cls.__name__)
    rows = [f"| {row(cls)}" for cls in pieces if cls.__module__ in SHIPPED]
    return "\n".join(["| piece | fields |", "| --- | --- |", *rows])


def example() -> str:
    value = Stat("/a")
    data = encode_frame(value.type_code, encode(value), request_id=7, timeout_ms=30_000)
    cuts = [0, 4, 5, 6, 8, 16, 20, 24, 28, 32, 36, len(data)]
    parts = " | ".join(data[start:end].hex(" ") for start, end in itertools.pairwise(cuts))
    return f"    {parts}"


GENERATED = {"messages": message_tables, "pieces": piece_table, "example": example}


def written(name: str, text: str) -> str:
    """Return the document with one generated section written anew."""
    pattern = re.compile(rf"(<!-- {name}: generated -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    assert pattern.search(text), f"docs/wire-protocol.md has no section {name}"
    return pattern.sub(lambda match: f"{match[1]}\n{GENERATED[name]()}\n\n{match[2]}", text)


@pytest.mark.parametrize("name", GENERATED)
def test_document_says_what_the_code_does(name: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(name, text) == text, f"the section {name} is old; run python {Path(__file__).name}"


def test_offset_tables_of_the_document_add_up() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    tables = re.findall(r"\| offset \| size \| field \| value \|\n\| --- .*\n((?:\|.*\n)+)", text)
    sizes = []
    for table in tables:
        end = 0
        for offset, size in re.findall(r"^\| (\d+) \| (\d+) \|", table, re.MULTILINE):
            assert int(offset) == end, table
            end += int(size)
        sizes.append(end)
    assert sizes == [40, PREFIX_SIZE, 26]


def rewrite() -> None:
    """Write the golden frames and the generated sections of the document."""
    GOLDEN.parent.mkdir(exist_ok=True)
    heading = f"# name and bytes as hex; written by {Path(__file__).name}, never by hand\n"
    GOLDEN.write_text(heading + "".join(f"{name} {data}\n" for name, data in golden_now().items()))
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in GENERATED:
        text = written(name, text)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite()

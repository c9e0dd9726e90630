"""docs/formats.md says of the wire what the code says."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "formats.md").read_text()
SOURCES = ROOT / "cpp_store" / "src"
WIRE = (SOURCES / "net" / "wire.hpp").read_text()
CODEC = (SOURCES / "net" / "wire.cpp").read_text()
HANDSHAKE = (SOURCES / "security" / "handshake.cpp").read_text()
TAGGING = (SOURCES / "net" / "tagging.hpp").read_text()
SEAL = (SOURCES / "security" / "seal.hpp").read_text()
LOBBY = (SOURCES / "server" / "lobby.hpp").read_text()


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def words(title: str) -> str:
    """Return a section on one line, so that its breaks do not matter."""
    return " ".join(section(title).split())


def constant(source: str, name: str) -> int:
    """Return the value of an integer constant, written as a product, a shift or a number."""
    found = re.search(rf"\b{name} = ([0-9xA-Fa-fu' <]+);", source)
    assert found, name
    numbers = [int(n.strip(" u"), 0) for n in found[1].replace("'", "").split("<<")]
    return numbers[0] << numbers[1] if len(numbers) == 2 else numbers[0]


def enumeration(name: str, source: str = WIRE) -> dict[str, int]:
    body = re.search(rf"enum class {name} : [\w:]+ {{(.*?)}};", source, re.DOTALL)
    assert body, name
    return {key: int(value) for key, value in re.findall(r"^\s*(\w+) = (\d+)", body[1], re.M)}


def test_the_header() -> None:
    wire = words("Wire")
    version = constant(WIRE, "version")
    assert f"Version {version}." in wire
    assert f"| u8 | version, {version} |" in wire
    assert f"`CPPS` ({constant(WIRE, 'magic'):#x})".lower() in wire.lower()
    assert f"a header of {constant(WIRE, 'frame_header_size')} bytes" in wire
    written = re.findall(r"write_at\(bytes, (\d+), (?:\w+<[\w:]+>\()?(?:frame\.)?(\w+)", CODEC)
    rows = dict(re.findall(r"^\| (\d+) \| u\d+ \| (.+?) \|$", section("Wire"), re.M))
    assert {offset for offset, _ in written} <= {*rows, "16"}
    for offset, field in written:
        says = {"magic": "CPPS", "total": "whole body", "static_cast": "kind", "code": "operation"}
        assert says.get(field, field) in rows[offset], field


def test_operations_and_kinds() -> None:
    rows = re.findall(r"^\| (\d+) `(\w+)` \|", section("Wire"), re.M)
    assert {name: int(number) for number, name in rows} == enumeration("Operation")
    document = section("Wire") + section("Wire on one host")
    for name, number in enumeration("Kind").items():
        assert re.search(rf"\b{number} `?{name}\b", document), name


def test_handshake_and_seals() -> None:
    handshake, seals = words("Handshake"), words("Seals")
    labels = re.findall(r'_label = "(.+?)"', HANDSHAKE)
    assert len(labels) == 3
    for label in labels:
        assert f'"{label}"' in handshake
        assert label.endswith(f" {constant(WIRE, 'version')}")
    assert f"at most {constant(WIRE, 'max_hello'):,} bytes" in handshake
    uses = enumeration("Use", HANDSHAKE)
    assert uses == {"proof_of_client": 1, "proof_of_server": 2, "to_server": 3, "to_client": 4}
    assert "`KDF(c, 1)`, with `KDF(c, 2)`" in handshake
    assert "to the server, to the client | `KDF(c, 3)`, `KDF(c, 4)`" in handshake
    ciphers = enumeration("Cipher", SEAL)
    assert f"{ciphers['chacha20_poly1305']} ChaCha20-Poly1305" in handshake
    assert f"{ciphers['aes256_gcm']} AES-256-GCM" in handshake
    assert f"at most {constant(LOBBY, 'most'):,} of them" in handshake
    assert f"{constant(LOBBY, 'most_of_an_origin')} of one address" in handshake
    assert f"a tag of {constant(TAGGING, 'tag_size')} bytes" in seals
    assert f"the first {constant(WIRE, 'clear_size')} bytes" in seals
    window = constant(WIRE, "bulk_window")
    assert f"{window >> 20} MiB ahead" in words("Wire")

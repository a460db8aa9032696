# SPDX-License-Identifier: Apache-2.0
"""What the kernel lists of nftables, and libnftables does not, or slowly.

libnftables reads all elements of a table to list its rules: 0.3 s with a thousand
leases. The kernel lists the rules alone (nf_tables_dump_rules() in
net/netfilter/nf_tables_api.c). The JSON of libnftables 1.0 has no devices of chains.
"""

import struct
from errno import ENOENT

from tapster.kernel import rtnl, sockets
from tapster.kernel.nft import NETLINK_NETFILTER
from tapster.kernel.port import NftDeviceChain, NftRule
from tapster.light import Iterator

# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
NFNL_SUBSYS_NFTABLES = 10
NFPROTO_UNSPEC, NFPROTO_INET, NFPROTO_NETDEV, NFPROTO_BRIDGE = 0, 1, 5, 7
NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 1, 4, 7
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY = 1, 3, 4, 5
NFTA_HOOK_DEV, NFTA_HOOK_DEVS = 3, 4
NFTA_DEVICE_NAME, NFTA_DEVICE_PREFIX = 1, 2
NF_DROP = bytes(4)
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_USERDATA = 1, 2, 7
NFT_TABLE_F_DORMANT = 1
COMMENT = 0
"""The type of a comment in a rule's user data (NFTNL_UDATA_RULE_COMMENT)."""

_HEADER = struct.Struct("IHHII")
_ERROR = struct.Struct("i")
_FLAGS = struct.Struct(">I")
_NFGENMSG = struct.pack("BBH", NFPROTO_BRIDGE, 0, 0)
_FAMILIES = {NFPROTO_INET: "inet", NFPROTO_NETDEV: "netdev"}
"""The families whose chains can be those of single devices."""
_BUFFER = 1 << 17


def rules(table: str) -> list[NftRule]:
    """List the rules of a table of family bridge, each chain's in order.

    The list is empty if there is no such table, or if it is dormant. Raises OSError.
    """
    opened = _open()
    try:
        name = table.encode() + b"\0"
        asked = _NFGENMSG + rtnl.attribute(NFTA_TABLE_NAME, name)
        for body in _ask(opened, NFT_MSG_GETTABLE, 0, asked):
            flags = rtnl.parse_attributes(body, len(_NFGENMSG))[NFTA_TABLE_FLAGS]
            if _FLAGS.unpack(flags)[0] & NFT_TABLE_F_DORMANT:
                return []
            break
        else:
            return []
        asked = _NFGENMSG + rtnl.attribute(NFTA_RULE_TABLE, name)
        return [
            _rule(attributes)
            for body in _ask(opened, NFT_MSG_GETRULE, rtnl.NLM_F_DUMP, asked)
            if (attributes := rtnl.parse_attributes(body, len(_NFGENMSG)))
            and attributes[NFTA_RULE_TABLE] == name
        ]
    finally:
        opened.close()


def _rule(attributes: dict[int, bytes]) -> NftRule:
    chain = attributes[NFTA_RULE_CHAIN].rstrip(b"\0").decode()
    data = attributes.get(NFTA_RULE_USERDATA, b"")
    comment = ""
    while len(data) >= 2:
        type_, length = data[0], data[1]
        if type_ == COMMENT:
            comment = data[2 : 2 + length].rstrip(b"\0").decode(errors="replace")
        data = data[2 + length :]
    return NftRule(chain, comment)


def device_chains() -> list[NftDeviceChain]:
    """List the chains that judge frames of single devices. Raises OSError."""
    opened = _open()
    asked = struct.pack("BBH", NFPROTO_UNSPEC, 0, 0)
    try:
        bodies = [*_ask(opened, NFT_MSG_GETCHAIN, rtnl.NLM_F_DUMP, asked)]
    finally:
        opened.close()
    chains = []
    for body in bodies:
        attributes = rtnl.parse_attributes(body, len(asked))
        hook = rtnl.parse_attributes(attributes.get(NFTA_CHAIN_HOOK, b""))
        listed = [*rtnl.attributes(hook.get(NFTA_HOOK_DEVS, b""))]
        if NFTA_HOOK_DEV in hook and not listed:
            listed = [(NFTA_DEVICE_NAME, hook[NFTA_HOOK_DEV])]
        if body[0] in _FAMILIES and listed:
            table, name = attributes[NFTA_CHAIN_TABLE], attributes[NFTA_CHAIN_NAME]
            chains.append(
                NftDeviceChain(
                    f"{_FAMILIES[body[0]]} {_text(table)} {_text(name)}",
                    _texts(listed, NFTA_DEVICE_NAME),
                    _texts(listed, NFTA_DEVICE_PREFIX),
                    drops=attributes.get(NFTA_CHAIN_POLICY) == NF_DROP,
                )
            )
    return chains


def _texts(listed: list[tuple[int, bytes]], kind: int) -> tuple[str, ...]:
    return tuple(_text(value) for type_, value in listed if type_ == kind)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _open() -> sockets.socket:
    return sockets.socket(
        sockets.AF_NETLINK, sockets.SOCK_RAW | sockets.SOCK_CLOEXEC, NETLINK_NETFILTER
    )


def _ask(
    opened: sockets.socket, message: int, flags: int, payload: bytes
) -> Iterator[bytes]:
    """Yield the bodies of the answers; none if what is asked for does not exist."""
    type_ = NFNL_SUBSYS_NFTABLES << 8 | message
    flags |= rtnl.NLM_F_REQUEST
    header = _HEADER.pack(_HEADER.size + len(payload), type_, flags, 0, 0)
    opened.send(header + payload)
    while True:
        data = opened.recv(_BUFFER)
        for type_, _, _, body in rtnl.messages(data):
            if type_ == rtnl.NLMSG_DONE:
                return
            if type_ == rtnl.NLMSG_ERROR:
                (error,) = _ERROR.unpack_from(body)
                if -error == ENOENT:
                    return
                raise OSError(-error, "listing the rules of nftables")
            yield body
        if not flags & rtnl.NLM_F_DUMP:
            return

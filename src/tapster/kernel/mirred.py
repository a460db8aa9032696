# SPDX-License-Identifier: Apache-2.0
"""Redirections: what comes in at one device goes out of another (tc-mirred(8)).

As `tc qdisc add dev DEV clsact` and `tc filter add dev DEV ingress pref 31344 handle 1
matchall action mirred egress redirect dev TO cookie STAMP`.
"""

import socket
import struct
from errno import EEXIST, EINVAL, ENODEV, ENOENT

from tapster.kernel.ingress import (
    CLSACT,
    EGRESS,
    INGRESS,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETTFILTER,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TC_H_CLSACT,
    TCA_OPTIONS,
    TCMSG,
    filters,
    kind,
    message,
)
from tapster.kernel.port import Redirection
from tapster.kernel.rtnl import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Rtnl,
    attribute,
    nest,
    parse_attributes,
)

TCA_MATCHALL_ACT = 2
TCA_ACT_KIND, TCA_ACT_OPTIONS, TCA_ACT_COOKIE = 1, 2, 6
TCA_MIRRED_PARMS = 2
TCA_EGRESS_REDIR = 1
TC_ACT_STOLEN = 4
ETH_P_ALL = 3

PREFERENCE, HANDLE = 0x7A70, 1
"""A preference that no other program uses, and that leaves room before it."""
_INFO = PREFERENCE << 16 | socket.htons(ETH_P_ALL)
_MIRRED = struct.Struct("IIiiiiI")
"""struct tc_mirred: index, capabilities, action, two counts, what to do, ifindex."""
_OWN_QDISC = b"\1"
"""The last byte of a cookie, if the qdisc was made for the redirection."""
_GONE = (ENOENT, EINVAL, ENODEV)


def add(rtnl: Rtnl, ifindex: int, to: int, stamp: bytes) -> None:
    """Redirect what comes in at a device. Raises OSError: EEXIST if it is already."""
    qdisc = message(RTM_NEWQDISC, ifindex, CLSACT, TC_H_CLSACT, 0, kind("clsact"))
    (error,) = rtnl.execute([qdisc._replace(flags=NLM_F_CREATE | NLM_F_EXCL)])
    if error is not None and error.errno != EEXIST:
        raise error
    own = error is None
    parameters = _MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to)
    action = (
        attribute(TCA_ACT_KIND, b"mirred\0")
        + attribute(TCA_ACT_COOKIE, cookie(stamp, own_qdisc=own))
        + nest(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, parameters))
    )
    options = nest(TCA_OPTIONS, nest(TCA_MATCHALL_ACT, nest(1, action)))
    added = message(
        RTM_NEWTFILTER, ifindex, HANDLE, INGRESS, _INFO, kind("matchall") + options
    )
    (error,) = rtnl.execute([added._replace(flags=NLM_F_CREATE | NLM_F_EXCL)])
    if error is not None:
        if own:
            _delete_qdisc(rtnl, ifindex)
        raise error


def cookie(stamp: bytes, *, own_qdisc: bool) -> bytes:
    """Return the cookie of a redirection's action."""
    return stamp + (_OWN_QDISC if own_qdisc else b"\0")


def get(rtnl: Rtnl, ifindex: int) -> Redirection | None:
    """Return the redirection of a device, of any program. Raises OSError."""
    wanted = TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, INGRESS, 0)
    for body in rtnl.list_bodies(RTM_GETTFILTER, wanted):
        _, at, handle, _, info = TCMSG.unpack_from(body)
        if at != ifindex or info >> 16 != PREFERENCE or handle != HANDLE:
            continue
        options = parse_attributes(
            parse_attributes(body, TCMSG.size).get(TCA_OPTIONS, b"")
        )
        actions = parse_attributes(options.get(TCA_MATCHALL_ACT, b""))
        action = parse_attributes(actions.get(1, b""))
        carried = action.get(TCA_ACT_COOKIE, b"")
        inner = parse_attributes(action.get(TCA_ACT_OPTIONS, b""))
        parameters = inner.get(TCA_MIRRED_PARMS, bytes(_MIRRED.size))
        to = _MIRRED.unpack_from(parameters)[-1]
        return Redirection(to, carried[:-1], carried[-1:] == _OWN_QDISC)
    return None


def delete(rtnl: Rtnl, ifindex: int, stamp: bytes) -> None:
    """Delete the redirection that carries a stamp. There may be none. Raises OSError.

    The qdisc goes, too, if it was made for the redirection and has no other filter.
    """
    found = get(rtnl, ifindex)
    if found is None or found.stamp != stamp:
        return
    gone = message(RTM_DELTFILTER, ifindex, HANDLE, INGRESS, _INFO, kind("matchall"))
    (error,) = rtnl.execute([gone])
    if error is not None and error.errno not in _GONE:
        raise error
    others = any(filters(rtnl, ifindex, parent) for parent in (INGRESS, EGRESS))
    if found.own_qdisc and not others:
        _delete_qdisc(rtnl, ifindex)


def _delete_qdisc(rtnl: Rtnl, ifindex: int) -> None:
    qdisc = message(RTM_DELQDISC, ifindex, CLSACT, TC_H_CLSACT, 0)
    (error,) = rtnl.execute([qdisc])
    if error is not None and error.errno not in _GONE:
        raise error

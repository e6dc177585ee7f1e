"""The nodes of a cluster: how many places they have, waiting for those that an autoscaler starts, and whether each can
do the work."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine import __version__
from engine.cluster.progress import Reporter
from engine.errors import ClusterError, StorageError
from engine.spec.recipe import ResourcesSpec
from engine.storage.abstract_store import TEMPORARY
from engine.storage.store import Store, open_store

POLL_S = 1.0
ANSWER_S = 120.0  # within which every node must have answered; a new worker process imports for seconds
PACKAGES = ("torch", "diffusers", "transformers", "pyarrow", "PIL")
KINDS = ("CPU", "GPU")  # of what a node has, said to a person
Need = Mapping[str, float]
Node = Mapping[str, Any]  # a node as Ray describes it


def alive() -> list[Node]:
    """The nodes that are up and not being drained, as Ray describes them."""
    import ray

    leaving = ray._private.state.state.get_draining_nodes()
    return [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]


def slots(need: Need, labels: Mapping[str, str]) -> int:
    """How many workers that each take `need` fit into the cluster's nodes with these labels, were they all free."""
    return sum(_fit(node["Resources"], need) for node in labelled(labels))


def labelled(labels: Mapping[str, str]) -> list[Node]:
    """The nodes that are up, not being drained, and have all these labels."""
    return [node for node in alive() if all(node["Labels"].get(key) == value for key, value in labels.items())]


def wait_for(need: Need, count: int, resources: ResourcesSpec, reporter: Reporter | None, *, enough: int = 1) -> None:
    """Ask the cluster's autoscaler for `count` places of `need` and wait until `enough` are there.

    Returns at once where `count` are there already, or `resources.wait` is 0. Raises ClusterError, naming what is
    missing, when `enough` have not come within `resources.wait` seconds.
    """
    labels = resources.labels
    if resources.wait <= 0 or slots(need, labels) >= count:
        return
    from ray.autoscaler.sdk import request_resources

    bundles = [dict(need)] * count
    request_resources(bundles=bundles, bundle_label_selectors=[labels] * count)
    deadline = time.monotonic() + resources.wait
    try:
        if slots(need, labels) < enough and reporter is not None:
            reporter.note(f"waiting up to {resources.wait:.0f} s for nodes: {count} x {_words(need, labels)}")
        while (found := slots(need, labels)) < enough:
            if time.monotonic() >= deadline:
                raise _never_came(need, labels, found, enough, resources.wait)
            time.sleep(POLL_S)
    finally:
        request_resources(bundles=[])


@contextmanager
def told_of_missing(need: Need, count: int, resources: ResourcesSpec, reporter: Reporter) -> Iterator[None]:
    """While the block runs, say once, after `resources.wait` seconds, how many of `count` places of `need` have not
    come."""

    def tell() -> None:
        found = slots(need, resources.labels)
        if found < count:
            reporter.note(
                f"{found} of {count} places of {_words(need, resources.labels)} came within "
                f"{resources.wait:.0f} s; the run "
                "goes on with them (is the node group's maximum or its quota lower?)"
            )

    timer = threading.Timer(resources.wait, tell)
    timer.daemon = True
    if resources.wait > 0 and slots(need, resources.labels) < count:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check(store: Store | None) -> None:
    """Refuse a joined cluster whose nodes cannot do the work; to be called once the driver has joined it.

    Every node that is up must run the driver's versions of Python, Ray and mimeo, have the packages, and see the output
    (a token is written there). Raises ClusterError or StorageError naming the first node that does not, and the fix.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = secrets.token_hex(8)
    name = f"{TEMPORARY}token-{token}"
    if store is not None:
        store.create(name, token.encode())
    probe = ray.remote(num_cpus=0, max_retries=2)(_probe)
    try:
        asked = {
            node["NodeManagerAddress"]: probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(None if store is None else store.url, name)
            for node in alive()
        }
        deadline = time.monotonic() + ANSWER_S
        for address, reference in asked.items():
            try:
                found = ray.get(reference, timeout=max(1.0, deadline - time.monotonic()))
            except GetTimeoutError:
                raise ClusterError(f"node {address}", f"did not answer within {ANSWER_S:.0f} s", "remove it") from None
            except RayError as error:
                if not any(node["NodeManagerAddress"] == address for node in alive()):
                    continue  # it left meanwhile; what comes in its place is another node
                first = str(error).strip().splitlines()[-1]
                fix = "give every node the same environment as the driver"
                raise ClusterError(f"node {address}", f"cannot run mimeo ({first})", fix) from None
            _compare(address, found, token, store)
    finally:
        if store is not None:
            store.remove(name)


def facts() -> dict[str, str | list[str]]:
    """What must be the same on every node: versions of Python, Ray and mimeo, and which packages are missing."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": importlib.metadata.version("ray"),
        "mimeo": __version__,
        "missing": [name for name in PACKAGES if importlib.util.find_spec(name) is None],
    }


def _probe(url: str | None, name: str) -> dict[str, str | list[str] | None]:
    """Runs on a node: its facts, and the token that it reads in the output, None where it sees none."""
    token = None
    if url is not None:
        try:
            token = open_store(url).read(name).decode()
        except FileNotFoundError:
            token = None
        except StorageError as error:
            token = f"error: {error.what}"
    return {**facts(), "token": token, "host": os.uname().nodename}


def _compare(address: str, found: Mapping[str, Any], token: str, store: Store | None) -> None:
    where = f"node {address} ({found['host']})"
    for key, own in facts().items():
        if key != "missing" and found[key] != own:
            raise ClusterError(
                where, f"runs {key} {found[key]}, the driver {own}", f"install {key} {own} on every node"
            )
    if found["missing"]:
        fix = "install the distribution with its constraints file on every node"
        raise ClusterError(where, f"lacks the packages {', '.join(found['missing'])}", fix)
    if store is None or found["token"] == token:
        return
    if (found["token"] or "").startswith("error: "):
        raise StorageError(
            where, f"cannot read {store.url} ({found['token'][7:]})", "give the node's role the right to"
        )
    fix = "use an object store, or a disk that is mounted at the same path on every node"
    raise StorageError(where, f"does not see the output {store.url}", fix)


def _fit(total: Mapping[str, float], need: Need) -> int:
    amounts = [(total.get(name, 0.0), amount) for name, amount in need.items() if amount > 0]
    return int(min(((have + 1e-9) // amount for have, amount in amounts), default=1_000_000))


def _words(need: Need, labels: Mapping[str, str]) -> str:
    named = ", ".join(f"{key}={value}" for key, value in labels.items())
    return " + ".join(f"{amount:g} {name}" for name, amount in need.items()) + (f" with {named}" if named else "")


def _never_came(need: Need, labels: Mapping[str, str], found: int, enough: int, waited: float) -> ClusterError:
    have = ", ".join(_words({k: v for k, v in node["Resources"].items() if k in KINDS}, {}) for node in alive())
    what = (
        f"{found} of {enough} places of {_words(need, labels)} came within {waited:.0f} s "
        f"(the cluster has {have or 'no node'})"
    )
    return ClusterError("resources.wait", what, "check the node group's maximum, quota and labels, or wait longer")

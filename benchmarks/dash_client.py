"""A Dash page without a browser: it asks the server for what a browser would, one request after the other."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

WAIT_S = 600.0
# What the browser loads when the first graph appears; the page does not name it.
GRAPHS = (
    "/_dash-component-suites/dash/dcc/async-graph.js",
    "/_dash-component-suites/plotly/package_data/plotly.min.js",
)
Component = dict[str, Any]


class Client:
    """HTTP to one server on this machine, counting what is transferred; cookies are kept."""

    def __init__(self, port: int):
        self.port, self.n_bytes, self._cookies = port, 0, dict[str, str]()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and content; redirects are followed. OSError or HTTPException where the server does not answer."""
        headers = {"Accept-Encoding": "gzip", "Host": f"127.0.0.1:{self.port}"}
        if self._cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        if body is not None:
            headers |= {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{self.port}"}
        content = None if body is None else json.dumps(body)
        self._connection.request("GET" if body is None else "POST", path, content, headers)
        answer = self._connection.getresponse()
        received = answer.read()
        self.n_bytes += len(received)
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        if answer.status in (301, 302, 303, 307, 308):
            return self.ask(re.sub(r"^https?://[^/]*", "", answer.headers["Location"]))
        if answer.headers.get("Content-Encoding") == "gzip":
            received = gzip.decompress(received)
        return answer.status, received

    def page(self, path: str) -> None:
        """A page with the scripts and styles that it names."""
        status, content = self.ask(path)
        if status != 200:
            raise RuntimeError(f"{path}: HTTP {status}")
        for found in re.findall(r'(?:src|href)="(/[^"]+\.(?:js|css)[^"]*)"', content.decode(errors="replace")):
            self.ask(found)


class DashPage:
    """One visitor's page: its components as the server last sent them.

    Callbacks run as in a browser: each whose input has changed, before those that wait for what it gives. Those that
    run in the browser itself are left out, and patches and `running` are not applied.
    """

    def __init__(self, port: int, query: str = ""):
        self.client = Client(port)
        began = time.perf_counter()
        self.client.page(f"/{query}")
        for path in GRAPHS:
            self.client.ask(path)
        self.page_s, self.page_bytes = time.perf_counter() - began, self.client.n_bytes
        self._layout = json.loads(self.client.ask("/_dash-layout")[1])
        self._callbacks = [
            each
            for each in json.loads(self.client.ask("/_dash-dependencies")[1])
            if not each.get("clientside_function")
        ]
        for component in self._find("url"):
            component["props"] |= {"search": query, "pathname": "/", "hash": ""}
        self._settle([each for each in self._callbacks if not each.get("prevent_initial_call")], set())
        self.first_s, self.first_bytes = time.perf_counter() - began, self.client.n_bytes

    def set(self, component: str, name: str, value: Any) -> float:
        """Change a property as its user would -> seconds until everything that depends on it has come."""
        for found in self._find(component):
            found["props"][name] = value
        began = time.perf_counter()
        changed = {(component, name)}
        self._settle([each for each in self._callbacks if self._hears(each, changed)], changed)
        return time.perf_counter() - began

    def get(self, component: str, name: str) -> Any:
        """A property of the first component of this id; None where there is none."""
        return next((found["props"].get(name) for found in self._find(component)), None)

    def _settle(self, waiting: list[Any], changed: set[tuple[str, str]]) -> None:
        for _ in range(100):
            if not waiting:
                return
            later = {prop for each in waiting for prop in _outputs(each)}
            ready = next((each for each in waiting if not _reads(each) & (later - set(_outputs(each)))), waiting[0])
            waiting.remove(ready)
            new = self._run(ready, changed)
            changed = changed | new
            waiting += [each for each in self._callbacks if each not in waiting and self._hears(each, new)]
        raise RuntimeError("the callbacks of the page go on for ever")

    def _hears(self, callback: Any, changed: set[tuple[str, str]]) -> bool:
        return bool(_reads(callback) & changed)

    def _run(self, callback: Any, changed: set[tuple[str, str]]) -> set[tuple[str, str]]:
        outputs = [self._with_ids(component, name) for component, name in _outputs(callback)]
        multi = callback["output"].startswith("..")
        body = {
            "output": callback["output"],
            "outputs": outputs if multi else outputs[0],
            "inputs": [self._with_values(each) for each in callback["inputs"]],
            "state": [self._with_values(each) for each in callback.get("state", [])],
            "changedPropIds": [f"{component}.{name}" for component, name in sorted(changed & _reads(callback))],
        }
        status, content = self.client.ask("/_dash-update-component", body)
        if status == 204:
            return set()
        if status != 200:
            raise RuntimeError(f"{callback['output'][:80]}: HTTP {status}")
        new = set()
        for component, properties in json.loads(content)["response"].items():
            for found in self._find(component):
                found["props"] |= properties
            new |= {(component, name) for name in properties}
        return new

    def _with_ids(self, component: str, name: str) -> Any:
        if not component.startswith("{"):
            return {"id": component, "property": name}
        return [{"id": found["props"]["id"], "property": name} for found in self._find(component)]

    def _with_values(self, asked: Mapping[str, str]) -> Any:
        component, name = asked["id"], asked["property"]
        found = [
            {"id": each["props"]["id"], "property": name, "value": each["props"].get(name)}
            for each in self._find(component)
        ]
        if component.startswith("{"):
            return found
        return found[0] if found else {"id": component, "property": name}

    def _find(self, component: str) -> list[Component]:
        """The components of an id, or that match one with wildcards."""
        wanted = json.loads(component) if component.startswith("{") else component
        return [each for each in _walk(self._layout) if _matches(each["props"].get("id"), wanted)]


def _walk(node: Any) -> Iterator[Component]:
    if isinstance(node, list):
        for each in node:
            yield from _walk(each)
    elif isinstance(node, dict) and "props" in node:
        yield node
        yield from _walk(node["props"].get("children"))


def _matches(given: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict) or not isinstance(given, dict):
        return bool(given == wanted)
    return given.keys() == wanted.keys() and all(
        value == ["ALL"] or given[key] == value for key, value in wanted.items()
    )


def _outputs(callback: Any) -> list[tuple[str, str]]:
    text = callback["output"]
    words = text[2:-2].split("...") if text.startswith("..") else [text]
    pairs = [word.rpartition(".") for word in words]
    return [(component.replace("\\.", "."), name.partition("@")[0]) for component, _, name in pairs]


def _reads(callback: Any) -> set[tuple[str, str]]:
    return {(each["id"], each["property"]) for each in callback["inputs"]}

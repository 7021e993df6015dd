"""JSON with something in it replaced, removed or added."""

import copy
from typing import Any

from hypothesis import strategies as st

JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from([0, -1, 1, 2**31, 2**63, 10**18, 10**30, 0.5, 1e308]),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner)
    ),
    max_leaves=4,
)


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Paths to everything inside nested JSON, the whole included."""
    inner = node.items() if isinstance(node, dict) else ()
    inner = enumerate(node) if isinstance(node, list) else inner
    return [path, *(p for key, value in inner for p in places(value, (*path, key)))]


@st.composite
def changed_json(draw, node: Any) -> Any:
    """Nested JSON with one or two things in it replaced, removed or added."""
    node = copy.deepcopy(node)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(node)))
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if not path:
            if how == "replace":
                node = draw(JUNK)
            continue
        parent = node
        for key in path[:-1]:
            parent = parent[key]
        if how == "remove":
            del parent[path[-1]]
        elif how == "replace":
            parent[path[-1]] = draw(JUNK)
        elif isinstance(parent, list):
            parent.append(draw(JUNK))
        else:
            parent[draw(st.text(max_size=4))] = draw(JUNK)
    return node

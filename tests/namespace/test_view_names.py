"""A view's names must behave like a dict of paths, and survive folds, unmounts and deaths.

Method: Hypothesis drives the calls that make, link, move and remove names against a plain model
(a tree of dicts whose leaves are inode objects); errors must agree by class, and after every step
all names, attributes, inode numbers and contents are compared.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from dedupfs.errors import (
    ExistsError,
    InvalidError,
    IsADirectoryNameError,
    NamespaceError,
    NotADirectoryNameError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
)
from dedupfs.namespace.view import Caller, View
from dedupfs.store.store import Store
from tests.namespace.conftest import assert_sound, make_small_store

CALLER = Caller(5, 6)
NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe", b"long" * 60])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
Path_ = tuple[bytes, ...]


@dataclass
class Node:
    """An inode of the model: a directory when ``names`` is a dict."""

    inode: int
    names: "dict[bytes, Node] | None" = None
    content: bytes = b""
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class NamesMachine(RuleBasedStateMachine):
    """The view under test and its model."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="dedupfs-test-"))
        self.store = make_small_store(self.directory / "store")
        self.view = View.bring_back(self.store)
        self.root = Node(1, {})
        self.numbers_seen: set[int] = {1}

    # --- the model ---------------------------------------------------------------------------

    def parent_of(self, path: Path_) -> Node:
        node = self.root
        for name in path[:-1]:
            if node.names is None:
                raise NotADirectoryNameError
            if name not in node.names:
                raise NotFoundError
            node = node.names[name]
        if node.names is None:
            raise NotADirectoryNameError
        return node

    def find(self, path: Path_) -> Node:
        parent = self.parent_of(path)
        assert parent.names is not None
        if path[-1] not in parent.names:
            raise NotFoundError
        return parent.names[path[-1]]

    def both(self, modelled: Callable[[], Any], real: Callable[[], Any]) -> int | None:
        """Run a call on the model and on the view; results must agree, and errors by class."""
        try:
            expected = modelled()
        except NamespaceError as exc:
            try:
                real()
            except type(exc):
                return None
            raise AssertionError(f"the view allowed what must fail with {type(exc)}") from exc
        found: int | None = real()
        if isinstance(expected, Node):
            assert found is not None
            assert found not in self.numbers_seen, "an inode number was given twice"
            self.numbers_seen.add(found)
            expected.inode = found
        return found

    def real_parent(self, path: Path_) -> int:
        inode = 1
        for name in path[:-1]:
            attr = self.view.lookup(inode, name)
            if not stat.S_ISDIR(attr.mode):
                raise NotADirectoryNameError  # the kernel says so, before it asks a view
            inode = attr.inode
        return inode

    def make(self, path: Path_, node: Node) -> Node:
        parent = self.parent_of(path)
        assert parent.names is not None
        if path[-1] in parent.names:
            raise ExistsError
        parent.names[path[-1]] = node
        return node

    # --- calls -------------------------------------------------------------------------------

    @rule(path=PATHS, content=st.binary(max_size=2000))
    def create(self, path: Path_, content: bytes) -> None:
        def real() -> int:
            handle, attr = self.view.create(self.real_parent(path), path[-1], 0o640, CALLER)
            if content:
                self.view.write(handle, 0, content)
            self.view.release(handle)
            return attr.inode

        self.both(lambda: self.make(path, Node(0, content=content)), real)

    @rule(path=PATHS)
    def mkdir(self, path: Path_) -> None:
        self.both(
            lambda: self.make(path, Node(0, {})),
            lambda: self.view.mkdir(self.real_parent(path), path[-1], 0o755, CALLER).inode,
        )

    @rule(path=PATHS, to=st.binary(min_size=1, max_size=20))
    def symlink(self, path: Path_, to: bytes) -> None:
        self.both(
            lambda: self.make(path, Node(0, target=to)),
            lambda: self.view.symlink(self.real_parent(path), path[-1], to, CALLER).inode,
        )

    @rule(old=PATHS, new=PATHS)
    def link(self, old: Path_, new: Path_) -> None:
        def modelled() -> None:
            node, parent = self.find(old), self.parent_of(new)
            assert parent.names is not None
            if new[-1] in parent.names:
                raise ExistsError
            if node.names is not None:
                raise NotPermittedError
            parent.names[new[-1]] = node

        def real() -> None:
            inode = self.view.lookup(self.real_parent(old), old[-1]).inode
            self.view.link(inode, self.real_parent(new), new[-1])

        self.both(modelled, real)

    @rule(path=PATHS)
    def unlink(self, path: Path_) -> None:
        def modelled() -> None:
            if self.find(path).names is not None:
                raise IsADirectoryNameError
            del self.names_of(path)[path[-1]]

        self.both(modelled, lambda: self.view.unlink(self.real_parent(path), path[-1]))

    @rule(path=PATHS)
    def rmdir(self, path: Path_) -> None:
        def modelled() -> None:
            names = self.find(path).names
            if names is None:
                raise NotADirectoryNameError
            if names:
                raise NotEmptyError
            del self.names_of(path)[path[-1]]

        self.both(modelled, lambda: self.view.rmdir(self.real_parent(path), path[-1]))

    def names_of(self, path: Path_) -> dict[bytes, Node]:
        names = self.parent_of(path).names
        assert names is not None
        return names

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, 0, 1, 2]))
    def rename(self, old: Path_, new: Path_, flags: int) -> None:
        def real() -> None:
            self.view.rename(self.real_parent(old), old[-1], self.real_parent(new), new[-1], flags)

        self.both(lambda: self.model_rename(old, new, flags), real)

    def model_rename(self, old: Path_, new: Path_, flags: int) -> None:
        old_names, new_names = self.names_of(old), self.names_of(new)
        node = self.find(old)
        target = new_names.get(new[-1])
        if flags == 2:
            if target is None:
                raise NotFoundError
            self.refuse_loop(node, self.parent_of(new))
            self.refuse_loop(target, self.parent_of(old))
            old_names[old[-1]], new_names[new[-1]] = target, node
            return
        if flags == 1 and target is not None:
            raise ExistsError
        self.refuse_loop(node, self.parent_of(new))
        if target is node:
            return
        if target is not None:
            if target.names is not None and node.names is None:
                raise IsADirectoryNameError
            if target.names:
                raise NotEmptyError
            if target.names is None and node.names is not None:
                raise NotADirectoryNameError
        del old_names[old[-1]]
        new_names[new[-1]] = node

    def refuse_loop(self, node: Node, parent: Node) -> None:
        if node is parent or (
            node.names is not None and any(n is parent for n in self.all_below(node))
        ):
            raise InvalidError

    def all_below(self, node: Node) -> list[Node]:
        found: list[Node] = []
        for child in (node.names or {}).values():
            found += [child, *self.all_below(child)]
        return found

    @rule(path=PATHS, name=st.sampled_from([b"user.x", b"user.y"]), value=st.binary(max_size=9))
    def setxattr(self, path: Path_, name: bytes, value: bytes) -> None:
        def modelled() -> None:
            self.find(path).xattrs[name] = value

        def real() -> None:
            attr = self.view.lookup(self.real_parent(path), path[-1])
            self.view.setxattr(attr.inode, name, value)

        self.both(modelled, real)

    # --- what happens to the view --------------------------------------------------------------

    @rule()
    def fold(self) -> None:
        self.view.fold()

    @rule()
    def unmount_and_mount(self) -> None:
        self.view.close()
        self.view = View.bring_back(self.store)

    @rule()
    def die_and_mount(self) -> None:
        self.view._opened.release()  # the kernel lets go of a dead process's lock
        self.store.close()
        self.store = Store.open(self.directory / "store")
        self.view = View.bring_back(self.store)

    # --- comparing -----------------------------------------------------------------------------

    @invariant()
    def view_shows_the_model(self) -> None:
        links: dict[int, int] = {}
        for node in self.all_below(self.root):
            links[id(node)] = links.get(id(node), 0) + 1
        self.compare(1, self.root, links)

    def compare(self, inode: int, node: Node, links: dict[int, int]) -> None:
        assert node.names is not None
        handle = self.view.opendir(inode)
        listed = {name: attr for _, name, attr in self.view.readdir(handle, 0)}
        self.view.releasedir(handle)
        assert set(listed) == set(node.names)
        subdirectories = 0
        for name, child in node.names.items():
            attr = self.view.lookup(inode, name)
            assert attr == listed[name] == self.view.getattr(attr.inode)
            assert attr.inode == child.inode
            assert {
                key: self.view.getxattr(attr.inode, key) for key in self.view.listxattr(attr.inode)
            } == child.xattrs
            if child.names is not None:
                assert stat.S_ISDIR(attr.mode)
                subdirectories += 1
                self.compare(attr.inode, child, links)
            elif child.target:
                assert self.view.readlink(attr.inode) == child.target
                assert attr.nlink == links[id(child)]
            else:
                assert attr.size == len(child.content)
                assert attr.nlink == links[id(child)]
                opened = self.view.open(attr.inode, os.O_RDONLY)
                assert self.view.plan_read(opened, 0, 20_000).run() == child.content
                self.view.release(opened)
        assert self.view.getattr(inode).nlink == 2 + subdirectories

    def teardown(self) -> None:
        self.view.close()
        assert_sound(self.store)
        self.store.close()
        shutil.rmtree(self.directory)


# A fold that is committed goes on when the disk refuses to clear up behind it, and says so.
TestNames = pytest.mark.allow_log("left for the next mount")(NamesMachine.TestCase)
TestNames.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)

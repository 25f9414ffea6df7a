"""The mesh: ranks and coordinates are inverse, and the groups of a dimension partition the ranks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwise.errors import LayoutError
from shardwise.spec.mesh import Coords, Mesh

DIMENSIONS = ("tp", "ep", "pp", "dp")
MESHES = st.builds(Mesh, *[st.integers(1, 4)] * 4)


@settings(deadline=None)
@given(MESHES)
def test_coords_and_rank_are_inverse(mesh):
    seen = [mesh.coords(rank) for rank in range(mesh.size)]
    assert [mesh.rank(at) for at in seen] == list(range(mesh.size))
    assert len(set(seen)) == mesh.size == mesh.tp * mesh.ep * mesh.pp * mesh.dp
    for at in seen:
        assert all(0 <= getattr(at, name) < getattr(mesh, name) for name in DIMENSIONS)


@settings(deadline=None)
@given(MESHES, st.sampled_from(DIMENSIONS))
def test_groups_partition_the_ranks(mesh, along):
    groups = {mesh.group(along, rank) for rank in range(mesh.size)}
    assert sorted(rank for group in groups for rank in group) == list(range(mesh.size))
    for group in groups:
        assert [getattr(mesh.coords(rank), along) for rank in group] == list(range(getattr(mesh, along)))
        others = {tuple(getattr(mesh.coords(r), name) for name in DIMENSIONS if name != along) for r in group}
        assert len(others) == 1, "they differ in that coordinate alone"


@settings(deadline=None)
@given(MESHES, st.sampled_from(DIMENSIONS))
def test_a_rank_is_in_its_own_group_at_its_coordinate(mesh, along):
    for rank in range(mesh.size):
        assert mesh.group(along, rank)[getattr(mesh.coords(rank), along)] == rank


def test_tensor_parallel_neighbours_are_neighbours_in_rank():
    mesh = Mesh(tp=2, ep=3, pp=2, dp=2)
    assert mesh.group("tp", 3) == (2, 3)
    assert mesh.group("ep", 3) == (1, 3, 5)
    assert mesh.group("pp", 3) == (3, 9)
    assert mesh.group("dp", 3) == (3, 15)
    assert mesh.coords(23) == Coords(1, 2, 1, 1)


@pytest.mark.parametrize("name", DIMENSIONS)
@pytest.mark.parametrize("degree", [0, -1, 1.5, "2", None])
def test_degrees_are_whole_and_positive(name, degree):
    with pytest.raises(LayoutError, match=rf"{name} is {degree!r}.* whole number of at least 1"):
        Mesh(**{name: degree})


@pytest.mark.parametrize("rank", [-1, 6, 100])
def test_ranks_off_the_mesh_are_refused(rank):
    with pytest.raises(LayoutError, match=rf"rank {rank} .* mesh of 6; ranks are 0 to 5"):
        Mesh(tp=3, pp=2).coords(rank)

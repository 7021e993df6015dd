"""MATLAB files; damaged ones are in tests/fuzz."""

import importlib.resources
import warnings

import numpy as np
import pytest
import scipy.io

from uss_utils.datasets import mat_files

WRITTEN = importlib.resources.files("scipy.io.matlab") / "tests" / "data"


@pytest.mark.parametrize(
    "name",
    [
        "testdouble_7.4_GLNX86.mat",  # compressed
        "testdouble_6.1_SOL2.mat",  # largest byte first
        "testmatrix_6.5.1_GLNX86.mat",
        "testminus_7.1_GLNX86.mat",  # a small element
        "testmulti_7.4_GLNX86.mat",
    ],
)
def test_files_that_matlab_has_written(name):
    path = WRITTEN / name
    if not path.is_file():
        pytest.skip(f"this scipy brings no {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {k: v for k, v in scipy.io.loadmat(path).items() if k[0] != "_"}
    assert expected
    for key, value in expected.items():
        found = mat_files.read(path, key)
        assert found.dtype.isnative and found.dtype.kind == value.dtype.kind
        assert np.array_equal(found, value)
        assert mat_files.shape(path, key) == value.shape


def test_fields_of_structs(tmp_path):
    path, ids = tmp_path / "a.mat", np.arange(6, dtype=np.uint8).reshape(2, 3)
    scipy.io.savemat(path, {"a": {"text": "x", "b": {"c": ids}}, "d": 1})
    assert np.array_equal(mat_files.read(path, "a", "b", "c"), ids)
    for names, match in (
        (("a", "e"), r"'a\.e' in .*a.mat is absent among the fields text, b; expected"),
        (("a", "text"), r"'a\.text' in .* is something else .*expected numbers"),
        (("d", "b"), r"'d\.b' in .* is no struct; expected numbers"),
        (("e",), r"a.mat holds a, d, but no array named 'e'"),
    ):
        with pytest.raises(ValueError, match=match):
            mat_files.read(path, *names)


def test_other_versions(tmp_path):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"a": 1}, format="4")
    with pytest.raises(OSError, match="cannot read .*a.mat: it is no MATLAB file of v"):
        mat_files.read(path, "a")
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(600))
    with pytest.raises(
        OSError, match=r"version 7.3 \(HDF5\); save it with MATLAB's -v7"
    ):
        mat_files.shape(path, "a")
    with pytest.raises(OSError, match="cannot read .*b.mat: No such file"):
        mat_files.read(tmp_path / "b.mat", "a")

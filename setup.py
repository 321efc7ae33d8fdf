"""Compiles the modules of the byte path; everything else about the project is in pyproject.toml."""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(".".join(source.with_suffix("").parts), [str(source)], extra_compile_args=["-O2"])
            for room in ("protocols", "proxy")
            for source in sorted(Path(room).glob("*.pyx"))
        ],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            # None where an object should be is an exception on one connection, not the end of the worker.
            "nonecheck": True,
        },
        annotate=False,
        quiet=True,
    )
)

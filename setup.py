"""The native part of shardwise: one library of C++ with a plain C interface, which ctypes loads. All else is in pyproject.toml.

Where no compiler is found, or it fails, the package installs without it, and torch computes everything.
"""

from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(path) for folder in ("native", "native/isa") for path in Path(folder).glob("*.cpp"))
HEADERS = sorted(str(path) for folder in ("native", "native/isa") for path in Path(folder).glob("*.h"))
FLAGS = ["-std=c++17", "-O3", "-g0", "-Wall", "-Wextra", "-Werror=return-type", "-fvisibility=hidden", "-pthread"]
# GCC 12 warns about its own header of AVX-512.
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]


class Build(build_ext):
    """Compiles as many files at once as there are processors: each is every kernel for one kind of CPU."""

    def build_extension(self, ext: Extension) -> None:
        one_by_one = self.compiler.compile

        def all_at_once(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(cpu_count() or 1) as pool:
                made = pool.map(lambda source: one_by_one([source], **options), sources)
                return [path for paths in made for path in paths]

        self.compiler.compile = all_at_once
        super().build_extension(ext)


native = Extension(
    "shardwise._native",
    SOURCES,
    depends=HEADERS,
    extra_compile_args=FLAGS,
    extra_link_args=["-pthread"],
    language="c++",
    py_limited_api=True,
    optional=True,
)
setup(ext_modules=[native], cmdclass={"build_ext": Build}, options={"bdist_wheel": {"py_limited_api": "cp311"}})
